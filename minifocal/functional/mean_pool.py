"""The mean over all positions of a map."""

from typing import NamedTuple

from minifocal.arrays import Array, get_array_module


class MeanPoolCache(NamedTuple):
    """What `mean_pool_backward` needs: sizes only, no array."""

    x_shape: tuple[int, ...]  # (B, H, W, C)


def mean_pool_forward(x: Array) -> tuple[Array, MeanPoolCache]:
    """Average the tokens of an image: y[b, c] = 1/(H*W) sum_hw x[b, h, w, c].

    Args:
        x: (B, H, W, C), float.
    Returns:
        y: (B, C), dtype of x; and a MeanPoolCache.
    """
    return x.mean(axis=(1, 2)), MeanPoolCache(x.shape)


def mean_pool_backward(dy: Array, cache: MeanPoolCache) -> Array:
    """Gradient of mean_pool_forward: every token gets 1/(H*W) of dy; shape of x."""
    xp = get_array_module(dy)
    _, H, W, _ = cache.x_shape
    return xp.broadcast_to((dy / (H * W))[:, None, None, :], cache.x_shape)
