"""What makes no network is refused when it is made, in one line that says what was wrong and what would do."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minifocal import FocalNet, FocalNetConfig, InputError, check_layer, to_device
from minifocal.arrays import random_generator
from minifocal.models.config import MODULATION_NAMES

FIELDS = list(FocalNetConfig().to_dict())
OPTIONS = [
    *("image_size", "patch_size", "in_channels", "hidden_size", "num_layers", "focal_levels", "focal_kernel"),
    *("num_classes", "modulation", "mlp_ratio", "drop_path_rate", "init", "seed", "dtype", "device", "ops"),
    "recompute_levels",
    "precision",
]
SEEDS_NETWORKS = ["sigmoid_gate", "box_mean"]
ONE_STAGE = {"depths": (1,), "focal_levels": (2,), "focal_windows": (3,)}
SMALL = {"embed_dim": 5, "num_classes": 3, **ONE_STAGE}


def refusal(make, *args, **kwargs):
    """The message of the refusal, which must be one line."""
    with pytest.raises(InputError) as error:
        make(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    return message


WRONG_VALUES = {
    "image_size is text": {"image_size": "224"},
    "image_size is a fraction": {"image_size": 224.5},
    "image_size is None": {"image_size": None},
    "image_size is bool": {"image_size": True},
    "image_size is 0": {"image_size": 0},
    "image_size is negative": {"image_size": (32, -32)},
    "image_size has three numbers": {"image_size": (3, 32, 32)},
    "image_size holds a fraction": {"image_size": (32.0, 32.0)},
    "patch_size is 0": {"patch_size": 0},
    "patch_size is a fraction": {"patch_size": 4.0},
    "patch_size is bool": {"patch_size": True},
    "in_chans is 0": {"in_chans": 0},
    "in_chans is text": {"in_chans": "3"},
    "num_classes is negative": {"num_classes": -1},
    "num_classes is bool": {"num_classes": True},
    "num_classes is None": {"num_classes": None},
    "embed_dim is 0": {"embed_dim": 0},
    "embed_dim is None": {"embed_dim": None},
    "embed_dim is bool": {"embed_dim": True},
    "depths is a number": {"depths": 2},
    "depths is text": {"depths": "2262"},
    "depths holds text": {"depths": (2, 2, "6", 2)},
    "depths holds bool": {"depths": (2, 2, True, 2)},
    "depths holds 0": {"depths": (2, 2, 0, 2)},
    "depths holds a negative number": {"depths": (2, 2, -6, 2)},
    "depths is empty": {"depths": (), "focal_levels": (), "focal_windows": ()},
    "mlp_ratio is text": {"mlp_ratio": "4"},
    "mlp_ratio is 0": {"mlp_ratio": 0.0},
    "mlp_ratio is negative": {"mlp_ratio": -4.0},
    "mlp_ratio is NaN": {"mlp_ratio": math.nan},
    "mlp_ratio is infinite": {"mlp_ratio": math.inf},
    "mlp_ratio is bool": {"mlp_ratio": True},
    "mlp_ratio leaves no hidden channel": {"mlp_ratio": 0.01},
    "mlp_act is unknown": {"mlp_act": "relu"},
    "mlp_act is a list": {"mlp_act": ["gelu"]},
    "drop_rate is negative": {"drop_rate": -0.1},
    "drop_rate is 1": {"drop_rate": 1.0},
    "drop_rate is text": {"drop_rate": "0.1"},
    "drop_rate is NaN": {"drop_rate": math.nan},
    "drop_rate is bool": {"drop_rate": False},
    "drop_path_rate is negative": {"drop_path_rate": -0.1},
    "drop_path_rate is 1": {"drop_path_rate": 1.0},
    "drop_path_rate is text": {"drop_path_rate": "0.1"},
    "patch_norm is text": {"patch_norm": "no"},
    "focal_levels is a number": {"focal_levels": 2},
    "focal_levels holds a negative number": {"focal_levels": (2, 2, 2, -1)},
    "focal_levels is too short": {"focal_levels": (2, 2, 2)},
    "focal_windows is too long": {"focal_windows": (3, 3, 3, 3, 3)},
    "focal_windows holds 0": {"focal_windows": (3, 3, 0, 3)},
    "focal_windows holds an even number": {"focal_windows": (3, 4, 3, 3)},
    "focal_windows holds a fraction": {"focal_windows": (3.0, 3.0, 3.0, 3.0)},
    "focal_factor is negative": {"focal_factor": -2},
    "focal_factor is a fraction": {"focal_factor": 2.0},
    "focal_factor is bool": {"focal_factor": False},
    "use_conv_embed is text": {"use_conv_embed": "yes"},
    "use_layerscale is text": {"use_layerscale": "no"},
    "use_layerscale is a number": {"use_layerscale": 1},
    "layerscale_value is text": {"layerscale_value": "1e-4"},
    "layerscale_value is NaN": {"layerscale_value": math.nan},
    "use_postln is text": {"use_postln": "no"},
    "use_postln_in_modulation is text": {"use_postln_in_modulation": "no"},
    "normalize_modulator is None": {"normalize_modulator": None},
    "ln_eps is 0": {"ln_eps": 0.0},
    "ln_eps is negative": {"ln_eps": -1e-5},
    "ln_eps is text": {"ln_eps": "1e-5"},
    "ln_eps is infinite": {"ln_eps": math.inf},
    "pad_mode is unknown": {"pad_mode": "reflect"},
    "modulation is unknown": {"modulation": "attention"},
    "modulation is None": {"modulation": None},
}


@pytest.mark.parametrize("values", WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_refused_in_one_line_that_names_the_field_and_what_came(values):
    field, value = next(iter(values.items()))
    message = refusal(FocalNetConfig, **values)
    assert message.startswith(f"{field} must be ")
    assert message.endswith(f"got {value!r}")


@pytest.mark.parametrize(
    ("field", "choices"),
    [
        ("mlp_act", ["gelu", "gelu_pytorch_tanh"]),
        ("pad_mode", ["floor", "pad"]),
        ("modulation", ["focal", "sigmoid_gate", "box_mean"]),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(field, choices):
    message = refusal(FocalNetConfig, **{field: "nonsense"})
    assert all(choice in message for choice in choices)


def test_the_length_of_focal_levels_is_answered_with_the_number_of_stages():
    assert "each of 4 stages" in refusal(FocalNetConfig, focal_levels=(2, 2, 2))


@pytest.mark.parametrize("modulation", ["focal", "sigmoid_gate"])
def test_an_odd_focal_factor_makes_even_kernels_and_is_refused(modulation):
    message = refusal(FocalNetConfig, **{**SMALL, "modulation": modulation, "focal_factor": 1})
    assert "odd" in message
    assert "(3, 4)" in message


def test_an_odd_focal_factor_is_harmless_with_one_level():
    assert FocalNetConfig(**{**SMALL, "focal_levels": (1,), "focal_factor": 1}).kernel_sizes(0) == (3,)


def test_a_mean_may_be_taken_over_an_even_window():
    config = FocalNetConfig(**{**SMALL, "modulation": "box_mean", "focal_windows": (4,), "image_size": (8, 12)})
    model = FocalNet(config, dtype="float64", init="lecun")
    images = random_generator(0).standard_normal((2, 3, 8, 12))
    assert check_layer(model, images).passed


@pytest.mark.parametrize("modulation", SEEDS_NETWORKS)
def test_no_focal_level_is_refused_in_the_seeds_networks(modulation):
    message = refusal(FocalNetConfig, **{**SMALL, "modulation": modulation, "focal_levels": (0,)})
    assert message == f"focal_levels must be at least 1 for {modulation}, got (0,)"
    assert "focal_levels must be at least 1" in refusal(FocalNet.build, modulation=modulation, focal_levels=0)


def test_no_focal_level_is_legal_in_the_published_network():
    """The context is then the first projection's mean over the map, gated by the one gate that is left."""
    config = FocalNetConfig(image_size=(8, 12), **{**SMALL, "focal_levels": (0,)})
    model = FocalNet(config, dtype="float64", init="lecun")
    rng = random_generator(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * rng.standard_normal(parameter.data.shape)
    images = rng.standard_normal((2, 3, 8, 12))
    logits, cache = model.forward(images)
    assert logits.shape == (2, 3)
    assert cache.gates[0][0].shape == (2, 2, 3, 1)
    assert model.backward(np.ones_like(logits), cache).shape == images.shape
    report = check_layer(model, images, rng=rng)
    assert report.passed, report


@pytest.mark.parametrize("modulation", SEEDS_NETWORKS)
@pytest.mark.parametrize("flag", ["use_postln_in_modulation", "normalize_modulator"])
def test_flags_of_the_published_modulation_are_refused_in_the_seeds(modulation, flag):
    message = refusal(FocalNetConfig, **{**SMALL, "modulation": modulation, flag: True})
    assert flag in message
    assert '"focal"' in message


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_an_image_smaller_than_one_patch_is_refused(modulation):
    message = refusal(FocalNetConfig, **{**SMALL, "modulation": modulation, "image_size": (12, 32), "patch_size": 16})
    assert "smaller than one patch of 16" in message


def test_an_image_smaller_than_one_patch_is_padded_where_that_is_asked_for():
    config = FocalNetConfig(**{**SMALL, "image_size": (12, 32), "patch_size": 16, "pad_mode": "pad"})
    images = np.ones((1, 3, 12, 32), dtype="float32")
    assert FocalNet(config).forward_features(images).shape == (1, 1, 2, 5)


def test_an_image_smaller_than_one_patch_is_refused_at_the_forward_pass():
    model = FocalNet(FocalNetConfig(**{**SMALL, "image_size": 32}))
    message = refusal(model, np.ones((1, 3, 3, 32), dtype="float32"))
    assert "smaller than one 4 x 4 patch" in message


@pytest.mark.parametrize("modulation", SEEDS_NETWORKS)
def test_the_seeds_networks_refuse_a_size_that_patches_do_not_divide_when_built(modulation):
    message = refusal(FocalNet.build, image_size=30, patch_size=4, modulation=modulation)
    assert "30 x 30" in message
    assert "patches of 4" in message


@pytest.mark.parametrize("modulation", SEEDS_NETWORKS)
def test_the_seeds_networks_refuse_a_size_that_patches_do_not_divide_at_the_forward_pass(modulation):
    model = FocalNet.build(image_size=32, patch_size=4, hidden_size=6, num_layers=1, modulation=modulation)
    images = np.ones((1, 3, 32, 30), dtype="float32")
    assert "32 x 30" in refusal(model.forward, images)
    assert "32 x 30" in refusal(model, images)
    assert model(images[..., :28]).shape == (1, 6)


def test_the_published_network_drops_what_patches_do_not_divide():
    model = FocalNet(FocalNetConfig(**SMALL))
    images = random_generator(0).standard_normal((1, 3, 11, 14)).astype("float32")
    np.testing.assert_array_equal(model(images), model(images[:, :, :8, :12]))


def test_an_unknown_field_lists_the_fields():
    message = refusal(FocalNetConfig.from_dict, {"hidden_size": 8})
    assert message.startswith("unknown option hidden_size; ")
    assert all(field in message for field in FIELDS)


@pytest.mark.parametrize("make", [FocalNet.build, FocalNet.build_backbone, FocalNet.output_size, FocalNet.feature_size])
def test_an_unknown_option_lists_the_options(make):
    message = refusal(make, hidden_dim=8)
    assert message.startswith("unknown option hidden_dim; ")
    assert message.endswith(", ".join(OPTIONS))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"image_size": 0}, "image_size"),
        ({"patch_size": -4}, "patch_size"),
        ({"in_channels": 0}, "in_chan"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_layers": -1}, "num_layers"),
        ({"focal_levels": -1}, "focal_levels"),
        ({"focal_kernel": 4}, "focal_kernel"),
        ({"focal_kernel": True}, "focal_kernel"),
        ({"num_classes": -2}, "num_classes"),
        ({"drop_path_rate": 1.5}, "drop_path_rate"),
        ({"modulation": "conv"}, "modulation"),
    ],
)
def test_build_speaks_of_its_own_options(options, word):
    assert word in refusal(FocalNet.build, **options)


@pytest.mark.parametrize(
    ("argument", "known"),
    [
        ("dtype", ["float32", "float64"]),
        ("init", ["official", "glorot", "lecun", "zeros"]),
        ("ops", ["auto", "reference"]),
        ("device", ['"cpu"', '"cuda"', '"cuda:N"']),
    ],
)
def test_an_unknown_argument_is_answered_with_the_known_ones(argument, known):
    message = refusal(FocalNet, FocalNetConfig(**SMALL), **{argument: "nonsense"})
    assert message.startswith(f"{argument} must be ")
    assert message.endswith("got 'nonsense'")
    assert all(word in message for word in known)


@pytest.mark.parametrize("dtype", ["float16", "int32", "complex128", None])
def test_only_two_float_types_make_a_network(dtype):
    assert refusal(FocalNet, FocalNetConfig(**SMALL), dtype=dtype).startswith("dtype must be one of float32, float64")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:one", "cuda:-1", "cpu:0", "", 0, None])
def test_a_device_of_no_such_name_is_refused(device):
    assert refusal(to_device, np.ones(3), device).startswith("device must be ")


def test_cuda_without_cupy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # `import cupy` now fails as if it were not installed
    message = refusal(FocalNet, FocalNetConfig(**SMALL), device="cuda")
    assert "CuPy" in message
    assert "minifocal[cuda12]" in message
    assert "minifocal[cuda13]" in message


def test_the_configuration_cannot_be_changed():
    with pytest.raises(AttributeError):
        FocalNetConfig().embed_dim = 8


def test_lists_become_tuples():
    config = FocalNetConfig(image_size=[32, 48], depths=[1, 2], focal_levels=[2, 3], focal_windows=[3, 5])
    assert config == FocalNetConfig(image_size=(32, 48), depths=(1, 2), focal_levels=(2, 3), focal_windows=(3, 5))
    assert hash(config) == hash(FocalNetConfig.from_dict(config.to_dict()))


@st.composite
def configurations(draw):
    """Any configuration that makes a network."""
    modulation = draw(st.sampled_from(MODULATION_NAMES))
    focal = modulation == "focal"
    stages = draw(st.integers(1, 4))
    patch = draw(st.integers(1, 16))
    per_stage = {"min_size": stages, "max_size": stages}
    odd = st.integers(0, 3).map(lambda n: 2 * n + 1)
    side = st.integers(1, 20).map(lambda n: n * patch)
    pair = st.tuples(side, side)
    rate = st.floats(0, 0.99)
    return FocalNetConfig(
        image_size=draw(st.one_of(side, pair, pair.map(list))),
        patch_size=patch,
        in_chans=draw(st.integers(1, 5)),
        num_classes=draw(st.integers(0, 1000)),
        embed_dim=draw(st.integers(1, 512)),
        depths=draw(st.lists(st.integers(1, 20), **per_stage)),
        mlp_ratio=draw(st.one_of(st.integers(1, 8), st.floats(1, 8))),
        mlp_act=draw(st.sampled_from(["gelu", "gelu_pytorch_tanh"])),
        drop_rate=draw(rate),
        drop_path_rate=draw(rate),
        patch_norm=draw(st.booleans()),
        focal_levels=draw(st.lists(st.integers(0 if focal else 1, 4), **per_stage)),
        focal_windows=draw(st.lists(odd, **per_stage)),
        focal_factor=draw(st.sampled_from([0, 2, 4])),
        use_conv_embed=draw(st.booleans()),
        use_layerscale=draw(st.booleans()),
        layerscale_value=draw(st.floats(0, 1)),
        use_postln=draw(st.booleans()),
        use_postln_in_modulation=focal and draw(st.booleans()),
        normalize_modulator=focal and draw(st.booleans()),
        ln_eps=draw(st.floats(1e-12, 1)),
        pad_mode=draw(st.sampled_from(["floor", "pad"])),
        modulation=modulation,
    )


@settings(deadline=None, derandomize=True, max_examples=100)
@given(configurations())
def test_every_configuration_survives_json(config):
    assert FocalNetConfig.from_json(config.to_json()) == config
    assert FocalNetConfig.from_dict(config.to_dict()) == config


def test_json_with_an_unknown_name_is_refused():
    assert refusal(FocalNetConfig.from_json, '{"hidden_size": 8}').startswith("unknown option hidden_size")


@pytest.mark.parametrize("text", ["", "embed_dim: 96", "[1, 2]", "null", '"focal"'])
def test_what_is_no_json_object_is_refused(text):
    assert "JSON" in refusal(FocalNetConfig.from_json, text)


def test_json_with_a_value_that_makes_no_network_is_refused():
    assert refusal(FocalNetConfig.from_json, '{"embed_dim": "96"}').startswith("embed_dim must be ")
