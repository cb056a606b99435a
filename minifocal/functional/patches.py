"""Cutting a map into patches: a convolution is a linear map of its patches."""

from typing import NamedTuple

from minifocal.arrays import Array, get_array_module
from minifocal.errors import InputError

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Rows of zeros ((above, below), (left, right)) put around a map."""

NO_PADDING: Padding = ((0, 0), (0, 0))


class PatchesCache(NamedTuple):
    """What `patches_backward` needs: sizes only, no array."""

    x_shape: tuple[int, ...]  # (B, H, W, C)
    size: int
    stride: int
    padding: Padding


def patches_forward(x: Array, size: int, stride: int, padding: Padding = NO_PADDING) -> tuple[Array, PatchesCache]:
    """Cut a map into P x P patches, `stride` apart, each flattened.

    patches[b, h, w, (c, i, j)] = x_padded[b, h*stride + i, w*stride + j, c]

    Rows and columns after the last whole patch are left out. With stride = P the patches tile the map; with
    stride < P they overlap. The channel runs slowest within a patch, as in a convolution's weight (O, C, P, P),
    so `patches @ weight.reshape(O, -1).T` is that convolution.

    Args:
        x: (B, H, W, C), float.
        size: P. stride: the step between patches. Both in pixels of x.
        padding: zeros put around x first.
    Returns:
        patches: (B, H', W', C*P*P) with H' = floor((H + padding - P) / stride) + 1; and a PatchesCache.
    Raises:
        InputError: the padded map is smaller than one patch.
    """
    xp = get_array_module(x)
    B, _, _, C = x.shape
    rows, columns = count_patches(x.shape, size, stride, padding)
    padded = _pad(x, padding)
    patches = xp.empty((B, rows, columns, C, size, size), dtype=x.dtype)
    for i in range(size):
        for j in range(size):
            patches[..., i, j] = padded[:, _strided(i, rows, stride), _strided(j, columns, stride)]
    return patches.reshape(B, rows, columns, C * size * size), PatchesCache(x.shape, size, stride, padding)


def patches_backward(dpatches: Array, cache: PatchesCache) -> Array:
    """Gradient of patches_forward: dx, shape of x. A pixel that several patches saw gets the sum of theirs."""
    (B, H, W, C), size, stride, padding = cache
    xp = get_array_module(dpatches)
    rows, columns = dpatches.shape[1:3]
    dpatches = dpatches.reshape(B, rows, columns, C, size, size)
    (above, below), (left, right) = padding
    dpadded = xp.zeros((B, above + H + below, left + W + right, C), dtype=dpatches.dtype)
    for i in range(size):
        for j in range(size):
            dpadded[:, _strided(i, rows, stride), _strided(j, columns, stride)] += dpatches[..., i, j]
    return dpadded[:, above : above + H, left : left + W]


def count_patches(shape: tuple[int, ...], size: int, stride: int, padding: Padding) -> tuple[int, int]:
    """Count the rows and columns of patches of a map (B, H, W, C).

    Raises:
        InputError: the padded map is smaller than one patch.
    """
    _, H, W, _ = shape
    rows, columns = ((n + sum(pad) - size) // stride + 1 for n, pad in zip((H, W), padding, strict=True))
    if rows < 1 or columns < 1:
        raise InputError(
            f"patches: a map of {H} x {W} with padding {padding} is smaller than one {size} x {size} patch; "
            "give larger images, smaller patches, or fewer stages"
        )
    return rows, columns


def _strided(start: int, count: int, stride: int) -> slice:
    return slice(start, start + count * stride, stride)


def _pad(x: Array, padding: Padding) -> Array:
    return get_array_module(x).pad(x, ((0, 0), *padding, (0, 0)))
