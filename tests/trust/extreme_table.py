"""Every operation on one row: what it takes, what it gives, the errors it is allowed, and where its range ends."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import extreme_bounds as at


class Row(NamedTuple):
    """An operation.

    Attributes:
        shapes: of the arrays it takes, for maps of a shape (B, H, W, C); the first one is what is made extreme.
        run: gives all outputs and gradients by name.
        bound: gives the largest error of each, from the wide inputs, the wide results and the rounding.
        largest: magnitude of the first array up to which all numbers on the way are finite.
    """

    shapes: Callable[[int, int, int, int], dict[str, tuple[int, ...]]]
    run: Callable[[Any, at.Arrays], at.Arrays]
    bound: Callable[[at.Arrays, at.Arrays, at.Rounding], at.Arrays]
    largest: Callable[[Any], float]


def of_maps(first: str, **others: Any) -> Callable[..., dict[str, tuple[int, ...]]]:
    """Shapes by letters: what is not given is a map."""

    def shapes(B: int, H: int, W: int, C: int) -> dict[str, tuple[int, ...]]:
        sizes = {"B": B, "H": H, "W": W, "C": C, "k": 3, "O": C + 3, "1": 1, "N": 6, "-": C - 2, "2": 2}
        rows, columns = ((n + sum(pad) - at.PATCH) // at.STRIDE + 1 for n, pad in zip((H, W), at.PADDING, strict=True))
        sizes |= {"h": rows, "w": columns, "p": C * at.PATCH * at.PATCH}
        return {name: tuple(sizes[letter] for letter in letters) for name, letters in {first: "BHWC", **others}.items()}

    return shapes


def _share(divisor: float) -> Callable[[Any], float]:
    return lambda f: float(f.max) / divisor


def _root(divisor: float) -> Callable[[Any], float]:
    return lambda f: float(f.max) ** 0.5 / divisor


ROWS = {
    "linear": Row(of_maps("x", weight="CO", bias="O", dy="BHWO"), at.run_linear, at.bound_linear, _share(1e4)),
    "gelu": Row(of_maps("x", dy="BHWC"), partial(at.run_activation, "gelu"), at.bound_gelu, _share(2)),
    # u takes x³, of which the slope takes 0 times: beyond its range the slope is NaN, y is right.
    "gelu_tanh": Row(
        of_maps("x", dy="BHWC"),
        partial(at.run_activation, "gelu_tanh"),
        at.bound_gelu_tanh,
        lambda f: float(f.max) ** 0.33,
    ),
    "sigmoid": Row(of_maps("x", dy="BHWC"), partial(at.run_activation, "sigmoid"), at.bound_sigmoid, _share(2)),
    # The squares of centred numbers are summed: beyond their range the variance is infinite and y is the bias.
    "layer_norm": Row(of_maps("x", weight="C", bias="C", dy="BHWC"), at.run_layer_norm, at.bound_layer_norm, _root(8)),
    "layer_scale": Row(of_maps("x", gamma="C", dy="BHWC"), at.run_layer_scale, at.bound_layer_scale, _share(1e3)),
    "depthwise_conv": Row(of_maps("x", weight="kkC", dy="BHWC"), at.run_conv, at.bound_conv, _share(1e4)),
    "focal_level": Row(
        of_maps("ctx", weight="kkC", gate="BHW1", aggregate="BHWC", dctx="BHWC", daggregate="BHWC"),
        at.run_level,
        at.bound_level,
        _share(1e5),
    ),
    "global_level": Row(
        of_maps("ctx", gate="BHW1", aggregate="BHWC", daggregate="BHWC"), at.run_global, at.bound_global, _share(1e4)
    ),
    "box_mean": Row(
        of_maps("x", dy="BHWC"), partial(at.run_plain, "box_mean", (at.WIDTH,)), at.bound_box_mean, _share(8)
    ),
    "patches": Row(
        of_maps("x", dy="Bhwp"),
        partial(at.run_plain, "patches", (at.PATCH, at.STRIDE, at.PADDING)),
        at.bound_patches,
        _share(1),
    ),
    "drop_path": Row(
        of_maps("x", dy="BHWC"), partial(at.run_dropped, "drop_path"), partial(at.each_rounded, 2), _share(2)
    ),
    "dropout": Row(of_maps("x", dy="BHWC"), partial(at.run_dropped, "dropout"), partial(at.each_rounded, 2), _share(2)),
    "mean_pool": Row(of_maps("x", dy="BC"), partial(at.run_plain, "mean_pool", ()), at.bound_mean_pool, _share(32)),
    "modulate": Row(
        of_maps("x", modulator="BHWC", dy="BHWC"), at.run_modulate, partial(at.each_rounded, 1), _share(16)
    ),
    "split": Row(of_maps("x", dfirst="BHW-", dsecond="BHW2"), at.run_split, partial(at.each_rounded, 0), _share(1)),
    "add": Row(of_maps("x", y="BHWC"), at.run_add, partial(at.each_rounded, 1), _share(2)),
    "cross_entropy": Row(
        lambda B, H, W, C: {"logits": (B + 1, C + 3), "labels": (B + 1,)},
        at.run_cross_entropy,
        at.bound_cross_entropy,
        _share(4),
    ),
    "sgd_update": Row(of_maps("grad", data="BHWC", velocity="BHWC"), at.run_sgd, at.bound_sgd, _share(8)),
    # The squares of gradients are kept.
    "adamw_update": Row(
        of_maps("grad", data="BHWC", mean="BHWC", square="BHWC"), at.run_adamw, at.bound_adamw, _root(4)
    ),
    "clip": Row(of_maps("first", second="CO"), at.run_clip, at.bound_clip, _root(32)),
    "unscale": Row(of_maps("first", second="CO", scale=""), at.run_unscale, partial(at.each_rounded, 1), _share(1)),
}
"""One row for every operation of the table."""
