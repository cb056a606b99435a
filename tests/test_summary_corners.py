"""A network's table at its corners: the text to the last letter, and the memory and the sizes row by row."""

from dataclasses import replace

import numpy as np
import pytest

from minifocal import FocalNet, FocalNetConfig, InputError
from minifocal.models import summary as module
from minifocal.models.complexity import multiply_adds
from minifocal.models.summary import Summary, SummaryRow, summarize

ROWS = (
    SummaryRow("stem", (5, 4, 3), 1_234, 5_678_901, 250_000),
    SummaryRow("layers.0.blocks.0.mlp", (7,), 2, 30, 1_500_000),
)
TABLE = """\
a network
layer                      output shape    parameters     multiply-adds    cache MB
stem                          5 x 4 x 3         1,234         5,678,901       0.250
layers.0.blocks.0.mlp                 7             2                30       1.500
total                                           1,236         5,678,931       1.750
training: 3,000 MB for weights, gradients and momentum, and 1.8 MB of caches for each image"""


@pytest.mark.parametrize(("at_once", "end"), [(None, " of the batch"), (12, ", of at most 12 at a time")])
def test_the_table_is_this_text(at_once, end):
    assert str(Summary(ROWS, "a network", 3_000_000_000, at_once)) == TABLE + end


OPTIONS = {
    "image_size": (24, 20), "patch_size": 4, "in_chans": 2, "num_classes": 7, "embed_dim": 6, "depths": (3, 1, 2),
    "mlp_ratio": 2.0, "focal_levels": (2, 1, 1), "focal_windows": (3, 5, 3), "use_layerscale": True,
}  # fmt: skip


def network(ops="reference", **options):
    return FocalNet(FocalNetConfig(**{**OPTIONS, **options}), seed=0, init="lecun", ops=ops)


def parts_of(cache):
    """The caches of each row, by its name, in the order of the rows."""
    parts = {"patch_embed": cache.patch_embed}
    for s, stage in enumerate(cache.layers):
        for b, block in enumerate(stage.blocks):
            parts[f"layers.{s}.blocks.{b}.modulation"] = block.modulation_branch
            parts[f"layers.{s}.blocks.{b}.mlp"] = block.mlp_branch
        parts[f"layers.{s}.blocks.{len(stage.blocks) - 1}.mlp"] = (block.mlp_branch, stage.features)
        if stage.downsample:
            parts[f"layers.{s}.downsample"] = stage.downsample
    return {**parts, "norm": cache.norm, "head": cache.head}


def owners(cache):
    """Every array that holds the memory of a tree of caches."""
    if isinstance(cache, tuple):
        return [array for part in cache for array in owners(part)]
    if not isinstance(cache, np.ndarray):
        return []
    return [cache] if cache.base is None else owners(cache.base)


@pytest.mark.parametrize("use_postln", [False, True])
@pytest.mark.parametrize("modulation", ["focal", "sigmoid_gate", "box_mean"])
def test_each_row_counts_the_memory_that_no_row_before_counted(modulation, use_postln):
    model = network(modulation=modulation, use_postln=use_postln)
    _, cache = model.forward(np.zeros((1, 2, 24, 20), "float32"))
    counted = {id(array) for parameter in model.parameters() for array in owners(parameter.data)}
    expected = {}
    for name, part in parts_of(cache).items():
        new = {id(array): array.nbytes for array in owners(part) if id(array) not in counted}
        expected[name] = sum(new.values())
        counted |= set(new)
    table = summarize(model)
    assert {row.name: row.cache_bytes for row in table.rows} == expected
    assert table.cache_bytes == sum(expected.values())


@pytest.mark.parametrize("table", ["reference", "numpy"])
def test_each_row_has_its_shape_its_parameters_and_its_multiply_adds(table):
    model = network(table)
    rows = summarize(model, (48, 36)).rows
    maps = [(12, 9, 6), (6, 4, 12), (3, 2, 24)]
    costs = multiply_adds(model.config, (48, 36))
    expected = {"patch_embed": (maps[0], model.patch_embed.count_parameters())}
    for s, (stage, depth) in enumerate(zip(model.layers, (3, 1, 2), strict=True)):
        for b in range(depth):
            block = stage.blocks[b]
            first = block.norm1.count_parameters() + block.modulation.count_parameters() + block.gamma_1.data.size
            second = block.norm2.count_parameters() + block.mlp.count_parameters() + block.gamma_2.data.size
            expected[f"layers.{s}.blocks.{b}.modulation"] = maps[s], first
            expected[f"layers.{s}.blocks.{b}.mlp"] = maps[s], second
        if s < 2:
            expected[f"layers.{s}.downsample"] = maps[s + 1], stage.downsample.count_parameters()
    expected["norm"] = maps[2], 2 * 24
    expected["head"] = (7,), 24 * 7 + 7
    assert [(row.name, row.output_shape, row.parameters) for row in rows] == [(n, *e) for n, e in expected.items()]
    assert {row.name: row.multiply_adds for row in rows} == costs


def test_the_memory_of_training_counts_what_each_thread_has_of_its_own(monkeypatch):
    monkeypatch.setattr(module, "thread_count", lambda: 5)
    monkeypatch.setattr(FocalNet, "shard_size", lambda model, shape: shape[2] // 8)
    shared, alone = summarize(network("numpy")), summarize(network("reference"))
    values = 4 * network().count_parameters()
    assert (shared.state_bytes, shared.images_at_once) == ((3 + 5) * values, 5 * 3)
    assert (alone.state_bytes, alone.images_at_once) == (3 * values, None)
    assert shared.rows == alone.rows  # the caches of the reference, whatever computes
    assert summarize(network("numpy"), (40, 36)).images_at_once == 5 * 5
    assert shared.title == alone.title == "focal network, float32, one image of 24 x 20 pixels"


def test_the_network_keeps_its_own_table_of_operations_and_computes_nothing_with_it():
    """A table of kernels would be compiled for it."""
    model = network("numpy")
    before = replace(model.ops, layer_norm=None)
    model.use_ops(before)
    assert summarize(model).rows == summarize(network("reference")).rows
    assert model.ops is before


def test_an_image_from_one_pixel_on_is_measured_and_one_beyond_32768_refused(monkeypatch):
    model = network(patch_size=1, depths=(1,), focal_levels=(0,), focal_windows=(1,))
    assert summarize(model, 1).rows[0].output_shape == (1, 1, 6)
    assert summarize(model, (1, 2)).rows[0].output_shape == (1, 2, 6)
    for size in (0, (8, 0)):
        with pytest.raises(InputError, match="image_size must be an integer of at least 1, got 0"):
            summarize(model, size)
    for size in (32769, (8, 32769)):
        with pytest.raises(InputError, match="image_size must be at most 32768, got 32769"):
            summarize(model, size)
    assert summarize(model, (1, 32768)).rows[0].output_shape == (1, 32768, 6)
