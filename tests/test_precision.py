"""Numbers rounded to other formats, bit by bit; matrix products of them, within bounds that wrong ways break."""

import re
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from minifocal import SGD, FocalNet, check_layer, create_model, ops, save_checkpoint, train_step
from minifocal.arrays import as_numpy, random_generator
from minifocal.errors import InputError
from minifocal.functional.linear import LinearCache, linear_backward, linear_forward
from minifocal.functional.precision import MANTISSA_BITS, PRECISIONS, round_to, rounded_linear
from minifocal.layers.initializers import get_initializer
from minifocal.layers.linear import Linear
from minifocal.models.config import MODULATION_NAMES, FocalNetConfig
from minifocal.ops import REFERENCE, Op, get_ops, list_ops
from minifocal.training.checkpoint import load_checkpoint

ROUNDED = PRECISIONS[1:]
BITS_AND_EXPONENTS = {"tf32": (10, -126, 127), "bfloat16": (7, -126, 127), "float16": (10, -14, 15)}
EPS = float(np.finfo("float32").eps)
every_precision = pytest.mark.parametrize("precision", ROUNDED)
every_table = pytest.mark.parametrize("table", list_ops())


def unit(precision):
    """u, the largest relative error of rounding."""
    return 2.0 ** -(MANTISSA_BITS[precision] + 1)


# Rounding


def nearest(x, precision):
    """The oracle, in float64 and without bit patterns: count in units of the last bit; `rint` settles ties to even."""
    bits, lowest, highest = BITS_AND_EXPONENTS[precision]
    x = np.asarray(x).astype("float64")
    exponent = np.maximum(np.frexp(x)[1] - 1, lowest)
    one = np.ldexp(1.0, exponent - bits)
    y = np.rint(x / one) * one
    return np.where(np.abs(y) >= 2.0 ** (highest + 1), np.copysign(np.inf, x), y)


def hard_patterns(precision):
    """Every number of the format, the ties between them, and float32's next numbers on all sides; a million others."""
    if precision == "float16":
        half = np.arange(2**15 - 2**10, dtype="uint16").view("float16").astype("float32")  # 0 to 65504
        ties = np.append((half[1:] + half[:-1]) / 2, np.float32(65520))
        middle = np.concatenate([half, ties]).view("uint32")
        patterns = np.concatenate([middle, middle + 1, middle[middle > 0] - 1])
        patterns = np.concatenate([patterns, patterns | 2**31])
    else:
        dropped = 23 - MANTISSA_BITS[precision]
        low = np.array([0, 1, 2 ** (dropped - 1) - 1, 2 ** (dropped - 1), 2 ** (dropped - 1) + 1, 2**dropped - 1])
        high = np.arange(2 ** (32 - dropped)) << dropped
        patterns = (high[:, None] + low).ravel().astype("uint32")
    others = np.random.default_rng(1).integers(0, 2**32, 10**6, dtype="uint32")
    x = np.concatenate([patterns, others])
    if precision == "float16":  # a NaN that comes of computing is quiet, as bit 22 says; others are made to raise alarm
        x[np.isnan(x.view("float32"))] |= 1 << 22
    return x.view("float32")


def check_rounding(rounding, precision, x=None):
    """Assert that a function rounds all hard numbers as the oracle does; infinity, NaN and the sign of 0 included."""
    x = hard_patterns(precision) if x is None else x
    got = rounding(x)
    assert got.dtype == "float32"
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(got, nearest(x, precision))
    number = ~np.isnan(x)
    np.testing.assert_array_equal(np.signbit(got)[number], np.signbit(x)[number])
    if precision != "float16":  # which has no room for all that a NaN may carry
        np.testing.assert_array_equal(got.view("uint32")[~number], x.view("uint32")[~number])


@every_precision
def test_every_number_is_rounded_to_the_nearest(precision, xp):
    check_rounding(lambda x: as_numpy(round_to(xp.asarray(x), precision)), precision)


def test_the_oracle_knows_numpys_float16():
    x = hard_patterns("float16")
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(nearest(x, "float16"), x.astype("float16"))


@pytest.mark.parametrize(
    ("precision", "x", "y"),
    [
        ("bfloat16", 1 + 2**-8, 1.0),  # halfway: to the even one, which is below
        ("bfloat16", 1 + 3 * 2**-8, 1 + 2**-6),  # and here above
        ("bfloat16", 1 + 2**-8 + 2**-23, 1 + 2**-7),
        ("bfloat16", 3.3895313892515355e38, 3.3895313892515355e38),  # its largest number
        ("bfloat16", 3.4028234663852886e38, np.inf),  # float32's largest one
        ("bfloat16", 2.0**-134, 0.0),  # half of its smallest one
        ("tf32", 1 + 2**-11, 1.0),
        ("tf32", 1 + 2**-11 + 2**-23, 1 + 2**-10),
        ("tf32", 2 - 2**-12, 2.0),
        ("tf32", 65520.0, 65536.0),
        ("float16", 65519.0, 65504.0),
        ("float16", 65520.0, np.inf),
        ("float16", 2.0**-24, 2.0**-24),  # its smallest number
        ("float16", 2.0**-25, 0.0),
        ("float16", -(2.0**-25), -0.0),
        ("float16", 1e-3, 1.0004043579101562e-3),
    ],
)
def test_numbers_that_one_can_follow(precision, x, y):
    got = round_to(np.array([x], dtype="float32"), precision)
    assert got[0] == y
    assert np.signbit(got[0]) == np.signbit(y)


def truncated(x, precision):
    pattern = x.view("uint32") & (2**32 - 2 ** (23 - MANTISSA_BITS[precision]))
    return pattern.view("float32")


def ties_away(x, precision):
    dropped = 23 - MANTISSA_BITS[precision]
    pattern = (x.view("uint32") + (1 << (dropped - 1))) & (2**32 - 2**dropped)
    return np.where(np.isnan(x), x, pattern.view("float32"))


def twice(x, precision):
    assert precision == "bfloat16"
    return round_to(round_to(x, "tf32"), "bfloat16")


def nan_run_over(x, precision):
    dropped = 23 - MANTISSA_BITS[precision]
    pattern = x.view("uint32")
    pattern = (pattern + (1 << (dropped - 1)) - 1 + ((pattern >> dropped) & 1)) & (2**32 - 2**dropped)
    return pattern.view("float32")


def subnormals_flushed(x, precision):
    return np.where(np.abs(x) < np.finfo("float32").tiny, np.copysign(np.float32(0), x), round_to(x, precision))


@pytest.mark.parametrize("wrong", [truncated, ties_away, twice, nan_run_over, subnormals_flushed])
def test_a_wrong_rounding_is_caught(wrong):
    check_rounding(lambda x: round_to(x, "bfloat16"), "bfloat16")
    with pytest.raises(AssertionError):
        check_rounding(lambda x: wrong(x, "bfloat16"), "bfloat16")


@every_precision
def test_rounding_takes_any_layout_and_writes_into_nothing(precision):
    x = np.random.default_rng(2).standard_normal((5, 4, 3)).astype("float32")
    for view in (x, x.T, x[:, ::2], x[::-1], x[..., :0], np.broadcast_to(x[0], (2, 4, 3)), x[0, 0, 0:1].reshape(())):
        kept = view.copy()
        got = round_to(view, precision)
        np.testing.assert_array_equal(got, nearest(view, precision))
        assert not np.shares_memory(got, x)
        np.testing.assert_array_equal(view, kept)


def test_float32_is_left_as_it_is():
    x = np.array([1 + EPS, np.nan], dtype="float32")
    assert round_to(x, "float32") is x


@every_precision
def test_what_is_rounded_already_stays(precision):
    x = round_to(hard_patterns(precision), precision)
    np.testing.assert_array_equal(round_to(x, precision), x)


def test_tf32_is_float16_with_a_larger_exponent():
    x = hard_patterns("tf32")
    common = x[(np.abs(x) >= 2.0**-14) & (np.abs(x) < 65520)]
    np.testing.assert_array_equal(round_to(common, "tf32"), round_to(common, "float16"))
    assert common.size > 10**5


def test_what_cannot_be_rounded_is_refused():
    words = 'precision "tf32" rounds float32 arrays, got float64: use dtype "float32", or precision "float32"'
    with pytest.raises(InputError, match=words):
        round_to(np.ones(3), "tf32")
    for unknown in ("half", None, ["tf32"]):
        with pytest.raises(InputError, match=r"^precision must be one of float32, tf32, bfloat16, float16, got "):
            round_to(np.ones(3, "float32"), unknown)


# Matrix products


POSITIONS, IN, OUT = (3, 7), 64, 5


def operands(inputs=IN, fill=None):
    """x, weight, bias and dy: normal, or one number everywhere."""
    rng = np.random.default_rng(3)
    shapes = ((*POSITIONS, inputs), (inputs, OUT), (OUT,), (*POSITIONS, OUT))
    return [rng.standard_normal(s).astype("float32") if fill is None else np.full(s, fill, "float32") for s in shapes]


def hard_fills(precision):
    """Numbers that are rounded, cut, and rounded over tf32, as far as can be; normal ones first."""
    u = unit(precision)
    return None, 1 + u, 1 + 2 * u - EPS, 1 + u + 2.0**-11 - EPS


def go(op, x, weight, bias, dy):
    y, cache = op.forward(x, weight, bias)
    assert type(cache) is LinearCache
    assert cache.x is x
    assert cache.weight is weight
    return y, *op.backward(dy, cache)


def formula(x, weight, bias, dy):
    """y, dx, dweight and dbias in float64, each with the sum of its terms' absolute values, and their number."""
    x, weight, bias, dy = (array.astype("float64") for array in (x, weight, bias, dy))
    rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, OUT)

    def both(a, b, shape, c=0.0):
        return (a @ b + c).reshape(shape), (abs(a) @ abs(b) + abs(c)).reshape(shape), a.shape[1] + 1

    return (
        both(rows, weight, dy.shape, bias),
        both(drows, weight.T, x.shape),
        both(rows.T, drows, weight.shape),
        both(np.ones((1, len(drows))), drows, bias.shape),
    )


def check_formula(op, precision):
    """Assert that each product is that of the rounded operands, but for what float32 rounds in a sum of n: n eps.

    The products themselves are exact: each factor has half of float32's bits at most.
    """
    for inputs in (1, 4, IN):
        x, weight, bias, dy = arrays = operands(inputs)
        x_r, weight_r, dy_r = (nearest(array, precision) for array in (x, weight, dy))
        y, dx, dweight, _ = formula(x_r, weight_r, bias, dy_r)
        dbias = formula(*arrays)[3]
        for got, (want, size, terms) in zip(go(op, *arrays), (y, dx, dweight, dbias), strict=True):
            assert got.dtype == "float32"
            assert got.shape == want.shape
            assert (np.abs(got - want) <= terms * EPS * size).all()


def errors(op, precision, inputs, fill):
    """How far each result is from the product of unrounded operands, as a part of the bound."""
    arrays = operands(inputs, fill)
    u = unit(precision)
    for got, (want, size, terms) in zip(go(op, *arrays), formula(*arrays), strict=True):
        yield np.abs(got - want) / ((2 * u + u * u + terms * EPS) * size)


def check_bound(op, precision):
    for inputs, fill in product((1, 4, IN), hard_fills(precision)):
        assert all((error <= 1.0).all() for error in errors(op, precision, inputs, fill))


@every_table
@every_precision
def test_products_are_those_of_rounded_operands(precision, table):
    op = get_ops(table, precision=precision).linear
    check_formula(op, precision)
    check_bound(op, precision)


@every_precision
def test_the_bound_is_reached(precision):
    """So it is the smallest one: half of it would be too little."""
    y, dx, dweight, dbias = errors(get_ops("reference", precision=precision).linear, precision, 4, 1 + unit(precision))
    assert min(dx.max(), dweight.max()) > 0.95
    assert y.max() > 0.8 * 0.95  # one of its five terms is the bias
    assert dbias.max() < EPS / unit(precision)  # it is not rounded


def planted(linear, precision, rounding):
    """A rounded linear that rounds in another way."""
    forward, backward = linear

    def wrong_forward(x, weight, bias):
        y, _ = forward(rounding(x), rounding(weight), bias)
        return y, LinearCache(x, weight)

    def wrong_backward(dy, cache):
        dx, dweight, _ = backward(rounding(dy), LinearCache(*map(rounding, cache)))
        return dx, dweight, dy.reshape(-1, OUT).sum(axis=0)

    return Op(wrong_forward, wrong_backward)


@pytest.mark.parametrize("check", [check_formula, check_bound])
@pytest.mark.parametrize(("wrong", "precision"), [(truncated, p) for p in ROUNDED] + [(twice, "bfloat16")])
def test_products_of_wrongly_rounded_operands_are_caught(wrong, precision, check):
    check(planted(REFERENCE.linear, precision, lambda x: round_to(x, precision)), precision)
    with pytest.raises(AssertionError):
        check(planted(REFERENCE.linear, precision, lambda x: wrong(x, precision)), precision)


def result_rounded_too(op, rounding):
    return op._replace(forward=lambda *given: (lambda y, cache: (rounding(y), cache))(*op.forward(*given)))


def bias_rounded_too(op, rounding):
    return op._replace(forward=lambda x, weight, bias: op.forward(x, weight, rounding(bias)))


def nothing_rounded_forward(op, rounding):
    return op._replace(forward=linear_forward)


def nothing_rounded_back(op, rounding):
    return op._replace(backward=linear_backward)


def dbias_of_what_is_rounded(op, rounding):
    return op._replace(backward=lambda dy, cache: op.backward(rounding(dy), cache))


def rounded_cache(op, rounding):
    return op._replace(forward=lambda *given: (lambda y, c: (y, LinearCache(*map(rounding, c))))(*op.forward(*given)))


@pytest.mark.parametrize(
    "wrong",
    [
        result_rounded_too,
        bias_rounded_too,
        nothing_rounded_forward,
        nothing_rounded_back,
        dbias_of_what_is_rounded,
        rounded_cache,
    ],
)
@every_precision
def test_rounding_too_much_or_too_little_is_caught(precision, wrong):
    right = get_ops("reference", precision=precision).linear
    with pytest.raises(AssertionError):
        check_formula(wrong(right, lambda x: round_to(x, precision)), precision)


@every_table
@every_precision
def test_sums_of_few_bits_are_exact(precision, table):
    """Whole numbers below 2^24 lose nothing, in any order: the tables give the same bits."""
    rng = np.random.default_rng(4)
    x, weight, bias, dy = (rng.integers(-8, 9, array.shape).astype("float32") for array in operands())
    x += 2.0 ** -(MANTISSA_BITS[precision] + 4) * (x != 0)  # rounded away
    want = formula(np.rint(x), weight, bias, dy)
    for got, (exact, _, _) in zip(
        go(get_ops(table, precision=precision).linear, x, weight, bias, dy), want, strict=True
    ):
        np.testing.assert_array_equal(got, exact)


@every_precision
def test_a_product_on_a_device_is_that_of_the_host(precision, xp):
    op = get_ops("reference", precision=precision).linear
    arrays = operands()
    y, cache = op.forward(*map(xp.asarray, arrays[:3]))
    got = y, *op.backward(xp.asarray(arrays[3]), cache)
    for one, other, (_, size, terms) in zip(got, go(op, *arrays), formula(*arrays), strict=True):
        assert (np.abs(as_numpy(one) - other) <= 2 * terms * EPS * size).all()


def test_float16_overflows_to_infinity_without_a_warning_and_loses_small_gradients():
    forward, backward = rounded_linear(*REFERENCE.linear, "float16")
    x, weight = np.full((1, 1), 1e5, "float32"), np.full((1, 1), 0.5, "float32")
    y, cache = forward(x, weight, np.zeros(1, "float32"))
    assert y[0, 0] == np.inf
    dx, _, dbias = backward(np.full((1, 1), 2.0**-26, "float32"), cache._replace(x=weight))
    assert dx[0, 0] == 0.0  # what a scaled loss would save
    assert dbias[0] == 2.0**-26


# Tables


@every_table
@every_precision
def test_a_table_keeps_its_name_and_all_other_operations(precision, table):
    plain, rounding = get_ops(table), get_ops(table, precision=precision)
    assert rounding is get_ops(table, "cpu", precision)
    assert (rounding.name, rounding.precision, plain.precision) == (table, precision, "float32")
    assert replace(rounding, linear=plain.linear, precision="float32") == plain
    assert rounding.linear != plain.linear
    assert [way.__name__ for way in rounding.linear] == ["linear_forward", "linear_backward"]


def test_float32_is_the_table_itself():
    assert get_ops("auto", "cpu", "float32") is get_ops()
    assert get_ops("reference", precision="float32") is REFERENCE


def test_auto_rounds_where_it_computes():
    assert get_ops("auto", "cuda", "bfloat16") is get_ops("cuda", "cuda", "bfloat16")
    assert get_ops("auto", "cpu", "bfloat16").name == get_ops().name
    with pytest.raises(InputError, match='ops "numpy" computes on the CPU'):
        get_ops("numpy", "cuda", "bfloat16")


def test_a_table_may_have_a_way_of_its_own(monkeypatch):
    ways = (lambda x, weight, bias: None), (lambda dy, cache: None)
    own = {"tf32": ways}
    monkeypatch.setattr(ops, "_fused", lambda name: SimpleNamespace(linear_with=own.__getitem__))
    assert ops._rounding.__wrapped__(get_ops("numpy"), "tf32").linear == Op(*ways)
    assert ops._rounding.__wrapped__(REFERENCE, "tf32").linear.forward.__module__ == round_to.__module__


def test_an_unknown_precision_is_refused_with_the_known_ones():
    for make in (
        lambda: get_ops("numpy", precision="fp8"),
        lambda: FocalNet.build(image_size=8, patch_size=4, hidden_size=4, precision="fp8"),
    ):
        with pytest.raises(InputError, match="precision must be one of float32, tf32, bfloat16, float16, got 'fp8'"):
            make()


# Networks


NETWORKS = {
    **{name: {"modulation": name} for name in MODULATION_NAMES},
    "focal with every option": {
        "use_layerscale": True, "layerscale_value": 0.3, "use_postln": True, "use_postln_in_modulation": True,
        "normalize_modulator": True, "use_conv_embed": True, "mlp_act": "gelu_pytorch_tanh", "pad_mode": "pad",
    },
}  # fmt: skip


def network(name="focal", **options):
    config = FocalNetConfig(
        image_size=24, patch_size=2, in_chans=2, num_classes=5, embed_dim=12, depths=(1, 2), mlp_ratio=2.0,
        focal_levels=(2, 1), focal_windows=(3, 5), **NETWORKS[name],
    )  # fmt: skip
    model, rng = FocalNet(config, seed=1, init="glorot", **options), np.random.default_rng(5)
    for parameter in model.parameters():  # nothing is 0 or 1 any more
        parameter.data += rng.uniform(-0.1, 0.1, parameter.data.shape).astype(parameter.data.dtype)
    return model


def passes(model):
    """Logits, and the gradients of all parameters as one vector."""
    rng = random_generator(2)
    images, dlogits = rng.standard_normal((6, 2, 24, 24)), rng.standard_normal((6, 5))
    logits, cache = model.forward(images.astype("float32"))
    model.backward(dlogits.astype("float32"), cache)
    return logits, np.concatenate([parameter.grad.ravel() for parameter in model.parameters()])


@every_table
@every_precision
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_are_a_few_roundings_off(name, precision, table):
    """One rounding is off by u at most, half of it on average; those of many layers, in all directions, add up slowly.

    Measured on networks like these: the largest error of the logits is 0.5 to 4 u of the largest logit, the gradient
    is 0.8 to 7 u off. Without any rounding it would be nearly nothing.
    """
    logits, gradient = passes(network(name, ops=table, precision=precision))
    want, want_gradient = passes(network(name, ops="reference"))
    u = unit(precision)
    assert u / 4 < np.abs(logits - want).max() / np.abs(want).max() < 8 * u
    assert u / 4 < np.linalg.norm(gradient - want_gradient) / np.linalg.norm(want_gradient) < 16 * u
    assert logits.dtype == gradient.dtype == "float32"


def overfit(**options):
    """Losses of thirty steps on the same eight images."""
    model, rng = network(**options), random_generator(6)
    images, labels = rng.standard_normal((8, 2, 24, 24)).astype("float32"), np.arange(8) % 5
    optimizer = SGD(model, lr=0.05, momentum=0.9)
    return np.array([train_step(model, optimizer, images, labels, rng).loss for _ in range(30)])


@every_precision
def test_training_goes_the_way_of_float32(precision):
    """Measured: losses of the first ten steps differ by 0.2 to 0.5 u."""
    want, losses = overfit(), overfit(precision=precision)
    assert want[-1] < 0.02 * want[0]
    assert losses[-1] < 0.02 * losses[0]
    assert unit(precision) / 32 < np.abs(losses - want)[:10].max() < 4 * unit(precision)


def test_float32_changes_nothing():
    for one, other in zip(passes(network()), passes(network(precision="float32")), strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_way_to_build_a_network_takes_a_precision(tmp_path):
    small = {"embed_dim": 4, "depths": (1, 1), "focal_levels": (1, 1), "focal_windows": (3, 3), "num_classes": 2}
    built = FocalNet.build(image_size=8, patch_size=4, hidden_size=4, num_layers=1, precision="tf32")
    save_checkpoint(tmp_path / "a", built)
    saved = load_checkpoint(tmp_path / "a")
    for model in (
        built,
        FocalNet(FocalNetConfig(image_size=16, **small), precision="tf32"),
        FocalNet.from_checkpoint(saved, precision="tf32", ops="numpy"),
        create_model("focalnet_tiny_srf", image_size=16, precision="tf32", **small),
    ):
        assert {layer.ops.precision for layer in model.layers_inside()} == {"tf32"}
    assert FocalNet.from_checkpoint(saved).ops.precision == "float32"  # how to compute is not kept with the weights


def test_a_network_that_moves_keeps_its_precision(monkeypatch):
    monkeypatch.setattr("minifocal.layers.base.to_device", lambda array, device: array)
    monkeypatch.setattr("minifocal.models.focalnet.check_device", lambda device: None)
    monkeypatch.setattr("minifocal.models.focalnet.use_device", lambda device: None)
    chosen, named = network(ops="auto", precision="bfloat16"), network(ops="reference", precision="bfloat16")
    for device in ("cuda", "cpu"):
        for model in (chosen, named):
            model.to_device(device)
            assert {layer.ops.precision for layer in model.layers_inside()} == {"bfloat16"}
    assert chosen.ops is get_ops("auto", precision="bfloat16")


def test_a_summary_does_not_depend_on_it():
    assert str(network(precision="float16").summary()) == str(network().summary())


def test_float64_is_not_rounded():
    words = (
        'precision "tf32" is for networks in float32, got dtype "float64": use dtype "float32", or precision "float32"'
    )
    with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
        network(dtype="float64", precision="tf32")
    assert network(dtype="float64", precision="float32").dtype == "float64"


def test_gradients_cannot_be_checked_where_operands_are_rounded():
    """Of a staircase no difference is a slope; float64, which checks ask for, is refused."""
    layer = Linear(3, 4, init=get_initializer("glorot", 1, "float64"), ops=get_ops("reference", precision="bfloat16"))
    with pytest.raises(InputError, match='precision "bfloat16" rounds float32 arrays, got float64'):
        check_layer(layer, np.ones((2, 3)))
    with pytest.raises(InputError, match="gradients are checked in float64"):
        check_layer(network(precision="bfloat16"), np.ones((1, 2, 24, 24), "float32"))
