"""FocalNet as a whole: what it gives, that its gradients are right, how it starts and what it keeps."""

import gc
import math
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from minifocal import FocalNet, FocalNetConfig, InputError, check_layer
from minifocal.arrays import random_generator
from minifocal.layers.layer_norm import LayerNorm
from minifocal.models.complexity import multiply_adds
from minifocal.models.config import MODULATION_NAMES
from minifocal.models.focalnet import drop_path_rates
from minifocal.models.summary import summarize

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}

TWO_STAGES = {
    "image_size": (24, 16),
    "in_chans": 2,
    "num_classes": 5,
    "embed_dim": 6,
    "depths": (1, 2),
    "mlp_ratio": 2.0,
    "focal_levels": (2, 1),
    "focal_windows": (3, 5),
}


def small_model(modulation="focal", dtype="float64", seed=0, init="lecun", ops="auto", **overrides):
    config = FocalNetConfig(**{**TWO_STAGES, "modulation": modulation, **overrides})
    return FocalNet(config, seed=seed, dtype=dtype, init=init, ops=ops)


def shaken(model, seed=1):
    """The model with noise on every parameter, so that no one or zero hides a mistake."""
    rng = random_generator(seed)
    for parameter in model.parameters():
        parameter.data += (0.3 * rng.standard_normal(parameter.data.shape)).astype(parameter.data.dtype)
    return model


def random_images(shape, seed=2, dtype="float64"):
    return random_generator(seed).standard_normal(shape).astype(dtype)


def gradients(model):
    return {name: parameter.grad.copy() for name, parameter in model.named_parameters()}


# The seed's network


def test_the_seeds_defaults_turn_images_into_features():
    model = FocalNet.build()
    images = random_images((2, 3, 224, 224), dtype="float32")
    features, cache = model.forward(images)
    assert features.shape == (2, 256)
    assert features.dtype == np.float32
    assert [m.shape for m in cache.stage_maps] == [(2, 14, 14, 256)]
    assert len(model.layers[0].blocks) == 4
    assert model.config.kernel_sizes(0) == (3, 5, 7)
    assert model.config.modulation == "sigmoid_gate"
    assert not any(name.startswith("patch_embed.norm") for name, _ in model.named_parameters())


def test_the_seeds_example_turns_images_into_logits():
    options = {
        "image_size": 224,
        "patch_size": 16,
        "hidden_size": 256,
        "num_layers": 4,
        "focal_levels": 3,
        "num_classes": 1000,
    }
    model = FocalNet.build(**options)
    assert model(random_images((2, 3, 224, 224), dtype="float32")).shape == (2, 1000)
    assert FocalNet.output_size(**options) == 1000
    assert FocalNet.feature_size(**options) == 256


def test_output_size_is_the_number_of_classes_where_given_and_hidden_size_elsewhere():
    assert FocalNet.output_size() == 256
    assert FocalNet.output_size(num_classes=None, hidden_size=48) == 48
    assert FocalNet.output_size(num_classes=0, hidden_size=48) == 48
    assert FocalNet.output_size(num_classes=7, hidden_size=48) == 7
    assert FocalNet.feature_size() == 256
    assert FocalNet.feature_size(num_classes=7, hidden_size=48) == 48


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_a_backbone_is_the_network_without_its_classifier(modulation):
    options = {"image_size": 12, "patch_size": 4, "hidden_size": 10, "num_layers": 2, "modulation": modulation}
    model = FocalNet.build(num_classes=7, seed=3, **options)
    backbone = FocalNet.build_backbone(num_classes=7, seed=3, **options)
    images = random_images((3, 3, 12, 12), dtype="float32")
    assert backbone(images).shape == (3, FocalNet.feature_size(num_classes=7, **options))
    np.testing.assert_array_equal(model.head(backbone(images)), model(images))


def test_build_passes_every_option_on():
    model = FocalNet.build(
        image_size=20,
        patch_size=5,
        in_channels=2,
        hidden_size=6,
        num_layers=3,
        focal_levels=2,
        focal_kernel=5,
        num_classes=7,
        modulation="focal",
        mlp_ratio=1.5,
        drop_path_rate=0.25,
        init="lecun",
        seed=4,
        dtype="float64",
        ops="reference",
    )
    assert model.config == FocalNetConfig(
        image_size=20,
        patch_size=5,
        in_chans=2,
        embed_dim=6,
        depths=(3,),
        focal_levels=(2,),
        focal_windows=(5,),
        num_classes=7,
        modulation="focal",
        mlp_ratio=1.5,
        drop_path_rate=0.25,
        patch_norm=False,
    )
    assert model.ops.name == "reference"
    same = FocalNet(model.config, init="lecun", seed=4, dtype="float64").state_dict()
    assert all((same[name] == value).all() for name, value in model.state_dict().items())


# Any small network


@st.composite
def small_networks(draw, modulations):
    """The configuration of a small network of any kind, and the shape of images, of an odd size, that it can take."""
    modulation = draw(st.sampled_from(modulations))
    focal = modulation == "focal"
    stages = draw(st.integers(1, 2))
    conv = draw(st.booleans())
    pad_mode = draw(st.sampled_from(["floor", "pad"]))
    patch = 4 if conv else draw(st.integers(1, 3))
    divisible = not (focal or conv or pad_mode == "pad")
    rows, columns = draw(st.sampled_from([(2, 3), (3, 4), (5, 2)]))
    H = rows * patch + (0 if divisible else draw(st.integers(0, patch - 1)))
    W = columns * patch + (0 if divisible else draw(st.integers(0, patch - 1)))
    per_stage = {"min_size": stages, "max_size": stages}
    config = FocalNetConfig(
        image_size=(patch * 4, patch * 4),
        patch_size=patch,
        in_chans=draw(st.integers(1, 3)),
        num_classes=draw(st.sampled_from([0, 5])),
        embed_dim=draw(st.integers(4, 6)),
        depths=draw(st.sampled_from([(1,), (2,)] if stages == 1 else [(1, 1), (1, 2)])),
        mlp_ratio=draw(st.sampled_from([1.0, 1.5])),
        mlp_act=draw(st.sampled_from(["gelu", "gelu_pytorch_tanh"])),
        drop_rate=draw(st.sampled_from([0.0, 0.2])),
        drop_path_rate=draw(st.sampled_from([0.0, 0.4])),
        patch_norm=draw(st.booleans()),
        focal_levels=draw(st.lists(st.integers(0 if focal else 1, 3), **per_stage)),
        focal_windows=draw(st.lists(st.sampled_from([1, 3, 5]), **per_stage)),
        focal_factor=draw(st.sampled_from([0, 2])),
        use_conv_embed=conv,
        use_layerscale=draw(st.booleans()),
        use_postln=draw(st.booleans()),
        use_postln_in_modulation=focal and draw(st.booleans()),
        normalize_modulator=focal and draw(st.booleans()),
        ln_eps=draw(st.sampled_from([1e-5, 1e-2])),
        pad_mode=pad_mode,
        modulation=modulation,
    )
    return config, (2, config.in_chans, H, W)


def network_and_images(case, seed):
    config, shape = case
    return shaken(FocalNet(config, seed=seed, dtype="float64", init="lecun"), seed + 1), random_images(shape, seed + 2)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(small_networks(MODULATION_NAMES), st.integers(0, 99))
def test_inference_is_the_forward_pass_bit_for_bit(case, seed):
    model, images = network_and_images(case, seed)
    logits, cache = model.forward(images)
    assert logits.shape == (2, model.config.num_classes or model.config.dims[-1])
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(model(images), logits)
    pooled = model.forward_features(images).mean(axis=(1, 2))
    np.testing.assert_array_equal(pooled if model.head is None else model.head(pooled), logits)
    assert cache.stage_maps[-1].shape == model.forward_features(images).shape


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_every_gradient_of_any_network_is_right(modulation):
    @settings(deadline=None, derandomize=True, max_examples=15)
    @given(small_networks([modulation]), st.integers(0, 99))
    def check(case, seed):
        model, images = network_and_images(case, seed)
        report = check_layer(model, images, rng=random_generator(seed), drop_seed=seed, tolerance=1e-7)
        assert report.passed, report

    check()


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_every_single_gradient_element_of_a_small_network_is_right(modulation):
    model = shaken(
        FocalNet.build(
            image_size=6,
            patch_size=2,
            in_channels=1,
            hidden_size=4,
            num_layers=1,
            focal_levels=2,
            num_classes=3,
            mlp_ratio=1.5,
            modulation=modulation,
            dtype="float64",
        )
    )
    report = check_layer(model, random_images((2, 1, 4, 6)), elementwise=True)
    assert report.passed, report


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_gradients_with_dropout_and_drop_path_are_right(modulation):
    model = shaken(small_model(modulation, drop_rate=0.3, drop_path_rate=0.4))
    images = random_images((3, 2, 24, 16))
    report = check_layer(model, images, drop_seed=5)
    assert report.passed, report
    trained, _ = model.forward(images, random_generator(5))
    assert not np.allclose(trained, model(images))  # something was dropped


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_the_order_of_a_batch_is_the_order_of_its_results(modulation):
    """A dot product may add in another order at another row of a matrix, hence a tolerance."""
    model = shaken(small_model(modulation))
    images, order = random_images((4, 2, 24, 16)), np.array([2, 0, 3, 1])
    dlogits = random_images((4, 5), seed=3)
    logits, cache = model.forward(images)
    dimages = model.backward(dlogits, cache)
    permuted_logits, cache = model.forward(images[order])
    permuted_dimages = model.backward(dlogits[order], cache)
    np.testing.assert_allclose(permuted_logits, logits[order], rtol=0, atol=1e4 * EPS["float64"] * abs(logits).max())
    np.testing.assert_allclose(permuted_dimages, dimages[order], rtol=0, atol=1e4 * EPS["float64"] * abs(dimages).max())


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_an_image_is_classified_the_same_alone_and_in_a_batch(modulation):
    model = shaken(small_model(modulation))
    images = random_images((3, 2, 24, 16))
    alone = np.concatenate([model(image[None]) for image in images])
    np.testing.assert_allclose(alone, model(images), rtol=0, atol=1e4 * EPS["float64"] * abs(alone).max())


# Options that reach every block


def layers_of(layer):
    """A layer and all that it holds, parts of lists included."""
    yield layer
    for _, child in layer.children():
        yield from layers_of(child)


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_every_norm_takes_the_eps_of_the_configuration(modulation):
    model = small_model(modulation, ln_eps=0.02, use_postln_in_modulation=modulation == "focal")
    norms = [layer for layer in layers_of(model) if isinstance(layer, LayerNorm)]
    assert len(norms) == 3 + 3 * (3 if modulation == "focal" else 2)  # stem, downsampling, last; those of three blocks
    assert all(norm.eps == 0.02 for norm in norms)


@pytest.mark.parametrize(
    ("mlp_act", "gelu"),
    [
        ("gelu", lambda x: x * (1 + erf(x / math.sqrt(2))) / 2),
        ("gelu_pytorch_tanh", lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2),
    ],
)
def test_mlp_act_names_the_gelu_of_every_mlp_and_of_nothing_else(mlp_act, gelu):
    model = shaken(small_model(mlp_act=mlp_act))
    exact = shaken(small_model(mlp_act="gelu"))
    for (block, same), width in zip(blocks_of(model, exact), (6, 12, 12), strict=True):
        x = random_images((2, 3, 4, width))
        hidden = x @ block.mlp.fc1.weight.data + block.mlp.fc1.bias.data
        expected = gelu(hidden) @ block.mlp.fc2.weight.data + block.mlp.fc2.bias.data
        np.testing.assert_allclose(block.mlp(x), expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(block.modulation(x), same.modulation(x))


def blocks_of(*models):
    """The blocks of like networks, side by side."""
    return list(zip(*([block for stage in model.layers for block in stage.blocks] for model in models), strict=True))


# Sizes that patches do not divide: maps of three stages, (plain, overlapping) by (official, Hugging Face)

MAP_SIZES = [
    ("plain", 28, (7, 3, 1), (7, 4, 2)),
    ("plain", 29, (7, 3, 1), (8, 4, 2)),
    ("plain", 30, (7, 3, 1), (8, 4, 2)),
    ("plain", 31, (7, 3, 1), (8, 4, 2)),
    ("plain", 32, (8, 4, 2), (8, 4, 2)),
    ("plain", 33, (8, 4, 2), (9, 5, 3)),
    ("plain", 36, (9, 4, 2), (9, 5, 3)),
    ("plain", 44, (11, 5, 2), (11, 6, 3)),
    ("overlapping", 28, (7, 4, 2), (7, 4, 2)),
    ("overlapping", 29, (7, 4, 2), (8, 4, 2)),
    ("overlapping", 30, (7, 4, 2), (8, 4, 2)),
    ("overlapping", 31, (8, 4, 2), (8, 4, 2)),
    ("overlapping", 32, (8, 4, 2), (8, 4, 2)),
    ("overlapping", 33, (8, 4, 2), (9, 5, 3)),
    ("overlapping", 36, (9, 5, 3), (9, 5, 3)),
    ("overlapping", 44, (11, 6, 3), (11, 6, 3)),
]
THREE_STAGES = {"depths": (1, 1, 1), "focal_levels": (1, 1, 1), "focal_windows": (3, 3, 3), "embed_dim": 4}


def map_sizes(H, W, **options):
    model = small_model(**{**THREE_STAGES, "image_size": 64, **options})
    _, cache = model.forward(random_images((1, 2, H, W)))
    return [m.shape[1:] for m in cache.stage_maps]


@pytest.mark.parametrize("pad_mode", ["floor", "pad"])
@pytest.mark.parametrize(("embed", "size", "official", "hugging_face"), MAP_SIZES)
def test_map_sizes_are_those_of_the_references(embed, size, official, hugging_face, pad_mode):
    """Height and width differ: the width is always 32."""
    sizes = map_sizes(size, 32, use_conv_embed=embed == "overlapping", pad_mode=pad_mode)
    heights = hugging_face if pad_mode == "pad" else official
    assert sizes == [(heights[0], 8, 4), (heights[1], 4, 8), (heights[2], 2, 16)]


def test_map_sizes_with_overlapping_patches_where_patch_size_is_not_used():
    """The stem's stride is 4 whatever patch_size says; Hugging Face pads to a multiple of patch_size all the same."""
    options = {"use_conv_embed": True, "patch_size": 16}
    assert map_sizes(64, 40, **options) == [(16, 10, 4), (8, 5, 8), (4, 3, 16)]
    assert map_sizes(64, 40, **options, pad_mode="pad") == [(16, 12, 4), (8, 6, 8), (4, 3, 16)]


def test_a_map_of_one_token_cannot_be_halved():
    with pytest.raises(InputError, match="smaller than one 2 x 2 patch"):
        map_sizes(4, 32)


def test_a_map_of_one_token_can_be_padded_and_then_halved():
    assert map_sizes(4, 32, pad_mode="pad") == [(1, 8, 4), (1, 4, 8), (1, 2, 16)]


def test_a_map_of_one_token_can_be_halved_by_overlapping_patches():
    assert map_sizes(4, 32, use_conv_embed=True) == [(1, 8, 4), (1, 4, 8), (1, 2, 16)]


# Drop path


def test_drop_path_rates_are_those_that_the_references_print():
    """A float32 linspace read as Python floats: timm's own numbers for 2 + 3 blocks."""
    config = FocalNetConfig(depths=(2, 3), focal_levels=(2, 2), focal_windows=(3, 3), drop_path_rate=0.6)
    first = [0.0, 0.15000000596046448]
    second = [0.30000001192092896, 0.45000001788139343, 0.6000000238418579]
    assert drop_path_rates(config) == [first, second]
    model = FocalNet(config, init="zeros")
    assert [[block.drop_path.rate for block in stage.blocks] for stage in model.layers] == [first, second]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5])
def test_drop_path_rates_grow_evenly_from_zero(rate):
    rates = [p for stage in drop_path_rates(FocalNetConfig(drop_path_rate=rate)) for p in stage]
    assert rates[0] == 0.0
    assert rates[-1] == float(np.float32(rate))
    np.testing.assert_allclose(rates, np.linspace(0.0, rate, 12), rtol=2 * EPS["float32"], atol=0)


def test_the_only_block_is_never_dropped():
    config = FocalNetConfig(depths=(1,), focal_levels=(2,), focal_windows=(3,), drop_path_rate=0.5)
    assert drop_path_rates(config) == [[0.0]]


class RecordingGenerator:
    """Draws what it is told to, and remembers for how many."""

    def __init__(self, draw):
        self.draw, self.shapes = draw, []

    def random(self, shape):
        self.shapes.append(shape)
        return np.full(shape, self.draw)


def test_drop_path_draws_once_a_sample_and_branch_but_not_for_a_rate_of_zero():
    rng = RecordingGenerator(draw=0.0)
    small_model(drop_path_rate=0.5).forward(random_images((3, 2, 24, 16)), rng)
    assert rng.shapes == [(3,)] * 4  # two branches of the second and of the third block


def test_a_dropped_branch_leaves_its_input_as_it_is():
    model = shaken(small_model(drop_path_rate=0.5, depths=(1, 1)))
    images = random_images((3, 2, 24, 16))
    _, cache = model.forward(images, RecordingGenerator(draw=0.999))
    into_last_stage = model.layers[0].downsample(cache.stage_maps[0])
    np.testing.assert_array_equal(cache.stage_maps[1], into_last_stage)


# What is refused


def message_for(images, model=None):
    model = model or small_model()
    messages = []
    for run in (model.forward, model, model.forward_features):
        with pytest.raises(InputError) as error:
            run(images)
        messages.append(str(error.value))
    assert messages[0] == messages[1] == messages[2]
    assert "\n" not in messages[0]
    return messages[0]


def test_a_single_image_is_refused_with_the_way_to_make_it_a_batch():
    message = message_for(np.zeros((2, 24, 16)))
    assert "(2, 24, 16)" in message
    assert "images[None]" in message


def test_channels_last_images_are_refused_with_the_way_to_turn_them():
    images = np.zeros((4, 24, 16, 2))
    message = message_for(images)
    assert "2 channels in axis 1" in message
    assert "(4, 24, 16, 2)" in message
    assert "images.transpose(0, 3, 1, 2)" in message
    assert small_model()(images.transpose(0, 3, 1, 2)).shape == (4, 5)


def test_images_of_other_channels_are_refused():
    assert "2 channels" in message_for(np.zeros((4, 3, 24, 16)))


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "float16", "float32", "complex128"])
def test_images_of_another_dtype_are_refused_with_the_way_to_convert_them(dtype):
    message = message_for(np.zeros((4, 2, 24, 16), dtype=dtype))
    assert "must be float64" in message
    assert f"got {dtype}" in message
    assert '.astype("float64")' in message


def test_float64_images_are_refused_by_a_float32_network():
    message = message_for(np.zeros((4, 2, 24, 16)), small_model(dtype="float32"))
    assert '.astype("float32")' in message


@pytest.mark.parametrize("shape", [(0, 2, 24, 16), (4, 2, 0, 16), (4, 2, 24, 0)])
def test_an_empty_batch_is_refused(shape):
    message = message_for(np.zeros(shape))
    assert "empty" in message
    assert str(shape) in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_is_refused_by_its_number(value):
    images = np.zeros((4, 2, 24, 16))
    images[2, 1, 7, 5] = value
    assert "image 2 " in message_for(images)


def test_a_list_is_no_array():
    with pytest.raises(TypeError, match=r"got list; wrap it with numpy\.asarray"):
        small_model()([[[[0.0]]]])


# What the cache shows


def test_the_cache_shows_maps_gates_and_modulators_of_the_published_network():
    _, cache = small_model("focal").forward(random_images((3, 2, 24, 16)))
    assert [m.shape for m in cache.stage_maps] == [(3, 6, 4, 6), (3, 3, 2, 12)]
    assert [[g.shape for g in stage] for stage in cache.gates] == [[(3, 6, 4, 3)], [(3, 3, 2, 2)] * 2]
    assert [[m.shape for m in stage] for stage in cache.modulators] == [[(3, 6, 4, 6)], [(3, 3, 2, 12)] * 2]


@pytest.mark.parametrize("modulation", ["sigmoid_gate", "box_mean"])
def test_gates_times_context_is_the_modulator_of_the_seeds_networks(modulation):
    _, cache = shaken(small_model(modulation)).forward(random_images((3, 2, 24, 16)))
    assert [[g.shape for g in stage] for stage in cache.gates] == [[(3, 6, 4, 6)], [(3, 3, 2, 12)] * 2]
    for stage, gates, modulators in zip(cache.layers, cache.gates, cache.modulators, strict=True):
        for block, gate, modulator in zip(stage.blocks, gates, modulators, strict=True):
            assert ((gate > 0) & (gate < 1)).all()
            np.testing.assert_array_equal(gate * block.modulation.ctx, modulator)


def test_the_modulator_of_the_published_network_is_h_of_the_gated_sum():
    model = shaken(small_model("focal", normalize_modulator=True))
    _, cache = model.forward(random_images((3, 2, 24, 16)))
    seen, modulation = cache.layers[0].blocks[0].modulation, model.layers[0].blocks[0].modulation
    gates = np.split(seen.gates, 3, axis=-1)
    levels = [level.ctx for level in seen.context.levels] + [seen.context.global_level.ctx_global]
    aggregate = sum(gate * ctx for gate, ctx in zip(gates, levels, strict=True)) / 3
    np.testing.assert_allclose(modulation.h(aggregate), seen.modulator, rtol=1e-12, atol=1e-12)


# Determinism, dtype, gradients that add up


@pytest.mark.parametrize("init", ["official", "glorot", "lecun"])
def test_the_same_seed_gives_the_same_parameters_and_another_seed_others(init):
    first, same, other = (small_model(init=init, seed=seed).state_dict() for seed in (3, 3, 4))
    for name, value in first.items():
        np.testing.assert_array_equal(value, same[name])
        drawn = np.ptp(value) > 0
        assert (value != other[name]).any() == drawn, name


def test_parameters_of_one_network_are_drawn_independently():
    model = small_model(init="official")
    first, second = (block.mlp.fc1.weight.data for block in model.layers[1].blocks)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("init", ["official", "glorot", "lecun", "zeros"])
@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_float32_parameters_are_rounded_float64_parameters(modulation, init):
    single = small_model(modulation, dtype="float32", init=init).state_dict()
    double = small_model(modulation, dtype="float64", init=init).state_dict()
    assert single.keys() == double.keys()
    for name, value in single.items():
        assert value.dtype == np.float32
        assert double[name].dtype == np.float64
        np.testing.assert_array_equal(value, double[name].astype("float32"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_everything_has_the_dtype_of_the_network(modulation, dtype):
    model = small_model(modulation, dtype=dtype, drop_rate=0.2, drop_path_rate=0.3)
    logits, cache = model.forward(random_images((3, 2, 24, 16), dtype=dtype), random_generator(1))
    dimages = model.backward(random_images((3, 5), dtype=dtype), cache)
    assert logits.dtype == dimages.dtype == dtype
    assert {array.dtype.name for array in arrays_of(cache)} == {dtype}
    assert {parameter.grad.dtype.name for parameter in model.parameters()} == {dtype}


def test_training_with_the_same_drop_seed_gives_the_same_result():
    model, images = small_model(drop_rate=0.2, drop_path_rate=0.3, init="official"), random_images((3, 2, 24, 16))
    first, same, other = (model.forward(images, random_generator(seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_a_second_backward_pass_doubles_the_gradients_and_zero_grad_clears_them(modulation):
    model = shaken(small_model(modulation, use_layerscale=True))
    logits, cache = model.forward(random_images((3, 2, 24, 16)))
    dlogits = random_images(logits.shape, seed=4)
    dimages = model.backward(dlogits, cache)
    once = gradients(model)
    assert all((gradient != 0).any() for gradient in once.values())
    np.testing.assert_array_equal(model.backward(dlogits, cache), dimages)
    for name, gradient in gradients(model).items():
        np.testing.assert_array_equal(gradient, 2 * once[name])
    model.zero_grad()
    assert all((gradient == 0).all() for gradient in gradients(model).values())


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_nothing_given_is_written_to(modulation):
    model = shaken(small_model(modulation, drop_rate=0.2, drop_path_rate=0.3))
    images, dlogits = random_images((3, 2, 24, 16)), random_images((3, 5), seed=3)
    before = {name: value.copy() for name, value in model.state_dict().items()}
    _, cache = model.forward(images, random_generator(1))
    model.backward(dlogits, cache)
    np.testing.assert_array_equal(images, random_images((3, 2, 24, 16)))
    np.testing.assert_array_equal(dlogits, random_images((3, 5), seed=3))
    assert all((before[name] == value).all() for name, value in model.state_dict().items())


def test_images_need_not_lie_in_memory_in_order():
    model, images = shaken(small_model()), random_images((3, 2, 24, 16))
    channels_last_in_memory = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(model(channels_last_in_memory), model(images))


def test_moving_to_the_cpu_changes_nothing():
    model = small_model()
    arrays = {name: (parameter.data, parameter.grad) for name, parameter in model.named_parameters()}
    assert model.device == "cpu"
    model.to_device("cpu")
    assert model.device == "cpu"
    for name, parameter in model.named_parameters():
        assert parameter.data is arrays[name][0]
        assert parameter.grad is arrays[name][1]


def test_describe_is_enough_to_build_the_network_again():
    model = small_model("sigmoid_gate", dtype="float32")
    description = model.describe()
    again = FocalNet(FocalNetConfig.from_dict(description["config"]), dtype=description["dtype"])
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    images = random_images((3, 2, 24, 16), dtype="float32")
    np.testing.assert_array_equal(again(images), model(images))


# How parameters start

NORMAL, UNIFORM = 3.0, 1.8  # kurtosis: the fourth moment over the squared variance


def assert_drawn(values, std, kurtosis, name):
    """Zero mean and this spread, within five standard errors of each, and the reach of the distribution."""
    n = values.size
    assert abs(values.mean()) < 5 * std / math.sqrt(n), name
    assert abs(values.std() / std - 1) < 5 * math.sqrt((kurtosis - 1) / (4 * n)), name
    reach = abs(values).max() / std
    if kurtosis == UNIFORM:
        assert reach <= math.sqrt(3) * (1 + EPS["float32"]), name
    elif n > 100:
        assert reach > 2, name


def starting_network(init, modulation="focal"):
    """Large enough to measure: the smallest weight holds 7200 numbers, the smallest kernel 432."""
    config = FocalNetConfig(
        image_size=32,
        num_classes=90,
        embed_dim=48,
        depths=(1, 1),
        focal_levels=(2, 2),
        focal_windows=(3, 5),
        use_layerscale=True,
        use_postln_in_modulation=modulation == "focal",
        modulation=modulation,
    )
    return FocalNet(config, init=init, seed=7).state_dict()


def is_convolution(name):
    return bool(re.search(r"patch_embed\.proj|downsample\.proj|modulation\.h\.|focal_layers", name))


def fan_in(weight):
    return weight.shape[0] * weight.shape[1] if weight.ndim == 3 else weight.shape[0]


@pytest.mark.parametrize("init", ["official", "glorot", "lecun"])
def test_norms_start_at_one_and_zero_and_layer_scale_at_its_value(init):
    for name, values in starting_network(init).items():
        if "norm" in name or ".ln." in name:
            assert (values == (1 if name.endswith("weight") else 0)).all(), name
        elif "gamma" in name:
            assert (values == np.float32(1e-4)).all(), name


@pytest.mark.parametrize("modulation", ["focal", "sigmoid_gate", "box_mean"])
def test_official_weights_are_normal_but_convolutions_uniform(modulation):
    state = starting_network("official", modulation)
    weights = {name: values for name, values in state.items() if values.ndim > 1}
    for name, values in weights.items():
        if is_convolution(name):
            assert_drawn(values, 1 / math.sqrt(3 * fan_in(values)), UNIFORM, name)
        else:
            assert_drawn(values, 0.02, NORMAL, name)
    assert any(is_convolution(name) for name in weights)
    assert any(not is_convolution(name) for name in weights)


def test_official_biases_are_zero_but_those_of_convolutions_uniform():
    state = starting_network("official")
    convolutions = 0
    for name, values in state.items():
        if not re.search(r"(proj|fc\d|\.f|\.h|head)\.bias", name):
            continue
        if is_convolution(name):
            weight = state[name.replace("bias", "weight")]
            assert_drawn(values, 1 / math.sqrt(3 * fan_in(weight)), UNIFORM, name)
            convolutions += 1
        else:
            assert (values == 0).all(), name
    assert convolutions == 4  # the stem, the downsampling, and h of two blocks


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_glorot_weights_are_uniform_by_both_fans_and_biases_zero(modulation):
    for name, values in starting_network("glorot", modulation).items():
        if values.ndim == 3:  # a depthwise channel is a map of k*k numbers to k*k
            assert_drawn(values, 1 / math.sqrt(fan_in(values)), UNIFORM, name)
        elif values.ndim == 2:
            assert_drawn(values, math.sqrt(2 / sum(values.shape)), UNIFORM, name)
        elif name.endswith("bias"):
            assert (values == 0).all(), name


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_lecun_weights_are_normal_by_fan_in_and_biases_and_classifier_zero(modulation):
    for name, values in starting_network("lecun", modulation).items():
        if name == "head.weight" or name.endswith("bias"):
            assert (values == 0).all(), name
        elif values.ndim > 1:
            assert_drawn(values, 1 / math.sqrt(fan_in(values)), NORMAL, name)


def test_zeros_draw_nothing():
    for name, values in starting_network("zeros").items():
        assert (values == (values[0] if values.ndim == 1 else 0)).all(), name


# The summary


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
@pytest.mark.parametrize("num_classes", [0, 5])
def test_the_rows_of_a_summary_add_up_to_the_network(modulation, num_classes):
    model = small_model(modulation, use_layerscale=True, num_classes=num_classes)
    table = summarize(model)
    assert table.parameters == sum(row.parameters for row in table.rows) == model.count_parameters()
    assert table.multiply_adds == sum(row.multiply_adds for row in table.rows)
    assert table.multiply_adds == sum(multiply_adds(model.config).values())
    assert [row.name for row in table.rows] == list(multiply_adds(model.config))
    assert {row.name: row.multiply_adds for row in table.rows} == multiply_adds(model.config)


def test_a_summary_shows_the_shape_that_each_part_gives():
    shapes = {row.name: row.output_shape for row in summarize(small_model()).rows}
    assert shapes == {
        "patch_embed": (6, 4, 6),
        "layers.0.blocks.0.modulation": (6, 4, 6),
        "layers.0.blocks.0.mlp": (6, 4, 6),
        "layers.0.downsample": (3, 2, 12),
        "layers.1.blocks.0.modulation": (3, 2, 12),
        "layers.1.blocks.0.mlp": (3, 2, 12),
        "layers.1.blocks.1.modulation": (3, 2, 12),
        "layers.1.blocks.1.mlp": (3, 2, 12),
        "norm": (3, 2, 12),
        "head": (5,),
    }


def test_a_summary_counts_the_parameters_of_each_part():
    model = small_model(use_layerscale=True)
    counted = {row.name: row.parameters for row in summarize(model).rows}
    block = model.layers[0].blocks[0]
    assert counted["patch_embed"] == model.patch_embed.count_parameters()
    assert counted["layers.0.downsample"] == model.layers[0].downsample.count_parameters()
    parts = (block.norm1, block.modulation)
    assert counted["layers.0.blocks.0.modulation"] == sum(part.count_parameters() for part in parts) + 6
    assert counted["layers.0.blocks.0.mlp"] == block.norm2.count_parameters() + block.mlp.count_parameters() + 6
    assert counted["norm"] == 2 * 12
    assert counted["head"] == 12 * 5 + 5


def arrays_of(cache):
    """Every array in a tree of tuples."""
    if isinstance(cache, tuple):
        return [array for part in cache for array in arrays_of(part)]
    return [cache] if isinstance(cache, np.ndarray) else []


def owner(array):
    return array if array.base is None else owner(array.base)


@pytest.mark.parametrize("use_postln", [False, True])
@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_a_summary_counts_every_array_of_the_cache_once(modulation, use_postln):
    model = small_model(modulation, use_postln=use_postln)
    _, cache = model.forward(np.zeros((1, 2, 24, 16)))
    parameters = {id(owner(parameter.data)) for parameter in model.parameters()}
    alive = {id(owner(array)): owner(array).nbytes for array in arrays_of(cache)}
    expected = sum(nbytes for key, nbytes in alive.items() if key not in parameters)
    table = summarize(model)
    assert table.cache_bytes == expected
    assert all(row.cache_bytes > 0 for row in table.rows)


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_a_summary_counts_the_memory_that_a_forward_pass_leaves_behind(modulation):
    model = small_model(modulation, image_size=(96, 64), embed_dim=12, ops="reference")
    images = np.zeros((1, 2, 96, 64))
    expected = summarize(model).cache_bytes
    model.forward(images)  # whatever is made once is made before
    gc.collect()
    tracemalloc.start()
    logits, cache = model.forward(images)
    alive = tracemalloc.get_traced_memory()[0] - logits.nbytes
    tracemalloc.stop()
    objects = 200 * (len(arrays_of(cache)) + 100)  # the headers of arrays and the tuples that hold them
    assert expected <= alive <= expected + objects


def test_a_summary_is_a_table_with_a_line_for_each_part_and_the_totals():
    model = small_model()
    lines = model.summary().splitlines()
    table = summarize(model)
    assert [line.split()[0] for line in lines[2:-2]] == [row.name for row in table.rows]
    assert lines[-2].split()[0] == "total"
    assert f"{model.count_parameters():,}" in lines[-2]
    assert f"{table.multiply_adds:,}" in lines[-2]
    assert lines[-1] == table.training_memory
    assert "24 x 16" in lines[0]


def test_a_summary_takes_another_image_size():
    model = small_model()
    table = summarize(model, (48, 32))
    assert table.rows[0].output_shape == (12, 8, 6)
    assert table.multiply_adds == sum(multiply_adds(model.config, (48, 32)).values())
    assert summarize(model, 32).rows[0].output_shape == (8, 8, 6)
    assert "48 x 32" in model.summary((48, 32))


# Memory of inference


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_inference_keeps_no_more_than_a_block_alive(modulation):
    """Twice the blocks, the same peak; the forward pass, which keeps all, needs twice as much."""

    def peaks(depth):
        # Other tables use memory again that an earlier network had, which nothing traces.
        model = small_model(modulation, image_size=32, embed_dim=16, depths=(depth, 1), ops="reference")
        images = random_images((2, 2, 32, 32))
        return peak_memory(lambda: model(images)), peak_memory(lambda: model.forward(images))

    (shallow, shallow_kept), (deep, deep_kept) = peaks(4), peaks(8)
    assert deep < 1.1 * shallow
    assert deep_kept > 1.6 * shallow_kept
    assert deep < 0.4 * deep_kept


def peak_memory(run):
    run()
    gc.collect()
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak
