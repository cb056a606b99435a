"""Every layer: right gradients, added and never overwritten; nothing of a pass kept; names; initialisation."""

import math

import numpy as np
import pytest

from minifocal.arrays import as_numpy, device_of, random_generator
from minifocal.errors import InputError
from minifocal.gradcheck import check_layer
from minifocal.layers.base import Layer, Parameter
from minifocal.layers.depthwise_conv import DepthwiseConv
from minifocal.layers.drop_path import Dropout, DropPath
from minifocal.layers.initializers import get_initializer
from minifocal.layers.layer_norm import LayerNorm
from minifocal.layers.linear import Linear
from minifocal.layers.mlp import MLP
from minifocal.layers.patch_embed import PatchEmbed
from minifocal.models.block import FocalNetBlock, FocalNetStage
from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.models.modulation import MODULATIONS

B, H, W, C = 2, 5, 4, 3
MAP = (B, H, W, C)
DROP_SEED = 2  # drops some samples and keeps some, others in each branch


def config(**options):
    """Two stages with C = 3 and 6; two levels of 3x3 and 5x5, then one of 1x1."""
    defaults = {
        "image_size": 16, "patch_size": 2, "embed_dim": C, "depths": (2, 1), "mlp_ratio": 2.5,
        "focal_levels": (2, 1), "focal_windows": (3, 1), "num_classes": 7,
    }  # fmt: skip
    return FocalNetConfig(**{**defaults, **options})


def modulation(name="focal", **options):
    cfg = config(modulation=name, **options)
    return lambda init: MODULATIONS[name](cfg, 0, init=init)


def block(rate=0.0, **options):
    return lambda init: FocalNetBlock(config(**options), 0, rate, init=init)


def stage(index, rates, **options):
    return lambda init: FocalNetStage(config(**options), index, rates, init=init)


def embed(size, stride, **options):
    return lambda init: PatchEmbed(C, 7, size=size, stride=stride, init=init, **options)


# name: (how to build it with an initializer, shape of its input); those that drop stand below.
LAYERS = {
    "Linear": (lambda init: Linear(C, 7, init=init), MAP),
    "LayerNorm": (lambda init: LayerNorm(C, init=init, eps=0.1), MAP),
    "DepthwiseConv": (lambda init: DepthwiseConv(C, 3, init=init), MAP),
    "MLP": (lambda init: MLP(C, 8, init=init), MAP),
    "MLP tanh": (lambda init: MLP(C, 8, init=init, act="gelu_pytorch_tanh"), MAP),
    "PatchEmbed": (embed(2, 2), MAP),  # 5 rows: one is left out
    "PatchEmbed overlapping": (embed(3, 2), MAP),
    "PatchEmbed padded": (embed(3, 2, padding=1), MAP),
    "PatchEmbed padded to whole patches": (embed(3, 3, pad_to=3), MAP),
    "PatchEmbed without norm": (embed(2, 2, norm=False), MAP),
    "FocalModulation": (modulation(), MAP),
    "FocalModulation without levels": (modulation(focal_levels=(0, 1)), MAP),
    "FocalModulation normalised": (modulation(normalize_modulator=True), MAP),
    "FocalModulation with a norm": (modulation(use_postln_in_modulation=True), MAP),
    "FocalModulation of three levels": (modulation(focal_levels=(3, 1), focal_factor=4), MAP),
    "SigmoidGateModulation": (modulation("sigmoid_gate"), MAP),
    "BoxMeanModulation": (modulation("box_mean", focal_levels=(3, 1), focal_windows=(2, 1)), MAP),
    "FocalNetBlock": (block(), MAP),
    "FocalNetBlock postln": (block(use_postln=True), MAP),
    "FocalNetBlock layerscale": (block(use_layerscale=True), MAP),
    "FocalNetBlock tanh": (block(mlp_act="gelu_pytorch_tanh"), MAP),
    "FocalNetBlock with everything": (
        block(use_postln=True, use_layerscale=True, use_postln_in_modulation=True, normalize_modulator=True),
        MAP,
    ),
    "FocalNetBlock sigmoid_gate": (block(modulation="sigmoid_gate"), MAP),
    "FocalNetBlock box_mean": (block(modulation="box_mean"), MAP),
    "FocalNetStage": (stage(0, [0.0, 0.0]), MAP),
    "FocalNetStage padded": (stage(0, [0.0], pad_mode="pad"), MAP),
    "FocalNetStage overlapping": (stage(0, [0.0], use_conv_embed=True), MAP),
    "FocalNetStage last": (stage(1, [0.0]), (B, H, W, 2 * C)),
}
DROPPING = {
    "DropPath": (lambda init: DropPath(0.4), (6, H, C)),
    "Dropout": (lambda init: Dropout(0.4), MAP),
    "MLP dropout": (lambda init: MLP(C, 8, init=init, drop_rate=0.4), MAP),
    "FocalModulation dropout": (modulation(drop_rate=0.4), MAP),
    "SigmoidGateModulation dropout": (modulation("sigmoid_gate", drop_rate=0.4), MAP),
    "FocalNetBlock drop path": (block(0.4, use_layerscale=True), (6, H, W, C)),
    "FocalNetStage drop path": (stage(0, [0.2, 0.4], use_postln=True), (6, H, W, C)),
}

every_layer = pytest.mark.parametrize("name", [*LAYERS, *DROPPING])


def build(name, dtype="float64"):
    """A layer with every parameter random, so that no weight of one and no bias of zero hides a gradient."""
    factory, shape = {**LAYERS, **DROPPING}[name]
    layer = factory(get_initializer("lecun", 0, dtype))
    rng = np.random.default_rng(1)
    for parameter in layer.parameters():
        parameter.data[...] += rng.uniform(-0.5, 0.5, parameter.data.shape).astype(dtype)
    return layer, rng.standard_normal(shape).astype(dtype)


def drop_rng(name):
    return random_generator(DROP_SEED) if name in DROPPING else None


def forward(name, layer, x):
    return layer.forward(x, drop_rng(name))


def gradients(layer):
    return {name: parameter.grad.copy() for name, parameter in layer.named_parameters()}


def layers_in(layer):
    """The layer and all layers in it."""
    return [layer, *(inner for _, part in layer.children() for inner in layers_in(part))]


# Gradients


def test_the_tables_hold_every_layer():
    def kinds(layer_class):
        return {layer_class}.union(*map(kinds, layer_class.__subclasses__()))

    ours = {kind for kind in kinds(Layer) if kind.__module__.startswith(("minifocal.layers.", "minifocal.models."))}
    ours -= {kind for kind in ours if kind.__module__ == "minifocal.layers.finite"}  # these stand in front of others
    seen = {type(part) for name in [*LAYERS, *DROPPING] for part in layers_in(build(name)[0])}
    assert ours - seen == {Layer, FocalNet}


@every_layer
def test_gradients_equal_central_differences(xp, name):
    layer, x = build(name)
    device = device_of(xp.zeros(1))
    layer.to_device(device)
    drop_seed = DROP_SEED if name in DROPPING else None
    report = check_layer(layer, xp.asarray(x), drop_seed=drop_seed, directions=2, tolerance=1e-7)
    assert report.passed, str(report)
    assert [check.name for check in report.checks] == ["x", *dict(layer.named_parameters())]


# Only NumPy: CuPy's erf takes no complex numbers.
@every_layer
def test_gradients_equal_the_complex_step(name):
    layer, x = build(name)
    drop_seed = DROP_SEED if name in DROPPING else None
    elementwise = not name.startswith("FocalNetStage")
    report = check_layer(
        layer, x, drop_seed=drop_seed, method="complex", elementwise=elementwise, directions=3, tolerance=1e-12
    )
    assert report.passed, str(report)


@every_layer
def test_a_second_backward_pass_doubles_every_gradient(name):
    layer, x = build(name)
    y, cache = forward(name, layer, x)
    dy = np.random.default_rng(2).standard_normal(y.shape)
    layer.zero_grad()
    layer.backward(dy, cache)
    once = gradients(layer)
    layer.backward(dy, cache)
    for key, gradient in gradients(layer).items():
        assert np.any(once[key] != 0), key
        np.testing.assert_array_equal(gradient, 2 * once[key], err_msg=key)


def test_zero_grad_clears_every_gradient_in_place():
    layer, _ = build("FocalNetStage")
    arrays = [parameter.grad for parameter in layer.parameters()]
    for array in arrays:
        array[...] = 1.0
    layer.zero_grad()
    assert all(parameter.grad is array for parameter, array in zip(layer.parameters(), arrays, strict=True))
    assert not any(array.any() for array in arrays)


# Passes


@every_layer
def test_forward_keeps_nothing_on_the_layer(name):
    layer, x = build(name)

    def held():
        """Each attribute of each layer, by identity, and what lists hold."""
        return [
            (key, id(value), tuple(map(id, value)) if isinstance(value, list | tuple) else ())
            for part in layers_in(layer)
            for key, value in vars(part).items()
        ]

    before = held()
    y, cache = forward(name, layer, x)
    layer.backward(np.ones_like(y), cache)
    layer(x)
    assert held() == before


@every_layer
def test_forward_twice_gives_the_same_bits_and_leaves_the_input(name):
    layer, x = build(name)
    x.flags.writeable = False
    for parameter in layer.parameters():
        parameter.data.flags.writeable = False
    one, _ = forward(name, layer, x)
    two, _ = forward(name, layer, x)
    np.testing.assert_array_equal(one, two)


@every_layer
def test_backward_leaves_dy_and_the_parameters(name):
    layer, x = build(name)
    y, cache = forward(name, layer, x)
    dy = np.random.default_rng(2).standard_normal(y.shape)
    arrays = [x, dy, *(parameter.data for parameter in layer.parameters())]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False  # an attempt to write raises where it happens
    layer.backward(dy, cache)
    for array, kept in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, kept)


@every_layer
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_layer_holds_two_passes_at_once(name, order):
    layer, x = build(name)
    rng = np.random.default_rng(4)
    xs = [x, rng.standard_normal(x.shape)]
    dys = [rng.standard_normal(layer(x).shape) for _ in xs]
    alone, total = [], {key: 0.0 for key, _ in layer.named_parameters()}
    for one, dy in zip(xs, dys, strict=True):
        layer.zero_grad()
        alone.append(layer.backward(dy, forward(name, layer, one)[1]))
        total = {key: total[key] + gradient for key, gradient in gradients(layer).items()}
    layer.zero_grad()
    caches = [forward(name, layer, one)[1] for one in xs]
    for which in order:
        np.testing.assert_array_equal(layer.backward(dys[which], caches[which]), alone[which])
    for key, gradient in gradients(layer).items():
        np.testing.assert_array_equal(gradient, total[key], err_msg=key)


@every_layer
def test_calling_a_layer_infers_what_forward_gives_without_an_rng(name):
    layer, x = build(name)
    np.testing.assert_array_equal(layer(x), layer.forward(x)[0])


@every_layer
def test_a_float32_layer_stays_float32(name):
    layer, x = build(name, "float32")
    y, cache = forward(name, layer, x)
    dx = layer.backward(np.ones_like(y), cache)
    assert {array.dtype for array in (y, dx, *gradients(layer).values())} == {np.dtype("float32")}
    exact, _ = build(name)
    for parameter, other in zip(exact.parameters(), layer.parameters(), strict=True):
        parameter.data[...] = other.data
    want, _ = forward(name, exact, x.astype("float64"))
    # Rounding grows through norms and products; 1e4 roundings is still far below any wrong constant.
    np.testing.assert_allclose(y, want, rtol=0, atol=1e4 * np.finfo(np.float32).eps * np.abs(want).max())


# Dropping


@pytest.mark.parametrize("rate", [0.4, 0.0])
def test_a_block_draws_one_number_a_sample_for_each_branch_and_none_at_rate_0(rate):
    layer = block(rate)(get_initializer("lecun", 0, "float64"))
    rng, same = random_generator(5), random_generator(5)
    layer.forward(np.ones((6, H, W, C)), rng)
    if rate:
        same.random(6)
        same.random(6)
    assert rng.bit_generator.state == same.bit_generator.state


def test_a_block_drops_its_modulation_by_the_first_draws_and_its_mlp_by_the_second():
    layer, x = build("FocalNetBlock drop path")
    y, _ = layer.forward(x, random_generator(DROP_SEED))
    same = random_generator(DROP_SEED)
    first, second = (np.where(same.random(6) < 0.6, 1 / 0.6, 0.0)[:, None, None, None] for _ in range(2))
    assert not np.array_equal(first, second)
    middle = x + first * layer.gamma_1.data * layer.modulation(layer.norm1(x))
    want = middle + second * layer.gamma_2.data * layer.mlp(layer.norm2(middle))
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-14 * np.abs(want).max())


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, math.nan])
@pytest.mark.parametrize("kind", [DropPath, Dropout])
def test_a_drop_rate_outside_its_range_is_refused(kind, rate):
    with pytest.raises(InputError, match=r"a drop rate must lie in \[0, 1\), got"):
        kind(rate)


# What the formulas say: how the parts stand together


def test_block_and_postln_block_are_their_formulas():
    layer, x = build("FocalNetBlock layerscale")
    middle = x + layer.gamma_1.data * layer.modulation(layer.norm1(x))
    want = middle + layer.gamma_2.data * layer.mlp(layer.norm2(middle))
    np.testing.assert_allclose(layer(x), want, rtol=0, atol=1e-14 * np.abs(want).max())
    layer, x = build("FocalNetBlock with everything")
    middle = x + layer.gamma_1.data * layer.norm1(layer.modulation(x))
    want = middle + layer.gamma_2.data * layer.norm2(layer.mlp(middle))
    np.testing.assert_allclose(layer(x), want, rtol=0, atol=1e-14 * np.abs(want).max())


def test_mlp_uses_the_gelu_that_it_is_told():
    exact, x = build("MLP")
    tanh, _ = build("MLP tanh")
    difference = np.abs(exact(x) - tanh(x)).max()
    assert 1e-6 < difference < 0.1  # two functions, up to 5e-4 apart, times weights


def test_downsampling_gives_the_sizes_of_the_published_networks():
    sizes = {
        name: build(name)[0](np.ones(MAP)).shape
        for name in ("FocalNetStage", "FocalNetStage padded", "FocalNetStage overlapping")
    }
    assert sizes == {
        "FocalNetStage": (B, 2, 2, 2 * C),  # 5 rows: the last is left out
        "FocalNetStage padded": (B, 3, 2, 2 * C),  # 5 rows: one of zeros is added
        "FocalNetStage overlapping": (B, 3, 2, 2 * C),
    }


def test_padding_to_whole_patches_adds_zeros_below_and_at_the_right():
    layer, x = build("PatchEmbed padded to whole patches")  # of 3 x 3, for a map of 5 x 4
    y = layer(x)
    assert y.shape == (B, 2, 2, 7)
    np.testing.assert_array_equal(y, layer(np.pad(x, ((0, 0), (0, 1), (0, 2), (0, 0)))))


# Names and weights


def test_parameters_are_named_as_published_in_the_order_of_the_block():
    layer, _ = build("FocalNetBlock with everything")
    parts = [
        "norm1", "modulation.f", "modulation.focal_layers.0.0", "modulation.focal_layers.1.0", "modulation.h",
        "modulation.ln", "modulation.proj", "gamma_1", "norm2", "mlp.fc1", "mlp.fc2", "gamma_2",
    ]  # fmt: skip
    want = []
    for part in parts:
        kinds = [""] if "gamma" in part else [".weight"] if "focal_layers" in part else [".weight", ".bias"]
        want += [part + kind for kind in kinds]
    assert [name for name, _ in layer.named_parameters()] == want
    assert list(layer.state_dict()) == want


def test_stages_number_their_blocks_and_inline_parts_have_no_name_of_their_own():
    layer, _ = build("FocalNetStage")
    names = [name for name, _ in layer.named_parameters()]
    assert names[0] == "blocks.0.norm1.weight"
    assert "blocks.1.modulation.focal_layers.1.0.weight" in names
    assert names[-4:] == [
        "downsample.proj.weight",
        "downsample.proj.bias",
        "downsample.norm.weight",
        "downsample.norm.bias",
    ]
    box = [name for name, _ in build("BoxMeanModulation")[0].named_parameters()]
    assert [name for name in box if name.endswith("weight")] == [
        "query.weight", "levels.0.weight", "levels.1.weight", "levels.2.weight", "gate.weight", "proj.weight",
    ]  # fmt: skip
    gate = [name for name, _ in build("SigmoidGateModulation")[0].named_parameters()]
    assert [name for name in gate if name.endswith("weight")] == [
        "query.weight", "context.weight", "focal_layers.0.0.weight", "focal_layers.1.0.weight", "gate.weight",
        "proj.weight",
    ]  # fmt: skip


def test_parameters_are_counted():
    layer, _ = build("MLP")
    assert layer.count_parameters() == C * 8 + 8 + 8 * C + C


def test_load_state_dict_copies_every_value():
    source, x = build("FocalNetBlock")
    target = LAYERS["FocalNetBlock"][0](get_initializer("zeros", 0, "float64"))
    own = target.state_dict()
    target.load_state_dict(source.state_dict())
    for key, array in target.state_dict().items():
        assert array is own[key], "the parameter's array is written into, not replaced"
        assert array is not source.state_dict()[key]
    np.testing.assert_array_equal(target(x), source(x))


def test_load_state_dict_changes_nothing_unless_everything_fits():
    layer, _ = build("MLP")
    before = {key: array.copy() for key, array in layer.state_dict().items()}
    state = {key: array + 1.0 for key, array in before.items()}
    state["fc1.weight"] = np.ones((8, C))  # the transpose
    state["fc2.weight"] = np.ones((8, C), dtype="float32")
    state["fc3.weight"] = state.pop("fc2.bias")
    with pytest.raises(InputError) as failure:
        layer.load_state_dict(state)
    assert str(failure.value) == (
        "these weights are of another network: fc1.weight is (3, 8) float64 here and (8, 3) float64 there; "
        "fc2.weight is (8, 3) float64 here and (8, 3) float32 there; missing fc2.bias; unknown fc3.weight"
    )
    for key, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


def test_a_long_list_of_misfits_is_cut_short():
    layer, _ = build("FocalNetStage")
    count = len(layer.state_dict())
    with pytest.raises(InputError, match=rf"and {count - 6} more$"):
        layer.load_state_dict({})


def test_a_parameter_starts_with_a_zero_gradient_of_its_own_type():
    for dtype in ("float32", "float64"):
        parameter = Parameter(np.ones((2, 3), dtype=dtype))
        assert parameter.grad.dtype == dtype
        assert parameter.grad.shape == (2, 3)
        assert not parameter.grad.any()


def test_a_layer_moves_whole(xp):
    layer, x = build("FocalNetBlock")
    want = layer(x)
    device = device_of(xp.zeros(1))
    layer.to_device(device)
    assert {device_of(array) for p in layer.parameters() for array in (p.data, p.grad)} == {device}
    got = layer(xp.asarray(x))
    np.testing.assert_allclose(as_numpy(got), want, rtol=0, atol=1e-13 * np.abs(want).max())


# Initialisation

NORMAL, UNIFORM = 3.0, 1.8  # fourth moment by squared variance
SHAPES = {
    "linear": lambda init: Linear(40, 130, init=init),
    "conv": lambda init: PatchEmbed(3, 130, size=4, stride=4, init=init).proj,  # fan in 48
    "depthwise": lambda init: DepthwiseConv(500, 3, init=init),  # both fans 9
    "head": lambda init: Linear(40, 130, init=init, kind="head"),
}
RECIPES = [  # recipe, layer, its weight's distribution and standard deviation
    ("official", "linear", NORMAL, 0.02),
    ("official", "conv", UNIFORM, 1 / math.sqrt(3 * 48)),
    ("official", "depthwise", UNIFORM, 1 / math.sqrt(3 * 9)),
    ("official", "head", NORMAL, 0.02),
    ("glorot", "linear", UNIFORM, math.sqrt(2 / (40 + 130))),
    ("glorot", "conv", UNIFORM, math.sqrt(2 / (48 + 130))),
    ("glorot", "depthwise", UNIFORM, math.sqrt(2 / (9 + 9))),
    ("glorot", "head", UNIFORM, math.sqrt(2 / (40 + 130))),
    ("lecun", "linear", NORMAL, 1 / math.sqrt(40)),
    ("lecun", "conv", NORMAL, 1 / math.sqrt(48)),
    ("lecun", "depthwise", NORMAL, 1 / math.sqrt(9)),
]


def assert_drawn(values, kurtosis, std):
    """Five standard errors of each estimate: one good initialiser in a million fails, and the seed is fixed."""
    n, values = values.size, values.astype("float64")
    assert abs(values.mean()) < 5 * std / math.sqrt(n)
    assert abs(values.std() / std - 1) < 5 * math.sqrt((kurtosis - 1) / (4 * n))
    if kurtosis == UNIFORM:
        assert 0.95 * math.sqrt(3) * std < np.abs(values).max() <= math.sqrt(3) * std * (1 + 1e-6)
    else:
        assert np.abs(values).max() > 3 * std


@pytest.mark.parametrize(("recipe", "kind", "kurtosis", "std"), RECIPES)
def test_weights_are_drawn_as_the_recipe_says(recipe, kind, kurtosis, std):
    assert_drawn(SHAPES[kind](get_initializer(recipe, 6, "float32")).weight.data, kurtosis, std)


@pytest.mark.parametrize(("recipe", "kind"), [("lecun", "head"), *(("zeros", kind) for kind in SHAPES)])
def test_weights_that_start_at_zero(recipe, kind):
    assert not SHAPES[kind](get_initializer(recipe, 6, "float32")).weight.data.any()


def test_only_the_official_convolutions_draw_their_biases():
    biases = {
        (recipe, kind): SHAPES[kind](get_initializer(recipe, 6, "float32")).bias.data
        for recipe in ("official", "glorot", "lecun", "zeros")
        for kind in ("linear", "conv", "head")
    }
    assert [key for key, bias in biases.items() if bias.any()] == [("official", "conv")]
    assert_drawn(biases["official", "conv"], UNIFORM, 1 / math.sqrt(3 * 48))


def test_norms_start_as_the_identity_and_layer_scale_at_its_value():
    layer = block(use_layerscale=True, layerscale_value=0.25)(get_initializer("official", 0, "float64"))
    assert (layer.norm1.weight.data == 1).all()
    assert (layer.norm1.bias.data == 0).all()
    assert (layer.gamma_1.data == 0.25).all()
    assert (layer.gamma_2.data == 0.25).all()


@pytest.mark.parametrize("recipe", ["official", "glorot", "lecun"])
def test_a_seed_repeats_its_bits_and_float32_rounds_the_draws_of_float64(recipe):
    def weights(seed, dtype):
        return LAYERS["FocalNetBlock"][0](get_initializer(recipe, seed, dtype)).state_dict()

    exact, again, rounded, other = (
        weights(7, "float64"),
        weights(7, "float64"),
        weights(7, "float32"),
        weights(8, "float64"),
    )
    for key, values in exact.items():
        np.testing.assert_array_equal(values, again[key])
        assert rounded[key].dtype == np.float32
        np.testing.assert_array_equal(values.astype("float32"), rounded[key])
    assert not np.array_equal(exact["mlp.fc1.weight"], other["mlp.fc1.weight"])
    assert not np.array_equal(exact["mlp.fc1.weight"].ravel(), exact["mlp.fc2.weight"].ravel())


def test_an_unknown_recipe_is_refused():
    with pytest.raises(InputError, match="init must be one of official, glorot, lecun, zeros, got 'xavier'"):
        get_initializer("xavier", 0, "float32")
