"""What every operation promises, held against one table of all of them.

The gradient by every array is the derivative of the forward pass; a float type stays what it is; nothing that was
given is written into; the way back can be gone twice.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

import minifocal.functional
from minifocal.arrays import as_numpy, get_array_module, random_generator
from minifocal.functional.activations import (
    gelu_backward,
    gelu_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    sigmoid_backward,
    sigmoid_forward,
)
from minifocal.functional.box_mean import box_mean_backward, box_mean_forward
from minifocal.functional.context import (
    focal_level_backward,
    focal_level_forward,
    global_level_backward,
    global_level_forward,
)
from minifocal.functional.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minifocal.functional.depthwise_conv import depthwise_conv_backward, depthwise_conv_forward
from minifocal.functional.drop_path import drop_backward, drop_path_forward, dropout_forward
from minifocal.functional.layer_norm import layer_norm_backward, layer_norm_forward
from minifocal.functional.layer_scale import layer_scale_backward, layer_scale_forward
from minifocal.functional.linear import linear_backward, linear_forward
from minifocal.functional.mean_pool import mean_pool_backward, mean_pool_forward
from minifocal.functional.modulate import modulate_backward, modulate_forward
from minifocal.functional.patches import patches_backward, patches_forward
from minifocal.functional.split import split_backward, split_forward
from minifocal.gradcheck import check_gradients

B, H, W, C = 2, 5, 4, 3
MAP, GATE = (B, H, W, C), (B, H, W, 1)


class Case(NamedTuple):
    """An operation as a function of arrays only: (*arrays) -> (y, cache), and (dy, cache) -> all gradients.

    Two outputs are joined into one y. The first word of the name is the operation's.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    shapes: dict[str, tuple[int, ...]]


def case(name, forward, backward, **shapes):
    return Case(name, forward, backward, shapes)


def focal_level(ctx, weight, gate, aggregate):
    ctx, aggregate, cache = focal_level_forward(ctx, weight, gate, aggregate)
    return get_array_module(ctx).concatenate([ctx, aggregate], axis=-1), cache


def focal_level_back(dy, cache):
    dctx, daggregate = dy[..., :C], dy[..., C:]
    return *focal_level_backward(dctx, daggregate, cache), daggregate


def ungated_level(ctx, weight, aggregate):
    return focal_level(ctx, weight, None, aggregate)


def ungated_level_back(dy, cache):
    dctx, dweight, dgate, daggregate = focal_level_back(dy, cache)
    assert dgate is None
    return dctx, dweight, daggregate


def only_level(ctx, weight, gate):
    """The first level (nothing gathered before it) and the last (no level behind it) in one."""
    _, aggregate, cache = focal_level_forward(ctx, weight, gate, 0.0)
    return aggregate, cache


def global_level(ctx, gate, aggregate):
    return global_level_forward(ctx, gate, aggregate)


def global_level_back(dy, cache):
    return *global_level_backward(dy, cache), dy


def parts_in_another_order(x):
    (first, second, third), cache = split_forward(x, (1, 3, 2))
    return get_array_module(x).concatenate([third, first, second], axis=-1), cache


def parts_in_another_order_back(dy, cache):
    return split_backward((dy[..., 2:3], dy[..., 3:], dy[..., :2]), cache)


def labelled(smoothing):
    def forward(logits):
        labels = get_array_module(logits).asarray(np.array([4, 0, 2]))
        return cross_entropy_forward(logits, labels, smoothing)

    return forward


def cross_entropy_back(dloss, cache):
    return cross_entropy_backward(cache, dloss)


def drawn(forward, rate):
    return lambda x: forward(x, rate, random_generator(3))


def cut(size, stride, padding=((0, 0), (0, 0))):
    return partial(patches_forward, size=size, stride=stride, padding=padding)


CASES = [
    case("linear", linear_forward, linear_backward, x=MAP, weight=(C, 7), bias=(7,)),
    case("linear of rows", linear_forward, linear_backward, x=(B, C), weight=(C, 7), bias=(7,)),
    case("gelu", gelu_forward, gelu_backward, x=MAP),
    case("gelu_tanh", gelu_tanh_forward, gelu_tanh_backward, x=MAP),
    case("sigmoid", sigmoid_forward, sigmoid_backward, x=MAP),
    case("layer_norm", layer_norm_forward, layer_norm_backward, x=MAP, weight=(C,), bias=(C,)),
    case(
        "layer_norm of a row", partial(layer_norm_forward, eps=0.1), layer_norm_backward, x=(7,), weight=(7,), bias=(7,)
    ),
    case("layer_scale", layer_scale_forward, layer_scale_backward, x=MAP, gamma=(C,)),
    case("depthwise_conv 1x1", depthwise_conv_forward, depthwise_conv_backward, x=MAP, weight=(1, 1, C)),
    case("depthwise_conv 3x3", depthwise_conv_forward, depthwise_conv_backward, x=MAP, weight=(3, 3, C)),
    case("depthwise_conv wider than the map", depthwise_conv_forward, depthwise_conv_backward, x=MAP, weight=(7, 7, C)),
    case("focal_level", focal_level, focal_level_back, ctx=MAP, weight=(3, 3, C), gate=GATE, aggregate=MAP),
    case("focal_level ungated", ungated_level, ungated_level_back, ctx=MAP, weight=(5, 5, C), aggregate=MAP),
    case("focal_level alone", only_level, partial(focal_level_backward, 0.0), ctx=MAP, weight=(3, 3, C), gate=GATE),
    case("global_level", global_level, global_level_back, ctx=MAP, gate=GATE, aggregate=MAP),
    case("global_level alone", partial(global_level_forward, aggregate=0.0), global_level_backward, ctx=MAP, gate=GATE),
    case("box_mean even", partial(box_mean_forward, width=6), box_mean_backward, x=MAP),
    case("box_mean odd", partial(box_mean_forward, width=3), box_mean_backward, x=MAP),
    case("box_mean wider than the map", partial(box_mean_forward, width=45), box_mean_backward, x=MAP),
    case("patches tiled, a row left out", cut(2, 2), patches_backward, x=MAP),
    case("patches overlapping", cut(3, 1), patches_backward, x=MAP),
    case("patches overlapping and padded", cut(3, 2, ((0, 2), (1, 3))), patches_backward, x=MAP),
    case("patches apart", cut(1, 3), patches_backward, x=MAP),
    case("drop_path", drawn(drop_path_forward, 0.4), drop_backward, x=(6, H, C)),
    case("drop_path at rate 0", drawn(drop_path_forward, 0.0), drop_backward, x=(6, H, C)),
    case("dropout", drawn(dropout_forward, 0.4), drop_backward, x=MAP),
    case("modulate", modulate_forward, modulate_backward, x=MAP, modulator=MAP),
    case("split", parts_in_another_order, parts_in_another_order_back, x=(B, H, W, 6)),
    case("mean_pool", mean_pool_forward, mean_pool_backward, x=MAP),
    case("cross_entropy", labelled(0.0), cross_entropy_back, logits=(3, 5)),
    case("cross_entropy smoothed", labelled(0.3), cross_entropy_back, logits=(3, 5)),
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def draw(case, xp, dtype="float64"):
    rng = np.random.default_rng(sum(map(ord, case.name)))
    return {name: xp.asarray(rng.standard_normal(shape).astype(dtype)) for name, shape in case.shapes.items()}


def gradients_of(case, dy, cache):
    gradients = case.backward(dy, cache)
    return gradients if isinstance(gradients, tuple) else (gradients,)


def arrays_in(cache):
    """Every array of a cache and of the caches in it."""
    if isinstance(cache, tuple):
        return [array for part in cache for array in arrays_in(part)]
    return [cache] if hasattr(cache, "dtype") else []


def test_the_table_holds_every_operation():
    """A new file in functional/ needs a case here."""
    names = set()
    for module in pkgutil.iter_modules(minifocal.functional.__path__):
        functions = inspect.getmembers(
            importlib.import_module(f"minifocal.functional.{module.name}"), inspect.isfunction
        )
        names |= {name.removesuffix("_forward") for name, _ in functions if name.endswith("_forward")}
    assert {case.name.split()[0] for case in CASES} == names


# Only NumPy: CuPy's erf takes no complex numbers.
@every_case
def test_every_element_of_every_gradient_equals_the_complex_step(case):
    """1e-12 is 4500 roundings: the complex step subtracts nothing, so that rounding is its only error."""
    report = check_gradients(
        case.forward, case.backward, draw(case, np), method="complex", elementwise=True, tolerance=1e-12
    )
    assert report.passed, str(report)


@every_case
def test_every_gradient_equals_central_differences_along_directions(xp, case):
    """<dy, J v> = <J^T dy, v> for random dy and v: the backward function is the adjoint of the derivative."""
    report = check_gradients(case.forward, case.backward, draw(case, xp), directions=3, tolerance=1e-7)
    assert report.passed, str(report)
    assert [check.name for check in report.checks] == list(case.shapes)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_case
def test_outputs_caches_and_gradients_keep_the_float_type(xp, case, dtype):
    arrays = draw(case, xp, dtype)
    y, cache = case.forward(*arrays.values())
    assert y.dtype == dtype
    kept = {array.dtype for array in arrays_in(cache) if array.dtype.kind == "f"}
    assert kept <= {np.dtype(dtype)}
    gradients = gradients_of(case, xp.ones(y.shape, dtype=dtype), cache)
    for (name, array), gradient in zip(arrays.items(), gradients, strict=True):
        assert gradient.dtype == dtype, name
        assert gradient.shape == array.shape, name


@every_case
def test_float32_gives_what_float64_gives_to_its_own_rounding(xp, case):
    exact, rounded = draw(case, xp), draw(case, xp, "float32")
    results = []
    for arrays in (exact, rounded):
        y, cache = case.forward(*arrays.values())
        dy = xp.asarray(np.random.default_rng(8).standard_normal(y.shape).astype(str(y.dtype)))
        results.append([y, *gradients_of(case, dy, cache)])
    for want, got in zip(*results, strict=True):
        tolerance = 128 * float(np.finfo(np.float32).eps) * float(abs(want).max())
        np.testing.assert_allclose(as_numpy(got), as_numpy(want), rtol=0, atol=tolerance)


@every_case
def test_nothing_given_is_written_into(xp, case):
    """On read-only arrays (where the library has that) a write would raise; elsewhere it would show."""
    arrays = draw(case, xp)
    y, _ = case.forward(*[array.copy() for array in arrays.values()])
    dy = xp.asarray(np.random.default_rng(9).standard_normal(y.shape))
    given = [*arrays.values(), dy]
    before = [as_numpy(array).copy() for array in given]
    if xp is np:
        for array in given:
            array.flags.writeable = False
    _, cache = case.forward(*arrays.values())
    case.backward(dy, cache)
    for array, kept in zip(given, before, strict=True):
        np.testing.assert_array_equal(as_numpy(array), kept)


@every_case
def test_the_way_back_can_be_gone_twice(xp, case):
    """A backward function uses its cache up in no way: the second time gives the same bits."""
    y, cache = case.forward(*draw(case, xp).values())
    dy = xp.asarray(np.random.default_rng(10).standard_normal(y.shape))
    first = [as_numpy(gradient).copy() for gradient in gradients_of(case, dy, cache)]
    for one, other in zip(first, gradients_of(case, dy, cache), strict=True):
        np.testing.assert_array_equal(one, as_numpy(other))


def test_the_drawn_cases_drop_some_and_keep_some():
    for forward, shape in ((drop_path_forward, (6, H, C)), (dropout_forward, MAP)):
        y, _ = drawn(forward, 0.4)(np.ones(shape))
        assert set(np.unique(y)) == {0.0, 1 / 0.6}
