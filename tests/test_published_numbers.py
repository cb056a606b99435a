"""The reference implementations' own numbers, in float64: outputs, loss, activations and every gradient.

Where the files in `fixtures/` come from is written in `fixtures/README.md`.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from minifocal import FocalNet, FocalNetConfig, cross_entropy_backward, cross_entropy_forward
from minifocal.models.complexity import multiply_adds

FIXTURES = Path(__file__).parent / "fixtures"
OFFICIAL = ["ms_srf_three_stage", "ms_iso_p16", "ms_no_patch_norm", "ms_all_on_fl4"]
EDIFICE = ["focalnet_a", "focalnet_c"]

# The references differ among themselves by 5e-14; the tolerances leave room for another order of sums.
VALUE = {"rtol": 0, "atol": 1e-11}
GRADIENT = {"rtol": 1e-9, "atol": 1e-10}
# float32 carries 6e-8 a rounding; a few hundred roundings lie between an image and a gradient.
FLOAT32 = 1e-5

EDIFICE_NAMES = [
    (r"patch_embed_proj", r"patch_embed.proj"),
    (r"focal_(\d+)_mod_norm", r"layers.0.blocks.\1.norm1"),
    (r"focal_(\d+)_query", r"layers.0.blocks.\1.modulation.query"),
    (r"focal_(\d+)_focal_level_(\d+)", r"layers.0.blocks.\1.modulation.levels.\2"),
    (r"focal_(\d+)_gate", r"layers.0.blocks.\1.modulation.gate"),
    (r"focal_(\d+)_mod_proj", r"layers.0.blocks.\1.modulation.proj"),
    (r"focal_(\d+)_ffn_norm", r"layers.0.blocks.\1.norm2"),
    (r"focal_(\d+)_ffn_up", r"layers.0.blocks.\1.mlp.fc1"),
    (r"focal_(\d+)_ffn_down", r"layers.0.blocks.\1.mlp.fc2"),
    (r"final_norm", r"norm"),
    (r"classifier", r"head"),
]
EDIFICE_KINDS = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


def load(name):
    with np.load(FIXTURES / f"{name}.npz") as file:
        return dict(file)


def official_tensors(fixture, kind):
    """The tensors of one kind ("param" or "grad") by name, in the shapes of this package."""
    return {key.removeprefix(f"{kind}/"): from_official(key, value) for key, value in of_kind(fixture, kind)}


def edifice_tensors(fixture, kind):
    """The same for Edifice, whose matrices are (in, out) already; only the names differ."""
    return {from_edifice(key.removeprefix(f"{kind}/")): value for key, value in of_kind(fixture, kind)}


def of_kind(fixture, kind):
    return [(key, value) for key, value in fixture.items() if key.startswith(f"{kind}/")]


def from_official(key, tensor):
    """A weight of torch: (out, in), (out, in, k, k), or (C, 1, k, k) where depthwise."""
    if "focal_layers" in key:
        return tensor[:, 0].transpose(1, 2, 0)
    return tensor.reshape(len(tensor), -1).T if tensor.ndim > 1 else tensor


def from_edifice(name):
    layer, kind = name.split("/")
    ours = [re.sub(f"^{pattern}$", new, layer) for pattern, new in EDIFICE_NAMES if re.match(f"^{pattern}$", layer)]
    assert len(ours) == 1, name
    return f"{ours[0]}.{EDIFICE_KINDS[kind]}"


def official_model(name, dtype="float64"):
    fixture = load(name)
    config = FocalNetConfig.from_dict(json.loads(str(fixture["config"]))["canonical"])
    model = FocalNet(config, init="zeros", dtype=dtype)
    model.load_state_dict({key: value.astype(dtype) for key, value in official_tensors(fixture, "param").items()})
    return model, fixture


def edifice_model(name, dtype="float64"):
    fixture = load(name)
    options = ["image_size", "patch_size", "in_channels", "hidden_size", "num_layers", "focal_levels", "focal_kernel"]
    options = {option: int(fixture[f"config/{option}"]) for option in [*options, "num_classes"]}
    model = FocalNet.build(modulation="box_mean", init="zeros", dtype=dtype, **options)
    model.load_state_dict({key: value.astype(dtype) for key, value in edifice_tensors(fixture, "param").items()})
    return model, fixture


def assert_gradients(model, expected, tolerance):
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[name], **tolerance, err_msg=name)


def relative_to_largest(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_logits_and_loss(name):
    model, fixture = official_model(name)
    logits, _ = model.forward(fixture["input"])
    loss, _ = cross_entropy_forward(logits, fixture["labels"])
    np.testing.assert_allclose(logits, fixture["logits"], **VALUE)
    np.testing.assert_allclose(loss, fixture["loss"], **VALUE)
    np.testing.assert_allclose(model(fixture["input"]), fixture["logits"], **VALUE)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_gradients(name):
    model, fixture = official_model(name)
    logits, cache = model.forward(fixture["input"])
    _, loss_cache = cross_entropy_forward(logits, fixture["labels"])
    dimages = model.backward(cross_entropy_backward(loss_cache), cache)
    np.testing.assert_allclose(dimages, fixture["grad_input"], **GRADIENT)
    assert_gradients(model, official_tensors(fixture, "grad"), GRADIENT)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_counts(name):
    model, fixture = official_model(name)
    recorded = json.loads(str(fixture["config"]))
    assert model.count_parameters() == recorded["n_params"]
    assert sum(multiply_adds(model.config).values()) == recorded["flops_official"]


def test_official_activations_are_in_the_cache():
    model, fixture = official_model("ms_srf_three_stage")
    _, cache = model.forward(fixture["input"])
    for s, stage in enumerate(cache.layers):
        for b, block in enumerate(stage.blocks):
            seen, name = block.modulation, f"act/layers.{s}.blocks.{b}"
            ctx = seen.context.levels[0].conv.x
            f = np.concatenate([seen.q, ctx, seen.gates], axis=-1)
            np.testing.assert_allclose(f, fixture[f"{name}.modulation.f"], **VALUE)
            np.testing.assert_allclose(seen.modulator.transpose(0, 3, 1, 2), fixture[f"{name}.modulation.h"], **VALUE)
        features = tokens(cache.stage_maps[s])
        np.testing.assert_allclose(features, fixture[f"act/layers.{s}.blocks.{b}"], **VALUE)
    np.testing.assert_allclose(cache.head.x, fixture["act/avgpool"][..., 0], **VALUE)


def test_official_activations_between_the_layers():
    model, fixture = official_model("ms_srf_three_stage")
    x, _ = model.patch_embed.forward(fixture["input"].transpose(0, 2, 3, 1))
    np.testing.assert_allclose(tokens(x), fixture["act/patch_embed"], **VALUE)
    for s, stage in enumerate(model.layers):
        for b, block in enumerate(stage.blocks):
            modulated = block.modulation(block.norm1(x))
            np.testing.assert_allclose(modulated, fixture[f"act/layers.{s}.blocks.{b}.modulation"], **VALUE)
            x = block(x)
            np.testing.assert_allclose(tokens(x), fixture[f"act/layers.{s}.blocks.{b}"], **VALUE)
        if stage.downsample is not None:
            x = stage.downsample(x)
            np.testing.assert_allclose(tokens(x), fixture[f"act/layers.{s}.downsample"], **VALUE)
    features = model.forward_features(fixture["input"])
    np.testing.assert_allclose(tokens(features), fixture["act/norm"], **VALUE)


def test_official_gradients_between_the_layers():
    model, fixture = official_model("ms_srf_three_stage")
    logits, cache = model.forward(fixture["input"])
    _, loss_cache = cross_entropy_forward(logits, fixture["labels"])
    dx = model.head.backward(cross_entropy_backward(loss_cache), cache.head)
    np.testing.assert_allclose(dx, fixture["actgrad/avgpool"][..., 0], **GRADIENT)
    dx = model.ops.mean_pool.backward(dx, cache.pool)
    np.testing.assert_allclose(tokens(dx), fixture["actgrad/norm"], **GRADIENT)
    dx = model.norm.backward(dx, cache.norm)
    for s, (stage, stage_cache) in reversed(list(enumerate(zip(model.layers, cache.layers, strict=True)))):
        if stage.downsample is not None:
            np.testing.assert_allclose(tokens(dx), fixture[f"actgrad/layers.{s}.downsample"], **GRADIENT)
            dx = stage.downsample.backward(dx, stage_cache.downsample)
        for b, (block, block_cache) in reversed(list(enumerate(zip(stage.blocks, stage_cache.blocks, strict=True)))):
            np.testing.assert_allclose(tokens(dx), fixture[f"actgrad/layers.{s}.blocks.{b}"], **GRADIENT)
            dx = block.backward(dx, block_cache)
    np.testing.assert_allclose(tokens(dx), fixture["actgrad/patch_embed"], **GRADIENT)


def tokens(x):
    """A map (B, H, W, C) as the official code keeps it, (B, H*W, C)."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


@pytest.mark.parametrize("name", EDIFICE)
def test_edifice_output(name):
    model, fixture = edifice_model(name)
    output, _ = model.forward(fixture["input"])
    np.testing.assert_allclose(output, fixture["output"], **VALUE)
    np.testing.assert_allclose((output * fixture["cotangent"]).sum(), fixture["loss"], **VALUE)


@pytest.mark.parametrize("name", EDIFICE)
def test_edifice_gradients(name):
    model, fixture = edifice_model(name)
    _, cache = model.forward(fixture["input"])
    dimages = model.backward(fixture["cotangent"], cache)
    np.testing.assert_allclose(dimages, fixture["grad_input"], **GRADIENT)
    assert_gradients(model, edifice_tensors(fixture, "grad"), GRADIENT)


@pytest.mark.parametrize("name", EDIFICE)
def test_edifice_in_float32_with_the_weights_that_it_starts_from(name):
    model, fixture = edifice_model(name, "float32")
    model.load_state_dict(edifice_tensors(fixture, "axon_init"))
    output = model(fixture["input"].astype("float32"))
    assert relative_to_largest(output, fixture["axon_init_output_f32"]) < FLOAT32


@pytest.mark.parametrize("name", [*OFFICIAL, *EDIFICE])
def test_float32_agrees_with_float64(name):
    build = official_model if name in OFFICIAL else edifice_model
    output, dimages, gradients = {}, {}, {}
    for dtype in ("float32", "float64"):
        model, fixture = build(name, dtype)
        output[dtype], cache = model.forward(fixture["input"].astype(dtype))
        dy = np.random.default_rng(5).standard_normal(output[dtype].shape).astype(dtype)
        dimages[dtype] = model.backward(dy, cache)
        gradients[dtype] = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert output["float32"].dtype == dimages["float32"].dtype == np.float32
    assert relative_to_largest(output["float32"], output["float64"]) < FLOAT32
    assert relative_to_largest(dimages["float32"], dimages["float64"]) < FLOAT32
    for key, expected in gradients["float64"].items():
        assert gradients["float32"][key].dtype == np.float32
        assert relative_to_largest(gradients["float32"][key], expected) < FLOAT32, key
