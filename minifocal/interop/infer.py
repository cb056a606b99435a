"""The configuration of a network, read off its weights: what names and shapes show, and which variant they fit.

Not to be seen are whether a block is post-LN (but timm's names tell), whether the modulator is normalised, how wide
the windows of "box_mean" are, and whether a lone stem of 7 x 7 overlaps. A published variant settles them.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from minifocal.errors import InputError, is_real
from minifocal.interop.descriptions import LARGE_FL4, Description
from minifocal.models.config import BOX_MEAN, FOCAL, SIGMOID_GATE, FocalNetConfig
from minifocal.models.zoo import list_models, model_config

Shapes = Mapping[str, tuple[int, ...]]

OVERLAPPING_STEM, OVERLAPPING_DOWNSAMPLE = 7, 3  # kernels of use_conv_embed
MODULATION_SIGNS = {FOCAL: "f", SIGMOID_GATE: "context", BOX_MEAN: "levels.0"}  # a linear map that no other one has

# What each implementation does always.
LAYOUT_FIELDS: dict[str, dict[str, Any]] = {
    "official": {"pad_mode": "floor", "ln_eps": 1e-5, "mlp_act": "gelu", "focal_factor": 2},
    "timm": {"pad_mode": "floor", "ln_eps": 1e-5, "mlp_act": "gelu", "focal_factor": 2},
    "hf": {"pad_mode": "pad", "focal_factor": 2},
    "edifice": {"use_postln": False, "use_conv_embed": False},
    "minifocal": {},
}


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
    else:
        fields["focal_levels"] = tuple(map(len, kernels))
        fields["focal_windows"] = tuple(sizes[0] if sizes else 3 for sizes in kernels)
        if steps := {second - first for first, second, *_ in (sizes for sizes in kernels if len(sizes) > 1)}:
            fields["focal_factor"] = min(steps)
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
    if fields["modulation"] == BOX_MEAN and max(fields["focal_levels"]) > 1:
        wanted.append("focal_windows")
    return [name for name in wanted if name not in fields]


class Variant(NamedTuple):
    """A published network that weights may be of."""

    name: str
    config: FocalNetConfig
    note: str = ""


def published_variants() -> list[Variant]:
    """Give the variants of the zoo, and those whose released weights differ from their configuration."""
    old_base_iso = model_config("focalnet_base_iso", use_postln=False, use_postln_in_modulation=True)
    return [
        *(Variant(name, model_config(name)) for name in list_models()),
        Variant(
            "focalnet_base_iso",
            old_base_iso,
            "as released: its weights are older than November 2022, when use_postln meant the LayerNorm inside the "
            "modulation; they have that one, and no post-LN",
        ),
    ]


def matching_variants(visible: Mapping[str, Any]) -> list[Variant]:
    """Find the published variants of these shapes, whatever the number of classes and of channels of an image."""
    compared = {name: value for name, value in visible.items() if name not in ("num_classes", "in_chans")}
    return [
        variant
        for variant in published_variants()
        if all(getattr(variant.config, name) == value for name, value in compared.items())
    ]


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
    if not counts or sorted(counts) != list(range(len(counts))):
        raise InputError("these are no weights of a FocalNet: its stages are not numbered from 0 without a gap")
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


class Resolution(NamedTuple):
    """A configuration, and how it was found."""

    config: FocalNetConfig
    inferred: tuple[str, ...]
    warnings: tuple[str, ...]


def resolve(
    layout: str,
    shapes: Shapes,
    description: Description | None,
    overrides: Mapping[str, Any],
    use_postln: bool | None = None,
) -> Resolution:
    """Find the configuration of weights: given fields first, then the weights, then what stands beside them.

    Args:
        layout: of the weights. shapes: as for `visible_fields`.
        description: what stands beside the weights, if anything.
        overrides: fields that are given.
        use_postln: whether the names show post-LN; None where they do not.
    Raises:
        InputError: the weights are no FocalNet's, or fields have to be given; the message names them.
    """
    beside = {} if description is None else description.fields
    visible = visible_fields(shapes, layout, {**beside, **overrides}.get("in_chans"))
    if use_postln is not None:
        visible["use_postln"] = use_postln
    inferred = [f"seen in the weights: {_listed(visible)}", f"{layout} rules: {_listed(LAYOUT_FIELDS[layout])}"]
    fields = {**LAYOUT_FIELDS[layout], **visible}
    warnings = []
    if description is not None:
        said = {name: tuple(v) if isinstance(v, list) else v for name, v in description.fields.items()}
        wrong = {name for name, value in said.items() if name in visible and not _agrees(name, value, visible)}
        warnings += [*description.notes]
        warnings += [
            f"{description.source} says {name} is {said[name]}, but the weights have {visible[name]}; "
            "the weights are right"
            for name in sorted(wrong)
        ]
        right = {name: value for name, value in said.items() if name not in wrong}
        added = {name: value for name, value in right.items() if fields.get(name) != value}
        inferred.append(f"from {description.source}: {_listed(added)}")
        fields |= right
    variant = next(iter(matching_variants(visible)), None)
    hidden = hidden_fields({**fields, **overrides})
    if hidden and variant is not None and not (layout == "timm" and variant.name == LARGE_FL4):
        taken = {name: getattr(variant.config, name) for name in hidden}
        inferred.append(f"taken for {variant.name}{variant.note and ', '}{variant.note}: {_listed(taken)}")
        fields |= taken
    elif hidden:
        raise InputError(_question(hidden, visible, variant))
    if variant is not None:
        fields.setdefault("drop_path_rate", variant.config.drop_path_rate)
        if variant.name == LARGE_FL4 and not {**fields, **overrides}["normalize_modulator"]:
            warnings += [LARGE_FL4_WARNING] * ("normalize_modulator" not in overrides)
    if overrides:
        inferred.append(f"given: {_listed(overrides)}")
    return Resolution(FocalNetConfig.from_dict({**fields, **overrides}), tuple(inferred), tuple(warnings))


LARGE_FL4_WARNING = (
    "normalize_modulator is False as the file says, but the official focalnet_large_fl4 was trained with True, which "
    "Hugging Face's converter never sets; give normalize_modulator=True for the network as it was trained"
)
QUESTIONS = {
    "use_postln": "use_postln=False (the official code's default, and right for weights older than November 2022)",
    "normalize_modulator": "normalize_modulator=False (the official code's default)",
    "use_conv_embed": "use_conv_embed=False (a stem of 7 x 7 pixels side by side) or True (overlapping)",
    "focal_windows": "focal_windows=(3,) (Edifice's focal_kernel)",
}


def _agrees(name: str, value: Any, visible: Mapping[str, Any]) -> bool:
    """Whether a field that weights show may have this value: where they show less than the whole, that much of it."""
    seen = visible[name]
    if name == "focal_windows" and isinstance(value, tuple) and len(value) == len(seen):
        pairs = zip(value, seen, visible["focal_levels"], strict=True)
        return all(window == found for window, found, levels in pairs if levels)
    if name == "mlp_ratio" and is_real(value):
        dims = [visible["embed_dim"] * 2**stage for stage in range(len(visible["depths"]))]
        return [int(dim * value) for dim in dims] == [int(dim * seen) for dim in dims]
    return bool(value == seen)


def _question(hidden: list[str], visible: Mapping[str, Any], variant: Variant | None) -> str:
    if variant is not None and variant.name == LARGE_FL4:
        return (
            "these are the weights of focalnet_large_fl4, with which timm computes another function than was trained; "
            "give normalize_modulator=True for the network as it was trained, or False for timm's numbers"
        )
    asked = ", ".join(QUESTIONS[name] for name in hidden)
    return f"names and shapes do not show {' and '.join(hidden)}, and no published variant fits; give {asked}"


def _listed(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items()) or "nothing"
