"""A recorded pass is the pass: every call in its order, with the arrays that went in and came out."""

import cProfile
import sys

import numpy as np
import pytest

import minifocal as mf
from minifocal.errors import InputError
from minifocal.functional.add import add
from minifocal.viz.recorder import arrays_of, record

SHAPE = {
    "image_size": (12, 8),
    "patch_size": 2,
    "in_chans": 2,
    "num_classes": 3,
    "embed_dim": 4,
    "depths": (2, 1),
    "focal_levels": (2, 1),
    "focal_windows": (3, 3),
}
MODULATIONS = ("focal", "sigmoid_gate", "box_mean")
OPTIONS = {
    "plain": {},
    "all": {
        "use_conv_embed": True,
        "use_layerscale": True,
        "layerscale_value": 0.5,
        "use_postln": True,
        "drop_path_rate": 0.3,
        "drop_rate": 0.2,
        "mlp_act": "gelu_pytorch_tanh",
    },
    "in the modulation": {"use_postln_in_modulation": True, "normalize_modulator": True},
}


def network(modulation, options="plain", **rest):
    config = mf.FocalNetConfig(modulation=modulation, **SHAPE, **OPTIONS[options])
    return mf.FocalNet(config, **{"dtype": "float64", "init": "glorot", "ops": "reference", **rest})


@pytest.fixture
def images():
    return np.random.default_rng(0).standard_normal((1, 2, 12, 8))


@pytest.mark.parametrize("options", ["plain", "all"])
@pytest.mark.parametrize("modulation", MODULATIONS)
def test_nothing_is_other_than_without_a_recorder(images, modulation, options):
    alone = network(modulation, options)
    logits, cache = alone.forward(images)
    loss, loss_cache = mf.cross_entropy_forward(logits, np.array([2]))
    dimages = alone.backward(mf.cross_entropy_backward(loss_cache), cache)

    model = network(modulation, options)
    for parameter in model.parameters():
        parameter.grad += 1.0  # of an earlier pass: cleared
    recording = record(model, images, np.array([2]))
    np.testing.assert_array_equal(recording.logits, logits)
    assert recording.loss == float(loss)
    np.testing.assert_array_equal(recording.calls[-1].result, dimages)
    for here, there in zip(model.parameters(), alone.parameters(), strict=True):
        np.testing.assert_array_equal(here.grad, there.grad)


def test_the_tree_of_calls_is_the_tree_of_layers(images):
    recording = record(network("focal"), images, np.array([0]))
    forward, loss, loss_back, backward = recording.calls
    assert (loss.operation, loss.way, loss_back.operation, loss_back.way) == (
        "cross_entropy",
        "forward",
        "cross_entropy",
        "backward",
    )
    assert [(call.path, call.operation) for call in forward.inside] == [
        ("patch_embed", ""),
        ("layers.0", ""),
        ("layers.1", ""),
        ("norm", "layer_norm"),
        ("", "mean_pool"),
        ("head", "linear"),
    ]
    block = forward.inside[2].inside[0]
    assert [(call.path.removeprefix("layers.1.blocks.0."), call.operation) for call in block.inside] == [
        ("norm1", "layer_norm"),
        ("modulation", ""),
        ("layers.1.blocks.0", "add"),
        ("norm2", "layer_norm"),
        ("mlp", ""),
        ("layers.1.blocks.0", "add"),
    ]
    context = next(call for call in block.walk() if call.path.endswith("context") and not call.operation)
    assert [[inner.operation for inner in call.inside] for call in context.inside] == [
        ["depthwise_conv", "gelu"],
        ["gelu"],
    ]

    def mirrored(call):  # what has a way back, in turn
        return [(c.path, c.operation) for c in call.walk() if c.inside == [] and c.function is not add]

    assert mirrored(backward) == mirrored(forward)[::-1]


def test_what_goes_in_is_what_came_out_before(images):
    recording = record(network("sigmoid_gate"), images, np.array([0]))
    made = {id(array) for call in recording.walk() for array in arrays_of(call.result)}
    parameters = {id(p.data) for p in recording.model.parameters()}
    inside_operations = {id(inner) for call in recording.walk() if call.operation for inner in call.inside}
    outside = [
        (call.path, name)
        for call in recording.walk()
        if id(call) not in inside_operations  # an operation may add and multiply on its own
        for name, value in call.arguments.items()
        if name != "cache"
        for array in arrays_of(value)
        if id(array) not in made | parameters
    ]
    # The images; the same, channels last; and labels. Everything else was made by a call that was recorded.
    assert outside == [("", "x"), ("patch_embed", "x"), ("patch_embed", "x"), ("", "labels")]


def test_the_profiler_from_before_is_put_back_even_after_an_error(images):
    def before(*_):
        return None

    sys.setprofile(before)
    try:
        record(network("focal"), images, np.array([0]))
        assert sys.getprofile() is before
        with pytest.raises(InputError):
            record(network("focal"), images[:, :1], np.array([0]))
        assert sys.getprofile() is before
    finally:
        sys.setprofile(None)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="cProfile listens by sys.monitoring")
def test_a_pass_is_recorded_under_cprofile(images):
    profile = cProfile.Profile()
    profile.enable()
    try:
        recording = record(network("focal"), images, np.array([0]))
    finally:
        profile.disable()
    assert len(recording.calls) == 4
    assert sys.getprofile() is None


@pytest.mark.parametrize(
    ("other", "message"),
    [({"dtype": "float32"}, "float32"), ({"ops": "numpy"}, '"numpy"')],
)
def test_another_precision_or_table_is_refused(images, other, message):
    with pytest.raises(InputError, match=message):
        record(network("focal", **other), images, np.array([0]))


def test_an_answer_that_is_not_finite_is_refused(images):
    model = network("focal")
    model.layers[0].blocks[0].mlp.fc2.weight.data *= 1e200
    model.layers[0].blocks[0].mlp.fc1.weight.data *= 1e200
    with pytest.raises(InputError, match="not finite"):
        record(model, images, np.array([0]))


def test_a_network_without_a_classifier_is_refused(images):
    config = mf.FocalNetConfig(modulation="focal", **{**SHAPE, "num_classes": 0})
    with pytest.raises(InputError, match="no classifier"):
        record(mf.FocalNet(config, dtype="float64", ops="reference"), images, np.array([0]))
