"""Depthwise convolutions and focal levels in NumPy, by windows over one padded image at a time.

Between zeros, the neighbourhoods of all tokens lie at fixed distances from each other, so a view shows them without a
copy, and `einsum` sums over it. A row's tokens and channels are gone through as one axis: the longer, the faster.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minifocal.arrays import Array
from minifocal.functional.add import check_same_shape
from minifocal.functional.context import FocalLevelCache, GlobalLevelCache, check_gate, check_maps
from minifocal.functional.depthwise_conv import DepthwiseConvCache, check_depthwise_conv
from minifocal.functional.linear import as_rows
from minifocal.fused.blocks import image_rows
from minifocal.fused.numpy_activations import gelu_backward, gelu_forward
from minifocal.fused.workspace import empty
from minifocal.threads import over_ranges

TAP_SPEED = 8  # multiply-adds of a convolution in the time of one elementwise step, roughly


class _PaddedImage:
    """Room for one image between zeros, and the view of its neighbourhoods."""

    def __init__(self, shape: tuple[int, ...], k: int, dtype: np.dtype) -> None:
        _, H, W, C = shape
        padded = np.zeros((H + k - 1, W + k - 1, C), dtype)
        self.inner = padded[k // 2 : k // 2 + H, k // 2 : k // 2 + W]
        down, right, item = padded.strides
        # windows[h, i, j, (w, c)] = padded[h + i, w + j, c]
        self.windows = as_strided(padded, (H, k, k, W * C), (down, down, right, item))


def depthwise_conv_forward(x: Array, weight: Array) -> tuple[Array, DepthwiseConvCache]:
    """As functional.depthwise_conv.depthwise_conv_forward."""
    check_depthwise_conv(x, weight)
    B, H, W, C = x.shape
    k = weight.shape[0]
    z = empty(x.shape, x.dtype)
    row_weight = _along_a_row(weight, W)

    def body(start: int, stop: int) -> None:  # rows of all images, counted on
        image = _PaddedImage(x.shape, k, x.dtype)
        for b, rows in image_rows(start, stop, H):
            image.inner[...] = x[b]
            np.einsum("hijx,ijx->hx", image.windows[rows], row_weight, out=z[b, rows].reshape(-1, W * C))

    over_ranges(body, B * H, z.size * k * k // TAP_SPEED)
    return z, DepthwiseConvCache(x, weight)


def depthwise_conv_backward(dz: Array, cache: DepthwiseConvCache) -> tuple[Array, Array]:
    """As functional.depthwise_conv.depthwise_conv_backward."""
    check_same_shape(dz, cache.x)
    x, weight = cache
    B, H, W, C = x.shape
    k = weight.shape[0]
    dx = empty(x.shape, x.dtype)
    row_weight = _along_a_row(weight[::-1, ::-1], W)

    def body(start: int, stop: int) -> Array:
        image = _PaddedImage(x.shape, k, x.dtype)
        dweight = np.zeros((k, k, W * C), x.dtype)
        for b in range(start, stop):
            image.inner[...] = dz[b]
            np.einsum("hijx,ijx->hx", image.windows, row_weight, out=dx[b].reshape(H, W * C))
            image.inner[...] = x[b]
            dweight += np.einsum("hijx,hx->ijx", image.windows, dz[b].reshape(H, W * C))
        return dweight.reshape(k, k, W, C).sum(axis=2)

    return dx, sum(over_ranges(body, B, 3 * dx.size * k * k // TAP_SPEED))


def _along_a_row(weight: Array, W: int) -> Array:
    """The kernel of every channel, again for each of the W tokens of a row: (k, k, W*C)."""
    return np.tile(weight, (1, 1, W))


def focal_level_forward(
    ctx_before: Array, weight: Array, gate: Array | None, aggregate: Array | float
) -> tuple[Array, Array, FocalLevelCache]:
    """As functional.context.focal_level_forward."""
    check_gate(ctx_before, gate)
    check_maps(ctx_before, aggregate)
    z, conv_cache = depthwise_conv_forward(ctx_before, weight)
    ctx, gelu_cache = gelu_forward(z)
    cache = FocalLevelCache(conv_cache, gelu_cache, ctx, gate)
    return ctx, _plus_gated(aggregate, gate, ctx), cache


def focal_level_backward(
    dctx: Array | float, daggregate: Array, cache: FocalLevelCache
) -> tuple[Array, Array, Array | None]:
    """As functional.context.focal_level_backward."""
    check_maps(cache.ctx, daggregate, dctx)
    dgate = None if cache.gate is None else _dot(daggregate, cache.ctx)
    dz = gelu_backward(_plus_gated(dctx, cache.gate, daggregate), cache.gelu)
    dctx_before, dweight = depthwise_conv_backward(dz, cache.conv)
    return dctx_before, dweight, dgate


def global_level_forward(ctx: Array, gate: Array, aggregate: Array | float) -> tuple[Array, GlobalLevelCache]:
    """As functional.context.global_level_forward."""
    check_gate(ctx, gate)
    check_maps(ctx, aggregate)
    ctx_global, gelu_cache = gelu_forward(mean_over_map(ctx))
    return _plus_gated(aggregate, gate, ctx_global), GlobalLevelCache(ctx.shape, gelu_cache, ctx_global, gate)


def global_level_backward(daggregate: Array, cache: GlobalLevelCache) -> tuple[Array, Array]:
    """As functional.context.global_level_backward; the sums over channels and over tokens are matrix products."""
    B, H, W, C = cache.ctx_shape
    tokens = daggregate.reshape(B, H * W, C)
    dgate = tokens @ cache.ctx_global.reshape(B, C, 1)
    dctx_global = cache.gate.reshape(B, 1, H * W) @ tokens
    dmean = gelu_backward(dctx_global.reshape(B, 1, 1, C), cache.gelu)
    return np.broadcast_to(dmean / (H * W), cache.ctx_shape), dgate.reshape(B, H, W, 1)


def mean_over_map(ctx: Array) -> Array:
    """The mean over all tokens of each image, (B, 1, 1, C), as a matrix product."""
    B, H, W, C = ctx.shape
    average = np.full((1, H * W), 1.0 / (H * W), ctx.dtype)
    return (average @ ctx.reshape(B, H * W, C)).reshape(B, 1, 1, C)


def _plus_gated(x: Array | float, gate: Array | None, y: Array) -> Array:
    """x + gate * y, by rows of images; without a gate x + y."""
    shape = y.shape if gate is None else np.broadcast_shapes(gate.shape, y.shape)
    z = empty(shape, y.dtype)
    y = np.broadcast_to(y, shape)
    x = np.broadcast_to(np.asarray(x, y.dtype), shape)

    def body(start: int, stop: int) -> None:
        for at in image_rows(start, stop, shape[1]):
            if gate is None:
                np.add(x[at], y[at], out=z[at])
            else:
                np.multiply(gate[at], y[at], out=z[at])
                z[at] += x[at]

    over_ranges(body, shape[0] * shape[1], z.size)
    return z


def _dot(x: Array, y: Array) -> Array:
    """The sum of products over the channels of each token, (B, H, W, 1)."""
    x_rows, y_rows = as_rows(x), as_rows(y)
    z = np.empty(x_rows.shape[0], x.dtype)
    over_ranges(lambda a, b: np.vecdot(x_rows[a:b], y_rows[a:b], out=z[a:b]), z.size, x.size)
    return z.reshape(*x.shape[:-1], 1)
