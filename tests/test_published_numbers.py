"""The reference implementations' own numbers, in float64: outputs, loss, activations and every gradient.

Where the files in `fixtures/` come from is written in `fixtures/README.md`. Weights go in, and gradients come out, by
`interop`: under the names and in the shapes of the code that recorded them.
"""

import numpy as np
import pytest
from published import (
    CKPT,
    CKPT_FILES,
    EDIFICE,
    FOCAL,
    GRADIENT,
    GRADIENT32,
    HIDDEN,
    TIMM_HEAD,
    VALUE,
    VALUE32,
    config_of,
    generator_of,
    layout_of,
    load,
    make_model,
    meta_of,
    relative_to_largest,
    tensors,
)

from minifocal import FocalNet, cross_entropy_backward, cross_entropy_forward, interop
from minifocal.functional.layer_norm import layer_norm_backward, layer_norm_forward
from minifocal.functional.linear import linear_backward, linear_forward
from minifocal.models.complexity import multiply_adds
from minifocal.ops import GPU_TABLE, TABLES

OPS = [name for name in TABLES if name != GPU_TABLE]
OFFICIAL = [name for name in FOCAL if name.startswith("ms_")]
WITH_ACTIVATIONS = ["hf_all_on", "hf_srf_plain", "ms_srf_three_stage", "timm_lrf_features"]


def test_all_files_are_here():
    assert len(FOCAL) == 18
    assert [name for name in FOCAL if any(key.startswith("act/") for key in load(name))] == WITH_ACTIVATIONS


def assert_gradients(model, fixture):
    layout = layout_of(fixture)
    gradients, expected = interop.state_dict(model, layout=layout, grads=True), tensors(fixture, "grad")
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[name], **GRADIENT, err_msg=name)


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("name", FOCAL)
def test_logits_loss_and_gradients(name, ops):
    fixture = load(name)
    model = make_model(fixture, ops=ops)
    logits, cache = model.forward(fixture["input"], generator_of(fixture))
    loss, loss_cache = cross_entropy_forward(logits, fixture["labels"])
    dimages = model.backward(cross_entropy_backward(loss_cache), cache)
    np.testing.assert_allclose(logits, fixture["logits"], **VALUE)
    np.testing.assert_allclose(loss, fixture["loss"], **VALUE)
    np.testing.assert_allclose(dimages, fixture["grad_input"], **GRADIENT)
    assert_gradients(model, fixture)
    if "droppath_scale" not in fixture:
        np.testing.assert_allclose(model(fixture["input"]), fixture["logits"], **VALUE)


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("name", EDIFICE)
def test_edifice_output_and_gradients(name, ops):
    fixture = load(name)
    model = make_model(fixture, ops=ops)
    output, cache = model.forward(fixture["input"])
    dimages = model.backward(fixture["cotangent"], cache)
    np.testing.assert_allclose(output, fixture["output"], **VALUE)
    np.testing.assert_allclose((output * fixture["cotangent"]).sum(), fixture["loss"], **VALUE)
    np.testing.assert_allclose(dimages, fixture["grad_input"], **GRADIENT)
    assert_gradients(model, fixture)


@pytest.mark.parametrize("name", EDIFICE)
def test_edifice_in_float32_with_the_weights_that_it_starts_from(name):
    fixture = load(name)
    output = make_model(fixture, "float32", kind="axon_init")(fixture["input"].astype("float32"))
    assert relative_to_largest(output, fixture["axon_init_output_f32"]) < VALUE32


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("name", [*FOCAL, *EDIFICE])
def test_float32_agrees_with_float64(name, ops):
    fixture = load(name)
    output, dimages, gradients = {}, {}, {}
    for dtype in ("float32", "float64"):
        model = make_model(fixture, dtype, ops)
        output[dtype], cache = model.forward(fixture["input"].astype(dtype), generator_of(fixture))
        dy = np.random.default_rng(5).standard_normal(output[dtype].shape).astype(dtype)
        dimages[dtype] = model.backward(dy, cache)
        gradients[dtype] = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert output["float32"].dtype == dimages["float32"].dtype == np.float32
    assert relative_to_largest(output["float32"], output["float64"]) < VALUE32
    assert relative_to_largest(dimages["float32"], dimages["float64"]) < GRADIENT32
    for key, expected in gradients["float64"].items():
        assert gradients["float32"][key].dtype == np.float32
        assert relative_to_largest(gradients["float32"][key], expected) < GRADIENT32, key


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("source", CKPT_FILES)
def test_files_of_all_three_give_the_same_logits(source, ops):
    with np.load(CKPT / "expected.npz") as file:
        expected = dict(file)
    hidden = {} if source == "hf" else HIDDEN
    for dtype, tolerance in (("float32", VALUE32), ("float64", 1e-11)):
        model = interop.load_pretrained(CKPT_FILES[source], dtype=dtype, ops=ops, **hidden)
        logits = model(expected["input"].astype(dtype))
        assert logits.dtype == dtype
        assert relative_to_largest(logits, expected["logits_f64"]) < tolerance


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_counts(name):
    fixture = load(name)
    model, recorded = make_model(fixture), meta_of(fixture)
    assert model.count_parameters() == recorded["n_params"]
    assert sum(multiply_adds(model.config).values()) == recorded["flops_official"]


# Between the layers


def record(layer, name, seen):
    """Keep what a layer gives and what comes back to it, under a name."""
    forward, backward = layer.forward, layer.backward

    def recorded_forward(x, rng=None):
        y, cache = forward(x, rng)
        seen["act", name] = y
        return y, cache

    def recorded_backward(dy, cache):
        seen["actgrad", name] = dy
        return backward(dy, cache)

    layer.forward, layer.backward = recorded_forward, recorded_backward


def names_of_parts(layout, stage, block, last_block):
    """Names of modules that recorded something, by our names."""
    ours = f"layers.{stage}.blocks.{block}"
    if layout == "hf":
        theirs = f"focalnet.encoder.stages.{stage}.layers.{block}"
        downsample = f"focalnet.encoder.stages.{stage}.downsample"
    else:
        theirs, downsample = ours, f"layers.{stage + (layout == 'timm')}.downsample"
    names = {ours: theirs, f"{ours}.modulation": f"{theirs}.modulation", f"layers.{stage}.downsample": downsample}
    return {**names, f"layers.{stage}": f"layers.{stage}"} if last_block else names


ENDS = {
    "hf": {"patch_embed": "focalnet.embeddings", "norm": "focalnet.layernorm", "pool": "focalnet.pooler"},
    "official": {"patch_embed": "patch_embed", "norm": "norm", "pool": "avgpool"},
    "timm": {"patch_embed": "stem", "norm": "norm", "pool": "head.global_pool"},
}


@pytest.mark.parametrize("name", WITH_ACTIVATIONS)
def test_activations_and_gradients_between_the_layers(name):
    fixture = load(name)
    layout = layout_of(fixture)
    model, seen, names = make_model(fixture), {}, dict(ENDS[layout])
    record(model.patch_embed, "patch_embed", seen)
    record(model.norm, "norm", seen)
    for s, stage in enumerate(model.layers):
        for b, block in enumerate(stage.blocks):
            record(block, f"layers.{s}.blocks.{b}", seen)
            record(block.modulation, f"layers.{s}.blocks.{b}.modulation", seen)
            names |= names_of_parts(layout, s, b, last_block=block is stage.blocks[-1])
        if stage.downsample is not None:
            record(stage.downsample, f"layers.{s}.downsample", seen)
    logits, cache = model.forward(fixture["input"])
    dlogits = cross_entropy_backward(cross_entropy_forward(logits, fixture["labels"])[1])
    model.backward(dlogits, cache)
    seen["act", "pool"], seen["actgrad", "pool"] = cache.head.x, model.head.backward(dlogits, cache.head)
    for s, stage in enumerate(model.layers):  # what timm calls a stage ends with its last block
        for kind in ("act", "actgrad"):
            seen[kind, f"layers.{s}"] = seen[kind, f"layers.{s}.blocks.{len(stage.blocks) - 1}"]
    compared = set()
    for (kind, ours), value in seen.items():
        theirs = f"{kind}/{names[ours]}"
        if theirs in fixture:
            tolerance = VALUE if kind == "act" else GRADIENT
            np.testing.assert_allclose(like_theirs(value, fixture[theirs], layout), fixture[theirs], **tolerance)
            compared.add(theirs)
    inside = {key for key in fixture if key.endswith((".modulation.f", ".modulation.h"))}  # tested below
    assert compared | inside == {key for key in fixture if key.startswith("act")}


def like_theirs(value, recorded, layout):
    """A map (B, H, W, C) as the recording code keeps it: tokens (B, H*W, C), or channels first."""
    if value.ndim == 4 and layout == "timm":
        value = value.transpose(0, 3, 1, 2)
    return value.reshape(recorded.shape)


def test_official_activations_are_in_the_cache():
    fixture = load("ms_srf_three_stage")
    _, cache = make_model(fixture).forward(fixture["input"])
    for s, stage in enumerate(cache.layers):
        for b, block in enumerate(stage.blocks):
            seen, name = block.modulation, f"act/layers.{s}.blocks.{b}"
            ctx = seen.context.levels[0].conv.x
            f = np.concatenate([seen.q, ctx, seen.gates], axis=-1)
            np.testing.assert_allclose(f, fixture[f"{name}.modulation.f"], **VALUE)
            np.testing.assert_allclose(seen.modulator.transpose(0, 3, 1, 2), fixture[f"{name}.modulation.h"], **VALUE)


def test_timm_features_are_in_the_cache():
    fixture = load("timm_lrf_features")
    model = make_model(fixture)
    _, cache = model.forward(fixture["input"])
    for s, features in enumerate(cache.stage_maps):
        np.testing.assert_allclose(features.transpose(0, 3, 1, 2), fixture[f"timm_intermediate/{s}"], **VALUE)
    features = model.forward_features(fixture["input"])
    np.testing.assert_allclose(features.transpose(0, 3, 1, 2), fixture["timm_final_feature"], **VALUE)
    np.testing.assert_allclose(features.mean(axis=(1, 2)), fixture["timm_pre_logits"], **VALUE)


def test_timm_head_of_several_layers_is_refused_and_the_body_before_it_is_the_same():
    """timm can put pool, LayerNorm, Linear, tanh, Linear behind a FocalNet; here that head is put together by hand."""
    fixture = load(TIMM_HEAD)
    state, expected = tensors(fixture, "param"), tensors(fixture, "grad")
    with pytest.raises(ValueError, match=r"timm's head of several layers .* has no counterpart here"):
        make_model(fixture)

    model = FocalNet(config_of(fixture), init="zeros", dtype="float64")
    body = {name: value for name, value in state.items() if not name.startswith("head.")}
    end = {"norm.weight": np.ones(16), "norm.bias": np.zeros(16)}
    interop.load_state_dict(
        model, {**body, **end, "head.fc.weight": np.zeros((7, 16)), "head.fc.bias": np.zeros(7)}, layout="timm"
    )
    x, stem_cache = model.patch_embed.forward(fixture["input"].transpose(0, 2, 3, 1))
    caches = []
    for stage in model.layers:
        x, cache = stage.forward(x)
        caches.append(cache)
    np.testing.assert_allclose(x.transpose(0, 3, 1, 2), fixture["timm_final_feature"], **VALUE)
    pooled, pool_cache = model.ops.mean_pool.forward(x)
    y, norm_cache = layer_norm_forward(pooled, state["head.norm.weight"], state["head.norm.bias"], 1e-5)
    hidden, hidden_cache = linear_forward(y, state["head.pre_logits.fc.weight"].T, state["head.pre_logits.fc.bias"])
    hidden = np.tanh(hidden)
    np.testing.assert_allclose(hidden, fixture["timm_pre_logits"], **VALUE)
    logits, fc_cache = linear_forward(hidden, state["head.fc.weight"].T, state["head.fc.bias"])
    np.testing.assert_allclose(logits, fixture["logits"], **VALUE)

    dlogits = cross_entropy_backward(cross_entropy_forward(logits, fixture["labels"])[1])
    dhidden, dweight, dbias = linear_backward(dlogits, fc_cache)
    head = {"head.fc.weight": dweight.T, "head.fc.bias": dbias}
    dy, dweight, dbias = linear_backward(dhidden * (1 - hidden**2), hidden_cache)
    head |= {"head.pre_logits.fc.weight": dweight.T, "head.pre_logits.fc.bias": dbias}
    dpooled, head["head.norm.weight"], head["head.norm.bias"] = layer_norm_backward(dy, norm_cache)
    dx = model.ops.mean_pool.backward(dpooled, pool_cache)
    for stage, cache in zip(reversed(model.layers), reversed(caches), strict=True):
        dx = stage.backward(dx, cache)
    dx = model.patch_embed.backward(dx, stem_cache)
    np.testing.assert_allclose(dx.transpose(0, 3, 1, 2), fixture["grad_input"], **GRADIENT)
    gradients = {**interop.state_dict(model, layout="timm", grads=True), **head}
    assert gradients.keys() - {"norm.weight", "norm.bias"} == expected.keys()
    for name, gradient in expected.items():
        np.testing.assert_allclose(gradients[name], gradient, **GRADIENT, err_msg=name)
