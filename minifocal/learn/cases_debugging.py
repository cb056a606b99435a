"""Calls of the debugging exercises: whole blocks with a bug on the way back, judged by their output and gradients."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from minifocal.arrays import Array
from minifocal.functional.activations import gelu_forward
from minifocal.functional.context import focal_level_forward
from minifocal.functional.layer_norm import layer_norm_forward
from minifocal.functional.linear import linear_forward
from minifocal.learn.case import Case, Draws, gradient_case, same

EPS = 1e-5


def mlp_branch() -> Iterator[Case]:
    """y = x + fc2(GELU(fc1(x)))."""
    draw = Draws(18)
    for B, T, C, D in ((1, 1, 2, 3), (2, 5, 3, 4)):
        arrays = {
            "x": draw(B, T, C),
            "weight1": draw(C, D),
            "bias1": draw(D),
            "weight2": draw(D, C),
            "bias2": draw(C),
        }
        yield _block({"B": B, "T": T, "C": C, "D": D}, _mlp_branch, arrays, draw)


def _mlp_branch(x: Array, weight1: Array, bias1: Array, weight2: Array, bias2: Array) -> tuple[Array, None]:
    hidden, _ = gelu_forward(linear_forward(x, weight1, bias1)[0])
    return x + linear_forward(hidden, weight2, bias2)[0], None


def gated_conv() -> Iterator[Case]:
    """y = gate * GELU(DWConv(x))."""
    draw = Draws(19)
    for B, H, W, C, k in ((1, 3, 4, 1, 3), (2, 5, 4, 3, 3)):
        arrays = {"x": draw(B, H, W, C), "weight": draw(k, k, C), "gate": draw(B, H, W, 1)}
        yield _block({"B": B, "H": H, "W": W, "C": C, "k": k}, _gated_conv, arrays, draw)


def _gated_conv(x: Array, weight: Array, gate: Array) -> tuple[Array, None]:
    return focal_level_forward(x, weight, gate, 0.0)[1], None


def post_ln() -> Iterator[Case]:
    """y = x + LayerNorm(q * m), q = x @ weight_q, m = x @ weight_m."""
    draw = Draws(20)
    for B, T, C in ((1, 1, 3), (2, 5, 4)):
        arrays = {
            "x": draw(B, T, C),
            "weight_q": draw(C, C),
            "weight_m": draw(C, C),
            "norm_weight": draw(C),
            "norm_bias": draw(C),
        }
        yield _block({"B": B, "T": T, "C": C}, partial(_post_ln, eps=EPS), arrays, draw, {"eps": EPS})


def _post_ln(
    x: Array, weight_q: Array, weight_m: Array, norm_weight: Array, norm_bias: Array, *, eps: float
) -> tuple[Array, None]:
    zero = np.zeros_like(norm_bias)
    product = linear_forward(x, weight_q, zero)[0] * linear_forward(x, weight_m, zero)[0]
    return x + layer_norm_forward(product, norm_weight, norm_bias, eps)[0], None


def _block(
    sizes: Mapping[str, int],
    forward: Callable[..., tuple[Array, None]],
    arrays: Mapping[str, Array],
    draw: Draws,
    options: Mapping[str, float] | None = None,
) -> Case:
    """A case whose function gives y, then the gradient of every array."""
    y, _ = forward(*arrays.values())
    return gradient_case(
        sizes,
        forward,
        arrays,
        {"dy": same, **arrays, **(options or {})},
        draw=draw,
        values={"y": y},
    )
