"""What holds of every layer and of the whole network, as functions that raise AssertionError where it does not."""

from typing import Any, NamedTuple

import numpy as np
from extreme_bounds import Rounding
from extreme_table import ROWS
from extremes import GELU_ERROR, SHAPES, exact, make_inputs
from homes import arrays
from whole_networks import gradients

from minifocal.arrays import random_generator
from minifocal.functional.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minifocal.layers.focal_context import FocalContext
from minifocal.layers.initializers import LeCun


class Call(NamedTuple):
    """A layer's forward pass, as it went."""

    name: str
    layer: Any
    inputs: tuple[Any, ...]
    given: list[bytes]  # its inputs, before
    y: Any
    cache: Any


def calls_of(model, images, seed=3):
    """Go through a network and remember what every layer took and gave; the network itself comes last."""
    calls = []

    def listen(layer, name):
        forward = layer.forward

        def listening(*inputs):
            given = bytes_of(inputs)
            y, cache = forward(*inputs)
            calls.append(Call(name, layer, inputs, given, y, cache))
            return y, cache

        layer.forward = listening

    layers = list({id(layer): layer for layer in model.layers_inside()}.values())
    for layer in layers:
        listen(layer, type(layer).__name__)
    try:
        model.forward(images, random_generator(seed))
    finally:
        for layer in layers:
            del layer.forward
    return calls


def one_of_each(calls):
    """The last call of each class of layers."""
    return {call.name: call for call in calls}.values()


def go_back(call, dy):
    """Give all gradients of a layer's way back: by its input, and by its parameters."""
    call.layer.zero_grad()
    dx = call.layer.backward(dy, call.cache)
    own = [parameter.grad.copy() for parameter in call.layer.parameters()]
    return [array.copy() for array in arrays((dx,))] + own


def few_bits(rng, shape, dtype="float32"):
    """Normal numbers in steps of 1/256, of which small sums are exact."""
    return (np.round(256 * rng.standard_normal(shape)) / 256).astype(dtype)


def upstream(call, seed):
    """What may come back to a layer."""
    return few_bits(np.random.default_rng([seed, call.y.size]), call.y.shape, call.y.dtype)


def bytes_of(tree):
    return [array.tobytes() for array in arrays(tree)]


def assert_near(got, want, sizes, what=""):
    """A thousand roundings of the largest number: three blocks there and back, sums over up to 168 tokens."""
    for one, other, size in zip(got, want, sizes, strict=True):
        largest = float(np.abs(size).max(initial=0.0))
        tolerance = 1000 * float(np.finfo(other.dtype).eps) * largest
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance, err_msg=what)


def check_linear(model, images, a, b, seed=1):
    for call in one_of_each(calls_of(model, images)):
        first, second = upstream(call, seed), upstream(call, seed + 1)
        one, other = go_back(call, first), go_back(call, second)
        for got, want in zip(go_back(call, 4 * first), one, strict=True):  # a power of two is no rounding
            np.testing.assert_array_equal(got, 4 * want, err_msg=call.name)
        want = [a * x + b * y for x, y in zip(one, other, strict=True)]
        sizes = [abs(a * x) + abs(b * y) for x, y in zip(one, other, strict=True)]
        assert_near(go_back(call, a * first + b * second), want, sizes, call.name)


def check_linear_operation(name, ops):
    """As check_linear, of one operation; sums differ by no more than the bounds of their parts together."""
    row, dtype = ROWS[name], "float32"
    inputs = make_inputs(name, row, "normal", SHAPES[0], dtype)
    upstream = [key for key in list(inputs)[1:] if key.startswith("d")]
    rng = np.random.default_rng(5)
    draws = [{key: few_bits(rng, inputs[key].shape) for key in upstream} for _ in range(2)]
    both = {key: 3 * draws[0][key] - 2 * draws[1][key] for key in upstream}
    runs, allowed = [], []
    for draw, share in ((draws[0], 3.0), (draws[1], -2.0), (both, 1.0), ({k: 4 * v for k, v in draws[0].items()}, 0.0)):
        there = {**inputs, **draw}
        runs.append(row.run(ops, there))
        wide, want = exact(row, there, dtype)
        bounds = row.bound(wide, want, Rounding(float(np.finfo(dtype).eps), 0.0, GELU_ERROR))
        allowed.append({key: abs(share) * bound for key, bound in bounds.items()})
    first, second, together, fourfold = runs
    backward = [key for key in first if key.startswith("d")]
    assert upstream != []
    assert backward != []
    for key in backward:
        np.testing.assert_array_equal(fourfold[key], 4 * first[key], err_msg=key)
        error = abs(together[key].astype("float64") - 3.0 * first[key] + 2.0 * second[key])
        assert (error <= sum(bounds[key] for bounds in allowed)).all(), key


def check_pure(model, images, seed=1):
    """Forward and back leave inputs, parameters, upstream and cache as they are, and give the same again."""
    calls = calls_of(model, images)
    parameters = {name: array.tobytes() for name, array in model.state_dict().items()}
    kept = [[*call.given, *bytes_of((call.y, call.cache))] for call in calls]
    first = []
    for call in calls:
        dy = upstream(call, seed)
        before = dy.tobytes()
        dx = call.layer.backward(dy, call.cache)
        assert dy.tobytes() == before, f"{call.name} wrote into dy"
        first.append((dx, bytes_of((dx,))))
    again = calls_of(model, images)
    calls_of(model, -images)  # what works with memory of its own may write over what it gave before
    for call, same, before, (dx, bits) in zip(calls, again, kept, first, strict=True):
        assert bytes_of((call.inputs, call.y, call.cache)) == before, f"{call.name}: input, output or cache changed"
        assert bytes_of((same.y, same.cache)) == bytes_of((call.y, call.cache)), f"{call.name}: again, other bits"
        assert bytes_of((dx,)) == bits, f"{call.name}: a gradient changed after it was given"
    for call in one_of_each(calls):
        dy = upstream(call, seed)
        once = go_back(call, dy)
        assert [array.tobytes() for array in go_back(call, dy)] == [array.tobytes() for array in once], call.name
        call.layer.backward(dy, call.cache)  # gradients add up: twice the same is twice as much, exactly
        own = list(call.layer.parameters())
        for parameter, grad in zip(own, once[len(once) - len(own) :], strict=True):
            np.testing.assert_array_equal(parameter.grad, 2 * grad, err_msg=call.name)
    assert {name: array.tobytes() for name, array in model.state_dict().items()} == parameters


def results_of(model, images, labels, parts):
    """Logits, and the gradients of the mean loss of all images, gone through part by part."""
    model.zero_grad()
    logits, dimages = [], []
    for part in parts:
        y, cache = model.forward(images[part])
        _, loss_cache = cross_entropy_forward(y, labels[part], 0.1)
        dimages.append(model.backward(cross_entropy_backward(loss_cache, len(y) / len(images)), cache))
        logits.append(y)
    return [np.concatenate(logits), np.concatenate(dimages), *gradients(model).values()]


def sizes_of(results):
    return [np.maximum(np.abs(array).max(), 1.0) for array in results]


def check_parts(model, images, labels, cut):
    whole = results_of(model, images, labels, [slice(None)])
    halves = results_of(model, images, labels, [slice(0, cut), slice(cut, None)])
    assert_near(halves, whole, sizes_of(whole))


def check_rounded(narrow, wide, images, labels):
    """float32 gives what float64 gives to the same weights and images."""
    for parameter, double in zip(narrow.parameters(), wide.parameters(), strict=True):
        double.data[...] = parameter.data
    got = results_of(narrow, images, labels, [slice(None)])
    want = results_of(wide, images.astype("float64"), labels, [slice(None)])
    assert {array.dtype for array in got} == {np.dtype("float32")}
    assert_near(got, [array.astype("float32") for array in want], sizes_of(want))


def check_order(model, images, labels, order):
    logits, dimages, *grads = results_of(model, images, labels, [slice(None)])
    want = [logits[order], dimages[order], *grads]
    assert_near(results_of(model, images[order], labels[order], [slice(None)]), want, sizes_of(want))


H, W, C = 17, 19, 5
KERNELS = (3, 5)
REACH = sum(k // 2 for k in KERNELS)


def moved(x, down, right):
    return np.roll(x, (down, right), axis=(1, 2))


def in_the_middle(rng, channels):
    """A map that is zero but for a patch whose context stays away from the borders, however it is moved here."""
    x = np.zeros((2, H, W, channels), "float32")
    x[:, 7:10, 8:12] = rng.standard_normal((2, 3, 4, channels))
    return x


def check_moved(ops, seed, down, right):
    """Without the global level, bit for bit: each token's sum runs over its own neighbourhood in its own order."""
    rng = np.random.default_rng(seed)
    context = FocalContext(C, KERNELS, init=LeCun(seed), ops=ops)
    ctx, gates = rng.standard_normal((2, H, W, C)).astype("float32"), in_the_middle(rng, len(KERNELS) + 1)
    y, _ = context.forward(ctx)
    got, _ = context.forward(moved(ctx, down, right))
    inside = (slice(None), slice(REACH + 3, H - REACH - 3), slice(REACH + 3, W - REACH - 3))
    np.testing.assert_array_equal(got[inside], moved(y, down, right)[inside])
    # With it, to rounding, where what lies on the map stays on it: the mean adds the same numbers in another order. On
    # the way back the mean spreads its gradient over the whole map, so there it holds away from the borders.
    ctx = in_the_middle(rng, C)
    y, cache = context.forward(ctx, gates)
    got, moved_cache = context.forward(moved(ctx, down, right), moved(gates, down, right))
    assert_near([got], [moved(y, down, right)], [np.maximum(abs(y).max(), 1.0)])
    dy = in_the_middle(rng, C)
    back, back_moved = context.backward(dy, cache), context.backward(moved(dy, down, right), moved_cache)
    want = [moved(d, down, right)[inside] for d in back]
    assert_near([d[inside] for d in back_moved], want, [np.maximum(abs(d).max(), 1.0) for d in back])
