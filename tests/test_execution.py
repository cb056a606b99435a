"""How a network computes, which changes nothing of what it computes: tables of operations, levels computed twice."""

import gc
import tracemalloc

import numpy as np
import pytest

from minifocal import FocalNet, check_layer, create_model, ops
from minifocal.arrays import random_generator
from minifocal.errors import InputError
from minifocal.functional.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minifocal.layers.focal_context import RecomputedContextCache
from minifocal.models.config import FocalNetConfig
from minifocal.models.summary import summarize
from minifocal.ops import REFERENCE, get_ops, list_ops
from minifocal.threads import thread_count

SHAPE = {"image_size": (24, 16), "patch_size": 2, "in_chans": 2, "num_classes": 3, "embed_dim": 6, "mlp_ratio": 1.0}
LEVELS = {"depths": (1, 2), "focal_levels": (2, 3), "focal_windows": (3, 5), "drop_path_rate": 0.3}


def network(modulation="focal", ops="auto", recompute_levels=False, **overrides):
    config = FocalNetConfig(**{**SHAPE, **LEVELS, "modulation": modulation, **overrides})
    return FocalNet(config, seed=1, init="glorot", dtype="float64", ops=ops, recompute_levels=recompute_levels)


def gradients(model):
    images = random_generator(2).standard_normal((3, 2, 24, 16))
    logits, cache = model.forward(images, random_generator(3))
    loss, loss_cache = cross_entropy_forward(logits, np.array([2, 0, 1]))
    dimages = model.backward(cross_entropy_backward(loss_cache), cache)
    return {"loss": loss, "images": dimages, **{name: p.grad for name, p in model.named_parameters()}}, cache


# Levels computed twice


@pytest.mark.parametrize("ops", list_ops())
@pytest.mark.parametrize("modulation", ["focal", "sigmoid_gate"])
def test_levels_computed_twice_give_the_same_bits(modulation, ops):
    (kept, _), (recomputed, cache) = (gradients(network(modulation, ops, twice)) for twice in (False, True))
    assert all(np.array_equal(recomputed[name], kept[name]) for name in kept)
    block = cache.layers[1].blocks[1].modulation
    context = block.context if modulation == "focal" else block.gather.levels
    assert isinstance(context, RecomputedContextCache)
    assert np.array_equal(cache.gates[1][1], block.gates)


def test_levels_computed_twice_take_less_memory():
    """Two of the three maps that each level keeps are its own; ctx_0 and the gates stay, as parts of f's result."""
    kept, recomputed = (network(recompute_levels=twice) for twice in (False, True))
    maps = 8 * 6 * (2 * 12 * 8 + 2 * 2 * 3 * 6 * 4)  # bytes times channels times tokens and levels of both stages
    saved = summarize(kept).cache_bytes - summarize(recomputed).cache_bytes
    assert saved == pytest.approx(2 * maps, rel=0.05)
    # For each of three images; but the levels of the block under way are there again, and their gradients.
    assert peak_of_training(kept) - peak_of_training(recomputed) > 0.4 * 3 * saved


def peak_of_training(model):
    model.use_ops(REFERENCE)
    gradients(model)
    gc.collect()
    tracemalloc.start()
    gradients(model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("twice", [False, True])
def test_every_way_to_build_a_network_takes_the_option(twice):
    small = {"embed_dim": 4, "depths": (1, 1), "focal_levels": (1, 1), "focal_windows": (3, 3), "num_classes": 2}
    for model in (
        FocalNet.build(image_size=8, patch_size=4, hidden_size=4, num_layers=1, recompute_levels=twice),
        create_model("focalnet_tiny_srf", image_size=16, recompute_levels=twice, **small),
    ):
        flags = [layer.recompute for layer in model.layers_inside() if hasattr(layer, "recompute")]
        assert set(flags) == {twice}


# Tables


def test_auto_is_the_fastest_table_that_is_present():
    assert list_ops()[:2] == ["reference", "numpy"]
    assert get_ops("auto") is get_ops(list_ops()[-1])
    assert network().ops is get_ops("auto")


def test_all_layers_inside_compute_with_the_same_table():
    model = network(ops="numpy")
    assert {layer.ops.name for layer in model.layers_inside()} == {"numpy"}
    model.use_ops(REFERENCE)
    assert {layer.ops.name for layer in model.layers_inside()} == {"reference"}


def test_a_table_for_the_cpu_does_not_move_to_a_gpu(monkeypatch):
    monkeypatch.setattr("minifocal.layers.base.to_device", lambda array, device: array)
    monkeypatch.setattr("minifocal.models.focalnet.check_device", lambda device: None)
    monkeypatch.setattr("minifocal.models.focalnet.use_device", lambda device: None)
    named, chosen = network(ops="numpy"), network(ops="auto")
    with pytest.raises(InputError, match=r'ops "numpy" computes on the CPU, but the device is cuda; use ops "auto"'):
        named.to_device("cuda")
    chosen.to_device("cuda")
    assert {layer.ops.name for layer in chosen.layers_inside()} == {"cuda"}
    chosen.to_device("cpu")
    assert chosen.ops is get_ops("auto")


def test_a_move_to_a_device_that_is_not_there_changes_nothing():
    model = network(ops="auto")
    with pytest.raises(InputError, match="device"):
        model.to_device("cuda:99")
    assert model.ops is get_ops("auto")


def test_numba_is_not_chosen_where_its_vectors_are_slow(monkeypatch):
    vectors = pytest.importorskip("minifocal.fused.numba_vectors")
    monkeypatch.setattr(vectors, "are_fast_here", lambda: False)
    ops._fastest.cache_clear()
    assert get_ops("auto").name == "numpy"
    assert get_ops("numba").name == "numba"
    ops._fastest.cache_clear()


def test_a_numba_whose_compiler_cannot_be_loaded_is_a_missing_one(monkeypatch):
    def fail(name):
        raise OSError("libllvmlite.so: cannot open\nand more")

    monkeypatch.setattr(ops.importlib, "import_module", fail)
    with pytest.raises(InputError, match=r'^ops "numba" needs Numba: libllvmlite.so: cannot open; install'):
        ops._load.__wrapped__("numba")


def test_the_complex_step_is_refused_where_kernels_take_real_numbers_only():
    x = random_generator(1).standard_normal((2, 12, 8, 6))
    with pytest.raises(InputError, match=r'complex step goes through ops "reference" only, .* computes with "numpy"'):
        check_layer(network(ops="numpy").layers[0].blocks[0], x, method="complex")
    assert check_layer(network(ops="reference").layers[0].blocks[0], x, method="complex").passed
    assert check_layer(network(ops="numpy").layers[0].blocks[0], x).passed


def test_an_unknown_table_is_refused_by_name():
    with pytest.raises(InputError, match="ops must be one of auto, reference, numpy, numba, cuda, got 'fast'"):
        network(ops="fast")


# Memory in words


def test_a_summary_says_what_training_takes():
    values = 8 * network().count_parameters()
    reference, fast = summarize(network(ops="reference")), summarize(network(ops="numpy"))
    assert reference.state_bytes == 3 * values
    assert reference.training_memory.endswith("of caches for each image of the batch")
    assert fast.state_bytes == (3 + thread_count()) * values  # each thread has gradients of its own
    assert fast.images_at_once % thread_count() == 0
    assert fast.training_memory.endswith(f"for each image, of at most {fast.images_at_once} at a time")
    assert fast.cache_bytes == reference.cache_bytes
