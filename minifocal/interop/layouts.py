"""What the published implementations call each parameter, and how they lay out its numbers: one table, read both ways.

    state = interop.state_dict(model, layout="hf")             # names and shapes of Hugging Face
    interop.load_state_dict(model, state, layout="hf")

Layouts: "official" (microsoft/FocalNet), "hf" (transformers), "timm", "edifice"; and "minifocal", which has this
package's own names and shapes. The names are the official ones, so every modulation has an official layout too.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from minifocal.arrays import Array, as_numpy, get_array_module
from minifocal.errors import InputError, one_line
from minifocal.interop.tensors import StoredTensor
from minifocal.layers.base import Parameter
from minifocal.models.focalnet import FocalNet

LAYOUTS = ("minifocal", "official", "hf", "timm", "edifice")
OWN_SHAPES = ("minifocal", "edifice")  # weights are (in, out) there

# What a parameter is decides how its weight is laid out; biases and the weights of norms are vectors everywhere.
LINEAR, POINTWISE, HEAD, CONV, DEPTHWISE, VECTOR = "linear", "pointwise", "head", "conv", "depthwise", "vector"


class Row(NamedTuple):
    """One line of the table: the names of a part in every layout, None where a layout has no such part.

    In the names {s} is the stage, {next} the one after it, {b} the block, {l} the level, and {post} is "_post" where
    the block is post-LN: timm names norms after where they stand, and keeps a downsampling with the stage behind it.
    """

    kind: str
    ours: str  # and official
    hf: str | None
    timm: str | None
    edifice: str | None = None

    def name(self, layout: str) -> str | None:
        """Give the part's name in a layout."""
        return self.ours if layout in ("minifocal", "official") else getattr(self, layout)


def _in_block(kind: str, ours: str, hf: str | None, timm: str | None, edifice: str | None = None) -> Row:
    return Row(
        kind,
        f"layers.{{s}}.blocks.{{b}}.{ours}",
        hf and f"focalnet.encoder.stages.{{s}}.layers.{{b}}.{hf}",
        timm and f"layers.{{s}}.blocks.{{b}}.{timm}",
        edifice and f"focal_{{b}}_{edifice}",
    )


TABLE = (
    #   kind       ours, official    Hugging Face                                          timm         Edifice
    Row(CONV, "patch_embed.proj", "focalnet.embeddings.patch_embeddings.projection", "stem.proj", "patch_embed_proj"),
    Row(VECTOR, "patch_embed.norm", "focalnet.embeddings.norm", "stem.norm"),
    _in_block(VECTOR, "norm1", "norm1", "norm1{post}", "mod_norm"),
    _in_block(LINEAR, "modulation.f", "modulation.projection_in", "modulation.f"),
    _in_block(DEPTHWISE, *["modulation.focal_layers.{l}.0"] * 3),
    _in_block(POINTWISE, "modulation.h", "modulation.projection_context", "modulation.h"),
    _in_block(VECTOR, "modulation.ln", "modulation.layernorm", "modulation.norm"),
    _in_block(LINEAR, "modulation.query", None, None, "query"),
    _in_block(LINEAR, "modulation.context", None, None),
    _in_block(LINEAR, "modulation.levels.{l}", None, None, "focal_level_{l}"),
    _in_block(LINEAR, "modulation.gate", None, None, "gate"),
    _in_block(LINEAR, "modulation.proj", "modulation.projection_out", "modulation.proj", "mod_proj"),
    _in_block(VECTOR, "gamma_1", "gamma_1", "ls1.gamma"),
    _in_block(VECTOR, "norm2", "norm2", "norm2{post}", "ffn_norm"),
    _in_block(LINEAR, "mlp.fc1", "mlp.fc1", "mlp.fc1", "ffn_up"),
    _in_block(LINEAR, "mlp.fc2", "mlp.fc2", "mlp.fc2", "ffn_down"),
    _in_block(VECTOR, "gamma_2", "gamma_2", "ls2.gamma"),
    Row(
        CONV,
        "layers.{s}.downsample.proj",
        "focalnet.encoder.stages.{s}.downsample.projection",
        "layers.{next}.downsample.proj",
    ),
    Row(
        VECTOR,
        "layers.{s}.downsample.norm",
        "focalnet.encoder.stages.{s}.downsample.norm",
        "layers.{next}.downsample.norm",
    ),
    Row(VECTOR, "norm", "focalnet.layernorm", "norm", "final_norm"),
    Row(HEAD, "head", "classifier", "head.fc", "classifier"),
)

NUMBER = "(0|[1-9][0-9]{0,3})"
SUFFIXES = {"": "", ".weight": ".weight", ".bias": ".bias"}  # ours and theirs
EDIFICE_SUFFIXES = {".weight": "/kernel", ".bias": "/bias"}
EDIFICE_NORM_SUFFIXES = {".weight": "/gamma", ".bias": "/beta"}


def _suffixes(kind: str, layout: str) -> dict[str, str]:
    """What follows a part's name, ours and theirs."""
    if layout != "edifice":
        return SUFFIXES
    return EDIFICE_NORM_SUFFIXES if kind == VECTOR else EDIFICE_SUFFIXES


def _pattern(row: Row, layout: str) -> re.Pattern | None:
    """Turn a name of the table into a pattern that reads its numbers; None where the layout has no such part."""
    name = row.name(layout)
    if name is None:
        return None
    part = re.escape(name).replace(r"\{post\}", "(?P<post>(?:_post)?)")
    part = re.sub(r"\\\{(\w+)\\\}", rf"(?P<\1>{NUMBER})", part)
    suffix = "|".join(re.escape(theirs) for theirs in _suffixes(row.kind, layout).values())
    return re.compile(f"{part}(?P<suffix>{suffix})")


PATTERNS = {
    layout: [(row, pattern) for row in TABLE if (pattern := _pattern(row, layout)) is not None] for layout in LAYOUTS
}


class Place(NamedTuple):
    """A parameter's line of the table, and where in the network it stands."""

    row: Row
    numbers: dict[str, int]  # of stage, block and level
    suffix: str  # "", ".weight" or ".bias"

    @property
    def own_name(self) -> str:
        """The parameter's name in this package."""
        return self.row.ours.format(**self.numbers) + self.suffix

    def stored_name(self, layout: str, use_postln: bool) -> str | None:
        """The parameter's name in a layout; None where that has no such parameter."""
        part = self.row.name(layout)
        if part is None:
            return None
        numbers = {**self.numbers, "next": self.numbers["s"] + 1, "post": "_post" if use_postln else ""}
        return part.format(**numbers) + _suffixes(self.row.kind, layout)[self.suffix]


def find_place(name: str, layout: str) -> Place | None:
    """Look a parameter's name up in a layout's column; None where it is no name of a FocalNet's."""
    for row, pattern in PATTERNS[layout]:
        if match := pattern.fullmatch(name):
            numbers = {key: int(value) for key, value in match.groupdict().items() if key not in ("post", "suffix")}
            if "next" in numbers:
                numbers["s"] = numbers.pop("next") - 1
            ours = {theirs: suffix for suffix, theirs in _suffixes(row.kind, layout).items()}
            return Place(row, {"s": 0, **numbers}, ours[match["suffix"]])
    return None


def stored_ndim(place: Place, layout: str) -> int:
    """How many axes a parameter has in a layout."""
    kind = place.row.kind
    if kind == VECTOR or place.suffix == ".bias":
        return 1
    if layout in OWN_SHAPES:
        return 3 if kind == DEPTHWISE else 2
    return 4 if kind in (CONV, DEPTHWISE) or _is_1x1_convolution(kind, layout) else 2


def to_stored(weight: Array, kind: str, in_dim: int, layout: str) -> Array:
    """View one of our parameters, or its gradient, in the shape of a layout.

    Args:
        weight: ours: (in, out), (P*P*in, out) of a convolution of patches, (k, k, C) of a depthwise one, or a vector.
        kind: of the table. in_dim: channels that a convolution of patches reads.
        layout: PyTorch's are (out, in), (out, in, P, P), (C, 1, k, k); timm's linear maps are 1 x 1 convolutions.
    """
    if layout in OWN_SHAPES or weight.ndim == 1:
        return weight
    if kind == DEPTHWISE:
        return weight.transpose(2, 0, 1)[:, None]
    weight = weight.T
    if kind == CONV:
        size = math.isqrt(weight.shape[1] // in_dim)
        return weight.reshape(len(weight), in_dim, size, size)
    return weight[:, :, None, None] if _is_1x1_convolution(kind, layout) else weight


def from_stored(stored: Array, kind: str, layout: str) -> Array:
    """View a parameter of a layout in our shape: the way back of `to_stored`."""
    if layout in OWN_SHAPES or stored.ndim == 1:
        return stored
    if kind == DEPTHWISE:
        return stored[:, 0].transpose(1, 2, 0)
    if kind == CONV or _is_1x1_convolution(kind, layout):
        stored = stored.reshape(len(stored), -1)
    return stored.T


def _is_1x1_convolution(kind: str, layout: str) -> bool:
    return kind == POINTWISE or (kind == LINEAR and layout == "timm")


class Stored(NamedTuple):
    """A parameter of a network and how a layout stores it."""

    name: str
    row: Row
    in_dim: int
    parameter: Parameter

    def view(self, layout: str, grads: bool = False) -> Array:
        """Look at its values, or its gradient, in the shape of the layout."""
        array = self.parameter.grad if grads else self.parameter.data
        return to_stored(array, self.row.kind, self.in_dim, layout)


def stored_parameters(model: FocalNet, layout: str) -> Iterator[Stored]:
    """Go through a network's parameters as a layout stores them.

    Raises:
        InputError: no such layout, or one that has no name for a parameter of this network.
    """
    if layout not in LAYOUTS:
        raise InputError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    config = model.config
    for name, parameter in model.named_parameters():
        place = find_place(name, "official")
        stored = place and place.stored_name(layout, config.use_postln)
        if place is None or stored is None:
            raise InputError(
                f"layout {layout!r} has no name for {name} of a {config.modulation!r} network with "
                f'{len(config.depths)} stages; state_dict(layout="official") names every parameter'
            )
        in_dim = config.in_chans if place.row.ours.startswith("patch_embed") else config.dims[place.numbers["s"]]
        yield Stored(stored, place.row, in_dim, parameter)


def state_dict(model: FocalNet, *, layout: str, grads: bool = False) -> dict[str, Array]:
    """Give the parameters of a network, or their gradients, with the names and shapes of another implementation.

    Args:
        model: to read.
        layout: "official", "hf", "timm", "edifice" or "minifocal".
        grads: gradients in place of values.
    Returns:
        arrays by name; they look at the network's own memory: copy them to keep them.
    Raises:
        InputError: no such layout, or one that has no name for a parameter of this network.
    """
    return {stored.name: stored.view(layout, grads) for stored in stored_parameters(model, layout)}


def load_state_dict(model: FocalNet, state: Mapping[str, Any], *, layout: str) -> None:
    """Copy the weights of another implementation into a network; nothing is changed unless everything fits.

    Args:
        model: of the configuration that the weights are for.
        state: by name: arrays, tensors of PyTorch in host memory, or anything that NumPy makes an array of.
        layout: whose names and shapes they have.
    Raises:
        InputError: a name is missing or unexpected, or a shape or dtype differs; the message lists them and says what
            would fit.
    """
    own = {stored.name: stored for stored in stored_parameters(model, layout)}
    values = {name: _look_at(name, value) for name, value in state.items()}
    _check_fit({name: stored.view(layout) for name, stored in own.items()}, values, layout)
    for name, stored in own.items():
        data = stored.parameter.data
        array = get_array_module(data).asarray(as_numpy(values[name]))
        data[...] = from_stored(array, stored.row.kind, layout)


def _look_at(name: str, values: Any) -> Any:
    """Give values as a host array, so that nothing can fail later; a tensor in a file is left there until its turn."""
    if isinstance(values, StoredTensor):
        return values
    try:
        return as_numpy(values)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{name} cannot be read: {reason}; give what state_dict() gives, in host memory") from error


def _check_fit(own: Mapping[str, Array], state: Mapping[str, Any], layout: str) -> None:
    """Refuse values whose names, shapes or dtypes are not those of a network."""
    problems = [f"missing {name}" for name in own.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - own.keys()]
    both = own.keys() & state.keys()
    for name in both:
        here, there = tuple(own[name].shape), tuple(state[name].shape)
        if here != there:
            problems.append(f"{name} is {there} in the weights and {here} in the network")
    if problems:
        raise InputError(mismatch(sorted(problems), layout))
    for name in sorted(both):
        ours, theirs = str(own[name].dtype), str(state[name].dtype)
        if ours != theirs:
            raise InputError(
                f"{name} is {theirs} in the weights and {ours} in the network; "
                f"build the network with that dtype, or cast the weights"
            )


def mismatch(problems: list[str], layout: str) -> str:
    """Say in one line that weights do not fit: how, and what would help.

    Args:
        problems: a phrase for each name that is missing, unexpected or misshapen.
        layout: of the weights.
    """
    listed = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
    hints = "".join(f"; {hint}" for sign, hint in HINTS if any(re.search(sign, problem) for problem in problems))
    return one_line(f"these {layout} weights are of another network: {listed}{hints}")


def renamings(model: FocalNet, source: str, target: str) -> list[str]:
    """Give a line for each part of the table whose name, or whose weights' shape, differs between two layouts.

    The shapes are those of the first such part; {s} stands for a stage, {b} for a block, {l} for a level.
    """
    post = "_post" if model.config.use_postln else ""
    stand_ins = {"s": "{s}", "next": "{s+1}", "b": "{b}", "l": "{l}", "post": post}
    lines: dict[str, tuple[str, str, str]] = {}
    for old, new in zip(stored_parameters(model, source), stored_parameters(model, target), strict=True):
        before, after = (str(old.row.name(layout)).format(**stand_ins) for layout in (source, target))
        shapes = old.view(source).shape, new.view(target).shape
        reshaped = f"  {shapes[0]} → {shapes[1]}" if shapes[0] != shapes[1] else ""
        if before != after or reshaped:
            lines.setdefault(old.row.ours, (before, after, reshaped))
    width = max((len(before) for before, _, _ in lines.values()), default=0)
    return [f"{before:{width}} → {after}{reshaped}" for before, after, reshaped in lines.values()]


HINTS = (
    (
        r"focal_layers",
        "the number of focal levels or their windows differ: the official functions build two levels and windows of 3 "
        "unless their YAML file says otherwise, so give focal_levels= and focal_windows= as the weights have them",
    ),
    (r"_post\b", "post-LN or not: give use_postln= as the weights have it"),
    (r"modulation\.(ln|layernorm|norm)\b", "give use_postln_in_modulation= as the weights have it"),
    (r"gamma_[12]|ls[12]\.gamma", "give use_layerscale= as the weights have it"),
    (r"pre_logits|head\.norm", "timm's head of several layers (head_hidden_size) has no counterpart here"),
    (r"(head|classifier|head\.fc)[./](weight|kernel) is", "give num_classes= as the weights have it"),
)
