"""Corners of the network and its blocks, each found by a mistake there that no test noticed."""

from types import SimpleNamespace

import numpy as np
import pytest

from minifocal.arrays import random_generator
from minifocal.errors import InputError
from minifocal.functional.activations import gelu_forward, sigmoid_forward
from minifocal.functional.box_mean import box_mean_forward
from minifocal.gradcheck import check_layer
from minifocal.layers.drop_path import DropPath
from minifocal.layers.focal_context import FocalContext
from minifocal.models import focalnet
from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import BUILD_DEFAULTS, SHARD_ELEMENTS, FocalNet

SMALL = {
    "image_size": (24, 16), "patch_size": 4, "in_chans": 2, "num_classes": 5, "embed_dim": 6, "depths": (1, 2),
    "mlp_ratio": 2.0, "focal_levels": (2, 1), "focal_windows": (3, 5),
}  # fmt: skip
TINY = {
    "image_size": 6, "patch_size": 3, "in_channels": 2, "hidden_size": 4, "num_layers": 1, "focal_levels": 2,
    "ops": "reference",
}  # fmt: skip
EVERY_PART = {"use_layerscale": True, "use_postln_in_modulation": True}


def network(ops="reference", recompute_levels=False, **overrides):
    config = FocalNetConfig(**{**SMALL, **overrides})
    return FocalNet(config, init="lecun", dtype="float64", ops=ops, recompute_levels=recompute_levels)


def images(count=3, seed=2):
    return random_generator(seed).standard_normal((count, 2, 24, 16))


# What reaches every layer


@pytest.mark.parametrize("options", [EVERY_PART, {"modulation": "sigmoid_gate"}, {"modulation": "box_mean"}])
def test_every_layer_computes_with_the_table_of_the_network(options):
    model = network("numpy", **options)
    assert all(layer.ops is model.ops for layer in model.layers_inside())


@pytest.mark.parametrize("modulation", ["focal", "sigmoid_gate", "box_mean"])
def test_every_dropout_has_the_rate_of_the_configuration_and_every_block_its_own(modulation):
    model = network(modulation=modulation, drop_rate=0.2, drop_path_rate=0.4)
    rates = [layer.rate for layer in model.layers_inside() if isinstance(layer, DropPath)]
    stem, *rest = rates
    assert stem == 0.2
    np.testing.assert_allclose(np.reshape(rest, (3, 3)), [[0.2, 0.2, path] for path in (0.0, 0.2, 0.4)], atol=1e-7)


def test_a_network_keeps_its_levels_and_has_seed_0_unless_told_otherwise():
    config = FocalNetConfig(**SMALL)
    model = FocalNet(config, ops="reference")
    told = FocalNet(config, ops="reference", seed=0, recompute_levels=False)
    for name, value in told.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], value, err_msg=name)
    for net, again in ((model, False), (told, False), (network(recompute_levels=True), True)):
        contexts = [layer for layer in net.layers_inside() if isinstance(layer, FocalContext)]
        assert [context.recompute for context in contexts] == [again] * 3
        assert not any(hasattr(layer, "recompute") for layer in net.layers_inside() if layer not in contexts)


# Modulations and blocks


def shaken(layer):
    """The layer with noise on every parameter, so that no one or zero hides a mistake."""
    rng = random_generator(7)
    for parameter in layer.parameters():
        parameter.data += 0.3 * rng.standard_normal(parameter.data.shape)
    return layer


def modulated(modulation, **options):
    """A modulation of the first stage, with three levels; a map, what comes of it and what there is to see."""
    model = shaken(network(modulation=modulation, focal_levels=(3, 1), focal_windows=(5, 3), **options))
    layer = model.layers[0].blocks[0].modulation
    x = random_generator(8).standard_normal((2, 5, 4, 6))
    return layer, x, *layer.forward(x)


def same(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def levels_of(chain, ctx):
    """The focal levels one after the other, widest last."""
    for (conv,) in chain.focal_layers:
        ctx = gelu_forward(conv(ctx))[0]
        yield ctx


@pytest.mark.parametrize("options", [{}, {"use_postln_in_modulation": True}, {"normalize_modulator": True}])
def test_focal_modulation_is_its_formula(options):
    layer, x, y, seen = modulated("focal", **options)
    q, ctx, gates = np.split(layer.f(x), [6, 12], axis=-1)
    levels = list(levels_of(layer.context, ctx))
    levels.append(gelu_forward(levels[-1].mean(axis=(1, 2), keepdims=True))[0])
    aggregate = sum(gates[..., [level]] * ctx for level, ctx in enumerate(levels))
    modulator = layer.h(aggregate / 4 if "normalize_modulator" in options else aggregate)
    product = q * modulator
    same(y, layer.proj(layer.ln(product) if layer.ln else product))
    for got, expected in ((seen.q, q), (seen.gates, gates), (seen.modulator, modulator)):
        same(got, expected)


@pytest.mark.parametrize("modulation", ["sigmoid_gate", "box_mean"])
def test_the_modulations_of_edifice_are_their_formulas(modulation):
    layer, x, y, seen = modulated(modulation)
    if modulation == "box_mean":
        levels = [gelu_forward(linear(x))[0] for linear in layer.gather.levels]
        levels = [box_mean_forward(z, width)[0] for z, width in zip(levels, (1, 10, 15), strict=True)]
    else:
        levels = levels_of(layer.gather.levels, layer.gather.context(x))
    ctx, q, gates = sum(levels), layer.query(x), sigmoid_forward(layer.gate(x))[0]
    same(y, layer.proj(q * gates * ctx))
    for got, expected in ((seen.q, q), (seen.gates, gates), (seen.ctx, ctx), (seen.modulator, gates * ctx)):
        same(got, expected)


@pytest.mark.parametrize("modulation", ["focal", "sigmoid_gate", "box_mean"])
@pytest.mark.parametrize("postln", [False, True])
def test_a_block_drops_what_its_modulation_and_its_mlp_give(modulation, postln):
    """By three draws: of the modulation's result, of the hidden layer and of the MLP's result."""
    block = network(modulation=modulation, drop_rate=0.3, use_postln=postln).layers[0].blocks[0]
    rng, again = random_generator(9), random_generator(9)
    block.forward(np.ones((2, 5, 4, 6)), rng)
    for channels in (6, 12, 6):
        again.random((2, 5, 4, channels))
    assert rng.bit_generator.state == again.bit_generator.state


def test_a_block_hands_its_activation_to_its_mlp():
    block = network(mlp_act="gelu_pytorch_tanh").layers[0].blocks[0]
    assert block.mlp.act == "gelu_tanh"


@pytest.mark.parametrize("options", [{"use_postln": True}, {"num_classes": 0}])
def test_the_way_back_of_a_network_is_right_and_has_the_shape_of_its_images(options):
    model, x = shaken(network(**options)), images(2)
    assert model.backward(np.ones_like(model(x)), model.forward(x)[1]).shape == x.shape
    assert check_layer(model, x, directions=1, tolerance=1e-7).passed


# What build passes on


def test_the_defaults_of_build_are_edifices():
    assert BUILD_DEFAULTS == {
        "image_size": 224, "patch_size": 16, "in_channels": 3, "hidden_size": 256, "num_layers": 4,
        "focal_levels": 3, "focal_kernel": 3, "num_classes": None, "modulation": "sigmoid_gate", "mlp_ratio": 4.0,
        "drop_path_rate": 0.0, "init": "glorot", "seed": 0, "dtype": "float32", "device": "cpu", "ops": "auto",
        "recompute_levels": False, "precision": "float32",
    }  # fmt: skip


def test_build_passes_on_what_is_no_part_of_the_configuration(monkeypatch):
    seen = {}
    monkeypatch.setattr(FocalNet, "__init__", lambda model, config, **options: seen.update(options, config=config))
    FocalNet.build()
    edifices = FocalNetConfig(
        image_size=224, patch_size=16, in_chans=3, num_classes=0, embed_dim=256, depths=(4,), mlp_ratio=4.0,
        drop_path_rate=0.0, patch_norm=False, focal_levels=(3,), focal_windows=(3,), modulation="sigmoid_gate",
    )  # fmt: skip
    assert seen == {
        "config": edifices, "seed": 0, "init": "glorot", "dtype": "float32", "device": "cpu", "ops": "auto",
        "recompute_levels": False, "precision": "float32",
    }  # fmt: skip
    options = {
        "seed": 4, "init": "lecun", "dtype": "float64", "device": "cuda:1", "ops": "numpy", "recompute_levels": True,
        "precision": "tf32",
    }  # fmt: skip
    FocalNet.build(**options)
    assert seen == {"config": edifices, **options}


def test_a_network_without_a_classifier_takes_the_gradient_of_its_features():
    model = FocalNet.build(**TINY)
    features, cache = model.forward(np.zeros((3, 2, 6, 6), "float32"))
    assert model.backward(np.ones_like(features), cache).shape == (3, 2, 6, 6)


def test_a_device_that_is_not_there_is_refused_before_weights_are_drawn(monkeypatch):
    def refuse(device):
        raise InputError(f"no {device}")

    monkeypatch.setattr(focalnet, "check_device", refuse)
    monkeypatch.setattr(focalnet, "get_initializer", None)
    with pytest.raises(InputError, match=r"^no cuda:7$"):
        FocalNet(FocalNetConfig(**SMALL), device="cuda:7")


@pytest.mark.parametrize("name", ["in_channels", "hidden_size", "num_layers", "focal_kernel"])
def test_build_names_its_own_option_where_it_is_no_positive_integer(name):
    assert FocalNet.build(**{**TINY, name: 1, "focal_levels": 1})
    for value in (0, 1.5):
        with pytest.raises(InputError, match=rf"^{name} must be an integer of at least 1, got {value}"):
            FocalNet.build(**{**TINY, name: value})


def test_build_tells_the_first_of_several_faults():
    wrong = {"in_channels": 0, "hidden_size": 0, "num_layers": 0, "focal_kernel": 0}
    while wrong:
        with pytest.raises(InputError, match=f"^{next(iter(wrong))} must be"):
            FocalNet.build(**{**TINY, **wrong})
        del wrong[next(iter(wrong))]


def test_a_name_that_build_does_not_know_is_refused():
    with pytest.raises(InputError, match="colour"):
        FocalNet.build(colour="red")


def test_no_network_is_built_of_what_is_no_configuration():
    with pytest.raises(InputError, match=r"^config must be a FocalNetConfig, got dict"):
        FocalNet(SMALL, ops="reference")
    with pytest.raises(InputError, match=r"^dtype must be one of float32, float64, got 'float16'"):
        FocalNet(FocalNetConfig(**SMALL), dtype="float16", ops="reference")


def test_without_a_configuration_the_official_defaults_are_taken():
    assert FocalNet(init="zeros", ops="reference").config == FocalNetConfig()


# Checkpoints


class Saved:
    """A checkpoint in memory, which notes what it is restored to."""

    def __init__(self, description, weights=None):
        self.description, self.weights = description, weights

    def restore(self, model):
        self.was_zero = not any(array.any() for name, array in model.state_dict().items() if "norm" not in name)
        model.load_state_dict(self.weights)


def test_a_checkpoint_becomes_the_network_that_it_describes():
    model = network()
    saved = Saved(model.describe(), model.state_dict())
    again = FocalNet.from_checkpoint(saved, ops="numpy")
    assert saved.was_zero  # nothing is drawn that is overwritten next
    assert again.ops.name == "numpy"
    assert again.dtype == "float64"
    np.testing.assert_allclose(again(images()), model(images()), rtol=0, atol=1e-12)


def test_a_checkpoint_is_restored_where_and_as_it_is_told(monkeypatch):
    seen, saved = {}, Saved(network().describe())
    monkeypatch.setattr(FocalNet, "__init__", lambda model, config, **options: seen.update(options))
    monkeypatch.setattr(Saved, "restore", lambda saved, model: None)
    FocalNet.from_checkpoint(saved, device="cuda:1", ops="cuda", precision="tf32")
    assert seen == {"init": "zeros", "dtype": "float64", "device": "cuda:1", "ops": "cuda", "precision": "tf32"}


@pytest.mark.parametrize("left_out", ["architecture", "config", "dtype"])
def test_a_description_that_is_none_of_a_focalnet_is_refused(left_out):
    description = network().describe()
    del description[left_out]
    with pytest.raises(InputError, match=r"^the checkpoint does not describe a FocalNet, but "):
        FocalNet.from_checkpoint(Saved(description))


# Moving


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Let any device be there, and arrays stay where they are; give the devices that were made this thread's own."""
    used = []
    monkeypatch.setattr("minifocal.layers.base.to_device", lambda array, device: array)
    monkeypatch.setattr(focalnet, "check_device", lambda device: None)
    monkeypatch.setattr(focalnet, "use_device", used.append)
    return used


def test_a_table_that_was_chosen_follows_and_one_that_was_named_stays(pretended_gpu):
    chosen, named = network("auto"), network("numpy")
    chosen.to_device("cuda:1")
    assert {layer.ops.name for layer in chosen.layers_inside()} == {"cuda"}
    with pytest.raises(InputError, match=r'^ops "numpy" computes on the CPU, but the device is cuda:1; use ops "auto"'):
        named.to_device("cuda:1")
    assert pretended_gpu == ["cuda:1"]
    named.to_device("cpu")
    assert named.ops.name == "numpy"


def test_a_rounded_network_stays_rounded_when_it_moves(pretended_gpu):
    model = FocalNet(FocalNetConfig(**SMALL), precision="tf32")
    model.to_device("cuda")
    assert (model.ops.name, model.ops.precision) == ("cuda", "tf32")


def test_a_network_for_a_device_moves_there_at_once(pretended_gpu):
    FocalNet(FocalNetConfig(**SMALL), device="cpu")
    assert pretended_gpu == []
    FocalNet(FocalNetConfig(**SMALL), device="cuda:1")
    assert pretended_gpu == ["cuda:1"]


def test_a_device_that_is_not_there_is_refused_before_anything_changes():
    for model in (network("auto"), network("numpy")):
        table = model.ops
        with pytest.raises(InputError, match=r"^device must be"):
            model.to_device("tpu")
        assert {id(layer.ops) for layer in model.layers_inside()} == {id(table)}


# Images that threads share


@pytest.fixture
def parts(monkeypatch):
    """Let three threads share a batch, one after the other; give how many images were inferred at a time."""
    sizes, infer = [], FocalNet._infer

    def noted(model, x):
        sizes.append(len(x))
        return infer(model, x)

    monkeypatch.setattr(FocalNet, "_infer", noted)
    monkeypatch.setattr(focalnet, "thread_count", lambda: 3)
    monkeypatch.setattr("minifocal.threads.thread_count", lambda: 3)

    def one_after_the_other(tasks):
        assert tasks, "there is nothing to run"
        return [task() for task in tasks]

    monkeypatch.setattr(focalnet, "run_together", one_after_the_other)
    return sizes


@pytest.mark.parametrize(("count", "expected"), [(2, [2]), (3, [1, 1, 1]), (6, [2, 2, 2]), (7, [2, 2, 2, 1])])
def test_threads_take_equal_parts_and_the_images_left_over_go_together(parts, count, expected):
    model, reference = network("numpy"), network("reference")
    x = images(count)
    y = model(x)
    assert parts == expected
    parts.clear()
    np.testing.assert_allclose(y, reference(x), rtol=0, atol=1e-12)
    assert parts == [count]  # a table that is not for threads


def test_a_share_goes_in_shards_of_what_memory_is_meant_for(parts, monkeypatch):
    model, x = network("numpy"), images(13)
    expected = network("reference")(x)
    parts.clear()
    monkeypatch.setattr(focalnet, "SHARD_ELEMENTS", 3 * 24 * 6)  # three images of 24 tokens of 6 channels
    np.testing.assert_allclose(model(x), expected, rtol=0, atol=1e-12)
    assert sorted(parts) == [1, 2, 2, 2, 2, 2, 2]


def test_an_image_that_is_not_finite_has_its_number_in_the_batch_whoever_computes_it(parts):
    x = images(7)
    x[5, 1, 2, 3] = np.nan
    with pytest.raises(InputError, match="image 5 "):
        network("numpy")(x)
    assert parts == []


def test_the_size_of_a_shard_follows_from_tokens_and_channels():
    model = SimpleNamespace(config=SimpleNamespace(patch_size=3, embed_dim=10))
    size = FocalNet.shard_size
    assert SHARD_ELEMENTS == 640_000
    assert size(model, (2, 5, 60, 90)) == 640_000 // (600 * 10)
    assert size(model, (2, 5, 61, 91)) == 640_000 // (616 * 10)  # 5551 pixels by 9
    assert size(model, (2, 5, 3000, 9000)) == 1
    assert size(model, (2, 5, 2, 2)) == 640_000  # smaller than a patch: refused elsewhere


# What is shown


def test_a_summary_is_of_the_size_that_is_asked_for():
    model = network()
    assert model.summary() == model.summary((24, 16))
    assert model.summary((48, 32)) != model.summary()
