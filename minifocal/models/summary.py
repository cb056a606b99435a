"""A network as a table: what each part gives, learns, computes and remembers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minifocal.arrays import full, to_device
from minifocal.errors import check_integer
from minifocal.models.complexity import multiply_adds
from minifocal.ops import REFERENCE
from minifocal.threads import thread_count

if TYPE_CHECKING:
    from minifocal.models.focalnet import FocalNet


@dataclass(frozen=True)
class SummaryRow:
    """One part of a network, for one image."""

    name: str
    output_shape: tuple[int, ...]  # without the batch axis
    parameters: int
    multiply_adds: int
    cache_bytes: int  # what the forward pass keeps for the way back, beyond what earlier parts keep


@dataclass(frozen=True)
class Summary:
    """The rows of a network, in the order of its forward pass. `str` gives the table."""

    rows: tuple[SummaryRow, ...]
    title: str
    state_bytes: int  # weights, their gradients (once more for each thread) and a momentum
    images_at_once: int | None  # whose caches are alive together in training; None: those of the whole batch

    @property
    def parameters(self) -> int:
        """Learned numbers in all."""
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one image in all."""
        return sum(row.multiply_adds for row in self.rows)

    @property
    def cache_bytes(self) -> int:
        """Cache memory of one image in all."""
        return sum(row.cache_bytes for row in self.rows)

    @property
    def training_memory(self) -> str:
        """What a training step holds, in words: an estimate, without what operations need for a moment."""
        text = f"training: {self.state_bytes / 1e6:,.0f} MB for weights, gradients and momentum, and "
        each = f"{self.cache_bytes / 1e6:,.1f} MB of caches for each image"
        if self.images_at_once is None:
            return f"{text}{each} of the batch"
        return f"{text}{each}, of at most {self.images_at_once} at a time"

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        line = f"{{:<{width}}}  {{:>16}}  {{:>12}}  {{:>16}}  {{:>10}}"
        lines = [self.title, line.format("layer", "output shape", "parameters", "multiply-adds", "cache MB")]
        for row in self.rows:
            shape = " x ".join(map(str, row.output_shape))
            numbers = f"{row.parameters:,}", f"{row.multiply_adds:,}", f"{row.cache_bytes / 1e6:.3f}"
            lines.append(line.format(row.name, shape, *numbers))
        totals = f"{self.parameters:,}", f"{self.multiply_adds:,}", f"{self.cache_bytes / 1e6:.3f}"
        return "\n".join([*lines, line.format("total", "", *totals), self.training_memory])


def summarize(model: "FocalNet", image_size: int | tuple[int, int] | None = None) -> Summary:
    """Measure a network on one black image.

    Args:
        model: of any modulation, on any device.
        image_size: height and width in pixels, or one number for both; the configuration's where not given.
    Raises:
        InputError: a size that the network cannot take.
    """
    if isinstance(image_size, int):
        image_size = (image_size, image_size)
    hw = image_size or model.config.image_hw
    for pixels in hw:
        check_integer("image_size", pixels, at_least=1, at_most=2**15)
    images = to_device(full((1, model.config.in_chans, *hw), 0.0, model.dtype), model.device)
    # The reference's caches are everyone's; a replica, so that the model's own table stays, and none is compiled.
    reader = model.replica()
    reader.use_ops(REFERENCE)
    logits, cache = reader.forward(images)
    sizes = {name: parameter.data.size for name, parameter in model.named_parameters()}
    costs = multiply_adds(model.config, hw)
    seen = {id(_owner(parameter.data)) for parameter in model.parameters()}

    def row(name: str, prefixes: tuple[str, ...], cache: Any, shape: tuple[int, ...]) -> SummaryRow:
        parameters = sum(size for parameter, size in sizes.items() if parameter.startswith(prefixes))
        return SummaryRow(name, shape, parameters, costs[name], _new_bytes(cache, seen))

    shapes = [features.shape[1:] for features in cache.stage_maps]
    rows = [row("patch_embed", ("patch_embed.",), cache.patch_embed, shapes[0])]
    for s, stage in enumerate(cache.layers):
        for b, block in enumerate(stage.blocks):
            name = f"layers.{s}.blocks.{b}."
            first = tuple(name + part for part in ("norm1.", "modulation.", "gamma_1"))
            second = tuple(name + part for part in ("norm2.", "mlp.", "gamma_2"))
            rows.append(row(f"{name}modulation", first, block.modulation_branch, shapes[s]))
            last = stage.features if b == len(stage.blocks) - 1 else None  # kept to be looked at
            rows.append(row(f"{name}mlp", second, (block.mlp_branch, last), shapes[s]))
        if stage.downsample is not None:
            name = f"layers.{s}.downsample"
            rows.append(row(name, (name,), stage.downsample, shapes[s + 1]))
    rows.append(row("norm", ("norm.",), cache.norm, shapes[-1]))
    rows.append(row("head", ("head.",), cache.head, logits.shape[1:]))
    title = f"{model.config.modulation} network, {model.dtype}, one image of {hw[0]} x {hw[1]} pixels"
    threads = thread_count() if model.ops.threaded else 0
    values = sum(parameter.data.nbytes for parameter in model.parameters())
    at_once = threads * model.shard_size(images.shape) if threads else None
    return Summary(tuple(rows), title, (3 + threads) * values, at_once)


def _new_bytes(cache: Any, seen: set[int]) -> int:
    """Count the memory behind a tree of caches, but for arrays that were seen before; remember what is new."""
    total = 0
    for array in _arrays(cache):
        owner = _owner(array)
        if id(owner) not in seen:
            seen.add(id(owner))
            total += owner.nbytes
    return total


def _arrays(cache: Any) -> Iterator[Any]:
    if isinstance(cache, tuple):
        for part in cache:
            yield from _arrays(part)
    elif hasattr(cache, "nbytes"):
        yield cache


def _owner(array: Any) -> Any:
    """The array that holds the memory which a view looks at."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return array
