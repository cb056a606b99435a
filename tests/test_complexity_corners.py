"""Multiply-adds part by part, token by token, of a network in which no two numbers are the same."""

import pytest

from minifocal import FocalNetConfig
from minifocal.models.complexity import multiply_adds

# Images of 39 x 51 pixels and patches of 3: maps of 13 x 17, 6 x 8 and 3 x 4.
TOKENS = (221, 48, 12)
CHANNELS = (5, 10, 20)
HIDDEN = (8, 17, 35)  # of 8.75, 17.5 and 35
OPTIONS = {
    "image_size": (39, 51), "patch_size": 3, "in_chans": 2, "num_classes": 7, "embed_dim": 5, "depths": (1, 2, 1),
    "mlp_ratio": 1.75, "focal_levels": (4, 3, 2), "focal_windows": (3, 7, 9),
}  # fmt: skip
KERNELS = ((3, 5, 7, 9), (7, 9, 11), (9, 11))
MODULATIONS = ("focal", "sigmoid_gate", "box_mean")


def of_modulation(modulation, stage):
    """The multiply-adds of one token: products of vectors with matrices, kernels, and products of vectors."""
    C, kernels = CHANNELS[stage], KERNELS[stage]
    L = len(kernels)
    taps = sum(k**2 + 1 for k in kernels) * C  # each level of the convolution, and its product with a gate
    if modulation == "focal":
        query_context_gates = C * (2 * C + L + 1)
        last_gate = C
        return query_context_gates + taps + last_gate + (C * C + C) + C * C
    products = C + C
    if modulation == "sigmoid_gate":
        query, context, gate, proj = [C * C] * 4
        return query + context + gate + proj + taps + products
    query, gate, proj = [C * C] * 3
    window = kernels[0]
    levels = L * C * C + sum(window * (level + 1) for level in range(L) if level > 0) * C
    return query + gate + proj + levels + products


@pytest.mark.parametrize("patch_norm", [True, False])
@pytest.mark.parametrize("modulation", MODULATIONS)
def test_each_part_costs_what_its_tokens_cost(modulation, patch_norm):
    expected = {"patch_embed": 221 * 5 * (2 * 3 * 3) + 221 * 5 * patch_norm}
    for stage, depth in enumerate((1, 2, 1)):
        N, C = TOKENS[stage], CHANNELS[stage]
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            expected[f"{name}.modulation"] = N * (C + of_modulation(modulation, stage))
            expected[f"{name}.mlp"] = N * (C + C * HIDDEN[stage] + HIDDEN[stage] * C)
        if stage < 2:
            wider = CHANNELS[stage + 1]
            expected[f"layers.{stage}.downsample"] = TOKENS[stage + 1] * (2 * 2 * C * wider + wider)
    expected["norm"] = 552  # 20 * 221 / 8 is 552.5
    expected["head"] = 20 * 7
    counted = multiply_adds(FocalNetConfig(**OPTIONS, modulation=modulation, patch_norm=patch_norm))
    assert counted == expected
    assert list(counted) == list(expected)
    assert {type(count) for count in counted.values()} == {int}


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_another_image_counts_where_one_is_given(modulation):
    config = FocalNetConfig(**OPTIONS, modulation=modulation)
    other = FocalNetConfig(**{**OPTIONS, "image_size": (27, 24)}, modulation=modulation)
    assert multiply_adds(config, (27, 24)) == multiply_adds(other) != multiply_adds(config)
    assert multiply_adds(config, (39, 51)) == multiply_adds(config)


def test_pixels_that_fill_no_patch_are_left_out():
    assert multiply_adds(FocalNetConfig(**OPTIONS), (41, 53)) == multiply_adds(FocalNetConfig(**OPTIONS))
