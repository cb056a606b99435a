"""Layer scale: a learned factor for every channel of a residual branch."""

from typing import NamedTuple

from minifocal.arrays import Array, get_array_module


class LayerScaleCache(NamedTuple):
    """What `layer_scale_backward` needs."""

    x: Array  # (..., C)
    gamma: Array  # (C,)


def layer_scale_forward(x: Array, gamma: Array) -> tuple[Array, LayerScaleCache]:
    """Scale each channel: y = gamma * x.

    Args:
        x: (..., C), float.
        gamma: (C,), same dtype. It starts small (1e-4), so that a deep network starts near the identity.
    Returns:
        y: (..., C), dtype of x; and a LayerScaleCache.
    Source: Touvron et al. 2021 (arXiv:2103.17239).
    """
    get_array_module(x, gamma)
    return x * gamma, LayerScaleCache(x, gamma)


def layer_scale_backward(dy: Array, cache: LayerScaleCache) -> tuple[Array, Array]:
    """Gradients of layer_scale_forward: (dx, dgamma), shaped like x and gamma."""
    positions = tuple(range(dy.ndim - 1))
    return dy * cache.gamma, (dy * cache.x).sum(axis=positions)
