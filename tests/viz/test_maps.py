"""Maps out of caches: the right numbers under the right names, for every modulation and table."""

import numpy as np
import pytest

import minifocal as mf
from minifocal.models.config import FocalNetConfig
from minifocal.viz.maps import TokenGrid, block_maps, over_image, token_grid

SHAPE = {
    "in_chans": 2,
    "num_classes": 3,
    "embed_dim": 4,
    "depths": (1, 2),
    "focal_levels": (2, 1),
    "focal_windows": (3, 5),
}


def network(modulation, **options):
    config = FocalNetConfig(image_size=(24, 16), patch_size=4, modulation=modulation, **SHAPE)
    return mf.FocalNet(config, dtype="float64", init="lecun", **options)


@pytest.fixture
def images():
    return np.random.default_rng(0).standard_normal((2, 2, 24, 16))


def test_focal_modulation_shows_a_gate_a_level_modulator_and_product(images):
    model = network("focal", ops="reference")
    _, cache = model.forward(images)
    found = block_maps(model, cache, image=1)
    assert [(maps.name, maps.grid.size) for maps in found] == [
        ("stage 1, block 1", 4),
        ("stage 2, block 1", 8),
        ("stage 2, block 2", 8),
    ]
    first, last = found[0].maps, found[-1].maps
    assert [m.name for m in first] == ["gate 3 × 3", "gate 5 × 5", "global gate", "modulator", "query × modulator"]
    assert [m.name for m in last] == ["gate 5 × 5", "global gate", "modulator", "query × modulator"]
    seen = cache.layers[0].blocks[0].modulation
    for level in range(3):
        np.testing.assert_array_equal(first[level].values, seen.gates[1, :, :, level])
    for token in np.ndindex(6, 4):
        by_hand = sum(value**2 for value in seen.modulator[(1, *token)]) ** 0.5
        assert first[3].values[token] == pytest.approx(by_hand, rel=1e-14)
        product = seen.q[(1, *token)] * seen.modulator[(1, *token)]
        assert first[4].values[token] == pytest.approx(sum(product**2) ** 0.5, rel=1e-14)


def test_sigmoid_gates_show_the_context_of_each_level_and_one_gate(images):
    model = network("sigmoid_gate", ops="reference")
    _, cache = model.forward(images)
    first = block_maps(model, cache)[0].maps
    assert [m.name for m in first[:3]] == ["context 3 × 3", "context 5 × 5", "gate, mean of channels"]
    seen = cache.layers[0].blocks[0].modulation
    np.testing.assert_allclose(first[2].values, seen.gates[0].mean(axis=-1), rtol=1e-15)
    np.testing.assert_array_equal(first[1].values, np.linalg.norm(seen.gather.levels.levels[1].ctx[0], axis=-1))


def test_box_means_show_the_contexts_whose_sum_is_the_context(images):
    model = network("box_mean", ops="reference")
    _, cache = model.forward(images)
    last = block_maps(model, cache)[-1].maps  # one level: its context is the whole of it
    assert last[0].name == "context, mean of 1"
    seen = cache.layers[1].blocks[1].modulation
    np.testing.assert_allclose(last[0].values, np.linalg.norm(seen.ctx[0], axis=-1), rtol=1e-14)


@pytest.mark.parametrize("ops", ["numpy", "numba"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("modulation", ["focal", "sigmoid_gate", "box_mean"])
def test_every_table_shows_the_same(images, modulation, recompute, ops):
    expected = network(modulation, ops="reference")
    model = network(modulation, ops=ops, recompute_levels=recompute)
    pairs = [block_maps(net, net.forward(images)[1], image=1) for net in (expected, model)]
    for theirs, ours in zip(*pairs, strict=True):
        assert [m.name for m in theirs.maps] == [m.name for m in ours.maps]
        for there, here in zip(theirs.maps, ours.maps, strict=True):
            np.testing.assert_allclose(here.values, there.values, rtol=1e-10, atol=1e-12)


def test_between_the_centres_of_tokens_lies_a_straight_line():
    tokens = np.array([[1.0, 3.0], [2.0, 8.0], [0.0, 1.0]])
    pixels = over_image(tokens, TokenGrid(2, 0.5), (6, 4))
    assert pixels.shape == (6, 4)
    # The centre of token i lies at pixel 2i + 1/2, so pixels 0 and 3 lie beyond the outermost centres of a row.
    np.testing.assert_allclose(pixels[0], [1, 1.5, 2.5, 3], rtol=1e-12)
    np.testing.assert_allclose(pixels[:, 0], [1, 1.25, 1.75, 1.5, 0.5, 0], rtol=1e-12)


def test_pixels_that_fill_no_token_have_the_nearest_value_and_tokens_beyond_the_image_are_cut():
    tokens = np.array([[1.0, 3.0]])
    assert over_image(tokens, TokenGrid(2, 0.5), (3, 5)).tolist() == [[1, 1.5, 2.5, 3, 3]] * 3
    assert over_image(tokens, TokenGrid(2, 0.5), (1, 3)).tolist() == [[1, 1.5, 2.5]]


def test_an_image_with_larger_pixels_has_the_same_map_in_between():
    tokens = np.random.default_rng(1).standard_normal((3, 4))
    grid = TokenGrid(5, 1.0)
    fine = over_image(tokens, grid.enlarged(3), (45, 60))
    np.testing.assert_allclose(fine[1::3, 1::3], over_image(tokens, grid, (15, 20)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "grids"),
    [
        ({}, [(4, 1.5), (8, 3.5)]),
        ({"pad_mode": "pad"}, [(4, 1.5), (8, 3.5)]),
        ({"use_conv_embed": True}, [(4, 1.0), (8, 1.0)]),
    ],
)
def test_a_token_lies_in_the_middle_of_the_pixels_that_it_is_made_of(options, grids):
    config = FocalNetConfig(image_size=(48, 40), patch_size=4, modulation="focal", **SHAPE, **options)
    model = mf.FocalNet(config, dtype="float64", init="lecun", ops="reference")
    images = np.random.default_rng(0).standard_normal((1, 48, 40, 2))
    tokens, stem = model.patch_embed.forward(images)
    halved, downsample = model.layers[0].downsample.forward(tokens)
    row, column = 2, 3
    for stage, (features, expected) in enumerate(zip((tokens, halved), grids, strict=True)):
        dx = np.zeros_like(features)
        dx[0, row, column] = np.random.default_rng(2).standard_normal(features.shape[-1])
        if stage:
            dx = model.layers[0].downsample.backward(dx, downsample)
        seen = model.patch_embed.backward(dx, stem)[0].any(axis=-1)
        grid = token_grid(model, stage)
        assert grid == expected
        for pixels, token in ((np.flatnonzero(seen.any(axis=1)), row), (np.flatnonzero(seen.any(axis=0)), column)):
            assert (pixels[0] + pixels[-1]) / 2 == grid.centre + grid.size * token
