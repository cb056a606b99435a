"""One map modulated by another: their product, element by element."""

from typing import NamedTuple

from minifocal.arrays import Array
from minifocal.functional.add import check_same_shape


class ModulateCache(NamedTuple):
    """What `modulate_backward` needs."""

    x: Array  # (B, H, W, C)
    modulator: Array  # (B, H, W, C)


def modulate_forward(x: Array, modulator: Array) -> tuple[Array, ModulateCache]:
    """Modulate: y = x * modulator.

    Args:
        x: (B, H, W, C), float: what is modulated, a query.
        modulator: same shape and dtype.
    Returns:
        y: (B, H, W, C), dtype of x; and a ModulateCache.
    Raises:
        InputError: the shapes differ.
    Source: Yang et al. 2022, equation 3 (arXiv:2203.11926).
    """
    check_same_shape(x, modulator)
    return x * modulator, ModulateCache(x, modulator)


def modulate_backward(dy: Array, cache: ModulateCache) -> tuple[Array, Array]:
    """Gradients of modulate_forward: (dx, dmodulator)."""
    return dy * cache.modulator, dy * cache.x
