"""The configuration of weights, put together from what is given, what they show, and what stands beside them.

Where all of that leaves something open, a published variant of the same shapes settles it; where there is none, the
fields that are missing are asked for by name.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from minifocal.errors import InputError, is_real, shown
from minifocal.interop.descriptions import LARGE_FL4, Description
from minifocal.interop.infer import Shapes, hidden_fields, visible_fields
from minifocal.models.config import FocalNetConfig
from minifocal.models.zoo import list_models, model_config

# What each implementation does always.
LAYOUT_FIELDS: dict[str, dict[str, Any]] = {
    "official": {"pad_mode": "floor", "ln_eps": 1e-5, "mlp_act": "gelu", "focal_factor": 2},
    "timm": {"pad_mode": "floor", "ln_eps": 1e-5, "mlp_act": "gelu", "focal_factor": 2},
    "hf": {"pad_mode": "pad", "focal_factor": 2},
    "edifice": {"use_postln": False, "use_conv_embed": False},
    "minifocal": {},
}

LARGE_FL4_WARNING = (
    "normalize_modulator is False as the file says, but the official focalnet_large_fl4 was trained with True, which "
    "Hugging Face's converter never sets; give normalize_modulator=True for the network as it was trained"
)
SUGGESTIONS: dict[str, tuple[Any, str]] = {
    "use_postln": (False, "the official code's default, and right for weights older than November 2022"),
    "normalize_modulator": (False, "the official code's default"),
    "use_conv_embed": (False, "patches of 7 x 7 side by side; True where they overlap"),
    "focal_windows": ((3,), "Edifice's default of focal_kernel"),
}
"""What the fields that weights do not show usually are, and why."""


class UnseenFieldsError(InputError):
    """The configuration of weights has to be completed by hand.

    Attributes:
        fields: that have to be given, each with its usual value.
    """

    def __init__(self, message: str, names: list[str]) -> None:
        super().__init__(message)
        self.fields = {name: SUGGESTIONS[name][0] for name in names}


class Variant(NamedTuple):
    """A published network that weights may be of."""

    name: str
    config: FocalNetConfig
    warning: str = ""  # for whoever loads it


@cache
def published_variants() -> tuple[Variant, ...]:
    """Give the variants of the zoo, and those whose released weights differ from their configuration."""
    old_base_iso = model_config("focalnet_base_iso", use_postln=False, use_postln_in_modulation=True)
    return (
        *(Variant(name, model_config(name)) for name in list_models()),
        Variant(
            "focalnet_base_iso",
            old_base_iso,
            "these are the released weights of focalnet_base_iso, older than November 2022, when use_postln meant the "
            "LayerNorm inside the modulation: they are loaded with that one, and without post-LN",
        ),
    )


def matching_variants(visible: Mapping[str, Any]) -> list[Variant]:
    """Find the published variants of these shapes, whatever the number of classes and of channels of an image."""
    compared = {name: value for name, value in visible.items() if name not in ("num_classes", "in_chans")}
    return [
        variant
        for variant in published_variants()
        if all(getattr(variant.config, name) == value for name, value in compared.items())
    ]


class Resolution(NamedTuple):
    """A configuration, and how it was found."""

    config: FocalNetConfig
    inferred: tuple[str, ...]
    warnings: tuple[str, ...]


def resolve(
    layout: str,
    shapes: Shapes,
    description: Description,
    overrides: Mapping[str, Any],
    use_postln: bool | None = None,
) -> Resolution:
    """Find the configuration of weights: given fields first, then the weights, then what stands beside them.

    Args:
        layout: of the weights. shapes: as for `visible_fields`.
        description: what stands beside the weights.
        overrides: fields that are given.
        use_postln: whether the names show post-LN; None where they do not.
    Raises:
        InputError: the weights are no FocalNet's.
        UnseenFieldsError: fields have to be given; the message names them.
    """
    said = {name: tuple(v) if isinstance(v, list) else v for name, v in description.fields.items()}
    visible = visible_fields(shapes, layout, {**said, **overrides}.get("in_chans"))
    if use_postln is not None:
        visible["use_postln"] = use_postln
    inferred = [f"seen in the weights: {_listed(visible)}", f"{layout} rules: {_listed(LAYOUT_FIELDS[layout])}"]
    fields = {**LAYOUT_FIELDS[layout], **visible}
    wrong = [name for name, value in said.items() if name in visible and not _agrees(name, value, visible)]
    warnings = [*description.notes]
    warnings += [
        f"{description.source} says {name} is {shown(said[name])}; the weights have {visible[name]!r}, which is used"
        for name in sorted(wrong)
    ]
    right = {name: value for name, value in said.items() if name not in wrong}
    if right:
        added = {name: value for name, value in right.items() if fields.get(name) != value}
        inferred.append(f"from {description.source}: {_listed(added)}")
        fields |= right
    variant = next(iter(matching_variants(visible)), None)
    hidden = hidden_fields({**fields, **overrides})
    if hidden and variant is not None and not (layout == "timm" and variant.name == LARGE_FL4):
        taken = {name: getattr(variant.config, name) for name in hidden}
        inferred.append(f"assumed, as in the published {variant.name}: {_listed(taken)}")
        fields |= taken
        if variant.warning:
            warnings.append(variant.warning)
    elif hidden:
        raise UnseenFieldsError(_question(hidden, variant), hidden)
    if variant is not None:
        fields.setdefault("drop_path_rate", variant.config.drop_path_rate)
        follows_hf = layout == "hf" and "normalize_modulator" not in overrides
        if follows_hf and variant.name == LARGE_FL4 and not fields["normalize_modulator"]:
            warnings.append(LARGE_FL4_WARNING)
    if overrides:
        inferred.append(f"given: {_listed(overrides)}")
    return Resolution(FocalNetConfig.from_dict({**fields, **overrides}), tuple(inferred), tuple(warnings))


def _agrees(name: str, value: Any, visible: Mapping[str, Any]) -> bool:
    """Whether a field that weights show may have this value: where they show less than the whole, that much of it."""
    seen = visible[name]
    if name == "focal_windows" and isinstance(value, tuple) and len(value) == len(seen):
        pairs = zip(value, seen, visible["focal_levels"], strict=True)
        return all(window == found for window, found, levels in pairs if levels)
    if name == "mlp_ratio" and is_real(value) and 0 < value < 1e6:
        dims = [visible["embed_dim"] * 2**stage for stage in range(len(visible["depths"]))]
        return [int(dim * value) for dim in dims] == [int(dim * seen) for dim in dims]
    return bool(value == seen)


def _question(hidden: list[str], variant: Variant | None) -> str:
    if variant is not None and variant.name == LARGE_FL4:
        return (
            "these are the weights of focalnet_large_fl4, with which timm computes another function than was trained; "
            "give normalize_modulator=True for the network as it was trained, or False for timm's numbers"
        )
    usual = ", ".join(f"{name}={SUGGESTIONS[name][0]} ({SUGGESTIONS[name][1]})" for name in hidden)
    return f"names and shapes do not show {' and '.join(hidden)}, and no published variant fits; give {usual}"


def _listed(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shown(value)}" for name, value in fields.items()) or "nothing"
