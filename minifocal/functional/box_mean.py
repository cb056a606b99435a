"""A fixed mean over a window of the flattened tokens."""

from typing import NamedTuple

from minifocal.arrays import Array, get_array_module


class BoxMeanCache(NamedTuple):
    """What `box_mean_backward` needs: a size only, no array."""

    width: int


def box_mean_forward(x: Array, width: int) -> tuple[Array, BoxMeanCache]:
    """Average `width` neighbours in reading order, the end of a row beside the start of the next.

    y[b, t, c] = 1/width * sum_{i < width} x[b, t + i - (width-1)//2, c],   t = h*W + w

    Tokens outside count as zero and are counted in the mean. Nothing is learned.

    Args:
        x: (B, H, W, C), float.
        width: of the window, in tokens, at least 1.
    Returns:
        y: (B, H, W, C), dtype of x; and a BoxMeanCache.
    Source: what Edifice 0.2 computes in its levels.
    """
    before = (width - 1) // 2
    return _box_mean(x, width, before), BoxMeanCache(width)


def box_mean_backward(dy: Array, cache: BoxMeanCache) -> Array:
    """Gradient of box_mean_forward: dx, shape of x: the same mean, with its window turned round."""
    after = cache.width - 1 - (cache.width - 1) // 2
    return _box_mean(dy, cache.width, after)


def _box_mean(x: Array, width: int, before: int) -> Array:
    xp = get_array_module(x)
    B, H, W, C = x.shape
    T = H * W
    padded = xp.pad(x.reshape(B, T, C), ((0, 0), (before, width - 1 - before), (0, 0)))
    total = padded[:, :T]
    for i in range(1, width):
        total = total + padded[:, i : i + T]
    return (total / width).reshape(B, H, W, C)
