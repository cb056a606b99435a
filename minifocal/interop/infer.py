"""What the names and shapes of weights show of their network's configuration, and what they do not.

Shapes do not show whether a block is post-LN (timm's names do), whether the modulator is normalised, how wide the
windows of "box_mean" are, and whether a stem of 7 x 7 overlaps where there is no other convolution to tell.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from minifocal.errors import InputError, check_integer
from minifocal.models.config import BOX_MEAN, FOCAL, MAX_STAGES, SIGMOID_GATE

Shapes = Mapping[str, tuple[int, ...]]

OVERLAPPING_STEM, OVERLAPPING_DOWNSAMPLE = 7, 3  # kernels of use_conv_embed
MODULATION_SIGNS = {FOCAL: "f", SIGMOID_GATE: "context", BOX_MEAN: "levels.0"}  # a linear map that no other one has


def visible_fields(shapes: Shapes, layout: str, in_chans: int | None = None) -> dict[str, Any]:
    """Read fields of FocalNetConfig off the shapes of weights.

    Args:
        shapes: of the tensors as they are stored, by our names.
        layout: as they are stored.
        in_chans: channels of an image, which Edifice's weights do not show; 3 where not given.
    Raises:
        InputError: a weight is missing that every network has, or the shapes are no network's.
    """
    stages = _depths(shapes)
    firsts = [f"layers.{stage}.blocks.0" for stage in range(len(stages))]
    embed_dim = _length(shapes, "patch_embed.proj.bias")
    stem = shapes["patch_embed.proj.weight"]
    if len(stem) == 4:
        in_chans, size = stem[1], stem[2]
    else:
        in_chans = 3 if in_chans is None else in_chans
        check_integer("in_chans", in_chans, at_least=1)
        size = math.isqrt(stem[0] // in_chans)
        if size * size * in_chans != stem[0]:
            raise InputError(f"{stem[0]} numbers are no square patch of {in_chans} channels; give in_chans=")
    kernels = [_kernels(shapes, first) for first in firsts]
    fields: dict[str, Any] = {
        "modulation": _modulation(shapes),
        "in_chans": in_chans,
        "embed_dim": embed_dim,
        "depths": stages,
        "mlp_ratio": _mlp_ratio([_length(shapes, f"{first}.mlp.fc1.bias") for first in firsts], embed_dim),
        "num_classes": _length(shapes, "head.bias") if "head.bias" in shapes else 0,
        "patch_norm": "patch_embed.norm.weight" in shapes,
        "use_layerscale": f"{firsts[0]}.gamma_1" in shapes,
        "use_postln_in_modulation": f"{firsts[0]}.modulation.ln.weight" in shapes,
    }
    if fields["modulation"] == BOX_MEAN:
        fields["focal_levels"] = tuple(_count(shapes, first, r"\.modulation\.levels\.\d+\.bias") for first in firsts)
        if max(fields["focal_levels"]) == 1:  # the first level takes no mean
            fields["focal_windows"] = (3,) * len(stages)
    else:
        fields["focal_levels"] = tuple(map(len, kernels))
        fields["focal_windows"] = tuple(sizes[0] if sizes else 3 for sizes in kernels)
        steps = {second - first for first, second, *_ in (sizes for sizes in kernels if len(sizes) > 1)}
        if len(steps) > 1:
            raise InputError(f"the kernels {kernels} of the stages' levels do not all grow by the same step")
        if steps:
            fields["focal_factor"] = steps.pop()
    if len(stages) > 1:
        fields["use_conv_embed"] = _shape(shapes, "layers.0.downsample.proj.weight")[-1] == OVERLAPPING_DOWNSAMPLE
    elif size != OVERLAPPING_STEM or layout == "timm":  # timm's stem has patches of 4, or overlaps
        fields["use_conv_embed"] = size == OVERLAPPING_STEM
    if fields.get("use_conv_embed") is False:
        fields["patch_size"] = size
    return fields


def hidden_fields(fields: Mapping[str, Any]) -> list[str]:
    """Name the fields that shape the function but are not among `fields`."""
    wanted = ["use_postln", "use_conv_embed"]
    if fields["modulation"] == FOCAL:
        wanted.append("normalize_modulator")
    if fields["modulation"] == BOX_MEAN:
        wanted.append("focal_windows")
    return [name for name in wanted if name not in fields]


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise InputError(f"these are no weights of a FocalNet: {name} is missing")
    return shapes[name]


def _length(shapes: Shapes, name: str) -> int:
    return _shape(shapes, name)[0]


def _count(shapes: Shapes, block: str, pattern: str) -> int:
    return sum(re.fullmatch(re.escape(block) + pattern, name) is not None for name in shapes)


def _depths(shapes: Shapes) -> tuple[int, ...]:
    _shape(shapes, "patch_embed.proj.weight")
    blocks = {match[0] for name in shapes if (match := re.match(r"layers\.\d+\.blocks\.\d+\.", name))}
    counts = Counter(int(block.split(".")[1]) for block in blocks)
    if not counts or sorted(counts) != list(range(len(counts))) or len(counts) > MAX_STAGES:
        stages = f"its stages are not numbered from 0 without a gap to at most {MAX_STAGES - 1}"
        raise InputError(f"these are no weights of a FocalNet: {stages}")
    return tuple(counts[stage] for stage in range(len(counts)))


def _modulation(shapes: Shapes) -> str:
    for modulation, sign in MODULATION_SIGNS.items():
        if f"layers.0.blocks.0.modulation.{sign}.weight" in shapes:
            return modulation
    raise InputError("these are no weights of a FocalNet: its first block has no modulation")


def _kernels(shapes: Shapes, block: str) -> list[int]:
    levels = _count(shapes, block, r"\.modulation\.focal_layers\.\d+\.0\.weight")
    return [_shape(shapes, f"{block}.modulation.focal_layers.{level}.0.weight")[-1] for level in range(levels)]


def _mlp_ratio(hidden_dims: list[int], embed_dim: int) -> float:
    """Find r with int(dim * r) = hidden in every stage: the largest quotient, or the next number above it."""
    dims = [embed_dim * 2**stage for stage in range(len(hidden_dims))]
    ratio = max(hidden / dim for hidden, dim in zip(hidden_dims, dims, strict=True))
    for close in (ratio, math.nextafter(ratio, math.inf)):
        if [int(dim * close) for dim in dims] == hidden_dims:
            return close
    raise InputError(f"hidden channels {hidden_dims} of the MLPs are no common multiple of the stages' channels")
