"""Channels of one map, taken apart: what one matrix product gave for several purposes."""

from typing import NamedTuple

from minifocal.arrays import Array, get_array_module
from minifocal.errors import InputError


class SplitCache(NamedTuple):
    """What `split_backward` needs: sizes only, no array."""

    sizes: tuple[int, ...]  # channels of each part


def split_forward(x: Array, sizes: tuple[int, ...]) -> tuple[tuple[Array, ...], SplitCache]:
    """Take the channels of a map apart: the first sizes[0], the next sizes[1], and so on.

    Args:
        x: (..., C), float.
        sizes: channels of each part; their sum is C.
    Returns:
        the parts, (..., sizes[n]), views of x; and a SplitCache.
    Raises:
        InputError: the sizes do not add up to C.
    """
    if sum(sizes) != x.shape[-1]:
        raise InputError(f"split: expected sizes that add up to {x.shape[-1]} channels, got {sizes}")
    parts, start = [], 0
    for size in sizes:
        parts.append(x[..., start : start + size])
        start += size
    return tuple(parts), SplitCache(tuple(sizes))


def split_backward(dparts: tuple[Array, ...], cache: SplitCache) -> Array:
    """Gradient of split_forward: dx, the gradients of the parts beside each other."""
    return get_array_module(*dparts).concatenate(dparts, axis=-1)
