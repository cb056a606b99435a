"""Compiled operations: each calls one of Numba's kernels. What is missing here is fast enough in `numpy_ops`.

The kernels are compiled when they are first called, which takes some seconds, and are kept on disk for the next time.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.core import event
from numpy.lib.stride_tricks import as_strided

from minifocal.arrays import Array
from minifocal.functional.activations import GeluCache, SigmoidCache
from minifocal.functional.add import check_same_shape
from minifocal.functional.context import FocalLevelCache, GlobalLevelCache, check_gate, check_maps
from minifocal.functional.depthwise_conv import DepthwiseConvCache, check_depthwise_conv
from minifocal.functional.layer_norm import LayerNormCache, check_layer_norm
from minifocal.functional.layer_scale import LayerScaleCache
from minifocal.functional.linear import as_rows
from minifocal.functional.modulate import ModulateCache
from minifocal.functional.patches import NO_PADDING, Padding, PatchesCache, count_patches
from minifocal.functional.updates import UpdateRow
from minifocal.fused import numba_conv, numba_kernels, numpy_activations, numpy_conv, numpy_ops
from minifocal.fused.blocks import elementwise, update_rows
from minifocal.fused.numpy_conv import TAP_SPEED, mean_over_map
from minifocal.fused.workspace import empty, empty_like
from minifocal.threads import over_ranges


class _CompilationNotice(event.Listener):
    """Says once that kernels of this package are being compiled: the first step of a first run takes its time."""

    said = False

    def on_start(self, event: Any) -> None:
        """Hear that a kernel is not on disk yet."""
        if not self.said and event.data["dispatcher"].py_func.__module__.startswith("minifocal."):
            self.said = True
            logging.getLogger("minifocal").warning("minifocal: compiling kernels, once for this machine")

    def on_end(self, event: Any) -> None:
        """Hear that it is compiled."""


event.register("numba:compile", _CompilationNotice())  # type: ignore[no-untyped-call]


def gelu_forward(x: Array) -> tuple[Array, GeluCache]:
    """As functional.activations.gelu_forward; in float32 y and slope are within 5e-7 of the exact values."""
    y, slope = elementwise(numba_kernels.gelu_kernel, x, outputs=2)
    return y, GeluCache(slope)


def gelu_tanh_forward(x: Array) -> tuple[Array, GeluCache]:
    """As functional.activations.gelu_tanh_forward."""
    y, slope = elementwise(numba_kernels.gelu_tanh_kernel, x, outputs=2)
    return y, GeluCache(slope)


def sigmoid_forward(x: Array) -> tuple[Array, SigmoidCache]:
    """As functional.activations.sigmoid_forward."""
    (y,) = elementwise(numba_kernels.sigmoid_kernel, x)
    return y, SigmoidCache(y)


def layer_norm_forward(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> tuple[Array, LayerNormCache]:
    """As functional.layer_norm.layer_norm_forward."""
    check_layer_norm(x, weight, bias)
    rows = _rows(x)
    y, x_hat, rstd = empty_like(rows), empty_like(rows), np.empty(rows.shape[0], x.dtype)

    def body(start: int, stop: int) -> None:
        numba_kernels.layer_norm_kernel(rows, weight, bias, float(eps), y, x_hat, rstd, start, stop)

    over_ranges(body, rows.shape[0], rows.size)
    return y.reshape(x.shape), LayerNormCache(x_hat.reshape(x.shape), rstd.reshape(*x.shape[:-1], 1), weight)


def layer_norm_backward(dy: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    """As functional.layer_norm.layer_norm_backward."""
    check_same_shape(dy, cache.x_hat)
    drows, x_hat = _rows(dy), _rows(cache.x_hat)
    rstd = cache.rstd.reshape(-1)
    dx = empty_like(drows)

    def body(start: int, stop: int) -> tuple[Array, Array]:
        dweight, dbias = np.zeros_like(cache.weight), np.zeros_like(cache.weight)
        numba_kernels.layer_norm_backward_kernel(drows, x_hat, rstd, cache.weight, dx, dweight, dbias, start, stop)
        return dweight, dbias

    dweight, dbias = map(sum, zip(*over_ranges(body, drows.shape[0], drows.size), strict=True))
    return dx.reshape(dy.shape), dweight, dbias


def layer_scale_backward(dy: Array, cache: LayerScaleCache) -> tuple[Array, Array]:
    """As functional.layer_scale.layer_scale_backward."""
    check_same_shape(dy, cache.x)
    drows, rows = _rows(dy), _rows(cache.x)
    dx = empty_like(drows)

    def body(start: int, stop: int) -> Array:
        dgamma = np.zeros_like(cache.gamma)
        numba_kernels.layer_scale_backward_kernel(drows, rows, cache.gamma, dx, dgamma, start, stop)
        return dgamma

    return dx.reshape(dy.shape), sum(over_ranges(body, drows.shape[0], drows.size))


def modulate_backward(dy: Array, cache: ModulateCache) -> tuple[Array, Array]:
    """As functional.modulate.modulate_backward."""
    check_same_shape(dy, cache.x)
    dx, dmodulator = empty_like(dy), empty_like(dy)
    drows, (x, pitch), modulator = _rows(dy), _flat_with_pitch(cache.x), _rows(cache.modulator)
    dx_rows, dmodulator_rows = as_rows(dx), as_rows(dmodulator)

    def body(start: int, stop: int) -> None:
        numba_kernels.modulate_backward_kernel(drows, x, pitch, modulator, dx_rows, dmodulator_rows, start, stop)

    over_ranges(body, drows.shape[0], dy.size)
    return dx, dmodulator


def patches_forward(x: Array, size: int, stride: int, padding: Padding = NO_PADDING) -> tuple[Array, PatchesCache]:
    """As functional.patches.patches_forward."""
    B, _, _, C = x.shape
    rows, columns = count_patches(x.shape, size, stride, padding)
    patches = empty((B, rows, columns, C, size, size), x.dtype)
    (above, _), (left, _) = padding

    def body(start: int, stop: int) -> None:
        numba_kernels.patches_kernel(x, size, stride, above, left, patches, start, stop)

    over_ranges(body, B, 4 * patches.size)
    return patches.reshape(B, rows, columns, -1), PatchesCache(x.shape, size, stride, padding)


def patches_backward(dpatches: Array, cache: PatchesCache) -> Array:
    """As functional.patches.patches_backward."""
    (B, _, _, C), size, stride, ((above, _), (left, _)) = cache
    parts = dpatches.reshape(*dpatches.shape[:3], C, size, size)
    dx = empty(cache.x_shape, dpatches.dtype)

    def body(start: int, stop: int) -> None:
        dx[start:stop] = 0
        numba_kernels.patches_backward_kernel(parts, size, stride, above, left, dx, start, stop)

    over_ranges(body, B, 4 * parts.size)
    return dx


def depthwise_conv_forward(x: Array, weight: Array) -> tuple[Array, DepthwiseConvCache]:
    """As functional.depthwise_conv.depthwise_conv_forward."""
    check_depthwise_conv(x, weight)
    B, H, W, C = x.shape
    k = weight.shape[0]
    z = empty(x.shape, x.dtype)
    flat_x, pitch = _flat_with_pitch(x)

    def body(start: int, stop: int) -> None:
        padded = _room(x.shape, k, x.dtype)
        numba_conv.convolve_kernel(flat_x, pitch, _flat(weight), H, W, C, k, padded, z.reshape(-1), start, stop)

    over_ranges(body, B * H, z.size * k * k // TAP_SPEED)
    return z, DepthwiseConvCache(x, weight)


def depthwise_conv_backward(dz: Array, cache: DepthwiseConvCache) -> tuple[Array, Array]:
    """As functional.depthwise_conv.depthwise_conv_backward."""
    check_same_shape(dz, cache.x)
    x, weight = cache
    B, H, W, C = x.shape
    k = weight.shape[0]
    dx = empty(x.shape, x.dtype)
    flat_dz, (flat_x, pitch), turned = _flat(dz), _flat_with_pitch(x), _flat(weight[::-1, ::-1])

    def body(start: int, stop: int) -> Array:
        padded, dweight = _room(x.shape, k, x.dtype), np.zeros(weight.size, weight.dtype)
        numba_conv.convolve_backward_kernel(
            flat_dz, flat_x, pitch, turned, H, W, C, k, padded, dx.reshape(-1), dweight, start, stop
        )
        return dweight

    return dx, sum(over_ranges(body, B, 3 * dx.size * k * k // TAP_SPEED)).reshape(weight.shape)


def focal_level_forward(
    ctx_before: Array, weight: Array, gate: Array | None, aggregate: Array | float
) -> tuple[Array, Array, FocalLevelCache]:
    """As functional.context.focal_level_forward; convolution, GELU, gate and sum a row at a time."""
    check_depthwise_conv(ctx_before, weight)
    check_gate(ctx_before, gate)
    check_maps(ctx_before, aggregate)
    B, H, W, C = shape = ctx_before.shape
    k, dtype = weight.shape[0], ctx_before.dtype
    ctx, slope, new_aggregate = empty(shape, dtype), empty(shape, dtype), empty(shape, dtype)
    flat_x, pitch = _flat_with_pitch(ctx_before)
    flat_gate, gate_pitch = _gate(gate, dtype)
    before, before_pitch = _sum_before(aggregate, C, dtype)

    def body(start: int, stop: int) -> None:
        numba_conv.focal_level_kernel(
            flat_x,
            pitch,
            _flat(weight),
            flat_gate,
            gate_pitch,
            before,
            before_pitch,
            H,
            W,
            k,
            _room(shape, k, dtype),
            as_rows(ctx),
            as_rows(slope),
            as_rows(new_aggregate),
            start,
            stop,
        )

    over_ranges(body, B * H, ctx.size * (4 + k * k // TAP_SPEED))
    cache = FocalLevelCache(DepthwiseConvCache(ctx_before, weight), GeluCache(slope), ctx, gate)
    return ctx, new_aggregate, cache


def focal_level_backward(
    dctx: Array | float, daggregate: Array, cache: FocalLevelCache
) -> tuple[Array, Array, Array | None]:
    """As functional.context.focal_level_backward."""
    check_maps(cache.ctx, daggregate, dctx)
    B, H, W, _ = shape = daggregate.shape
    dtype = daggregate.dtype
    dz, dgate = empty(shape, dtype), np.empty((B, H, W, 1), dtype)
    flat_dctx, dctx_pitch, dctx_image = _gradient_from_above(dctx, shape, dtype)
    daggregate_rows, ctx_rows, slope_rows = _rows(daggregate), _rows(cache.ctx), _rows(cache.gelu.slope)
    flat_gate, gate_pitch = _gate(cache.gate, dtype)

    def body(start: int, stop: int) -> None:
        numba_conv.gated_gradient_kernel(
            flat_dctx,
            dctx_pitch,
            dctx_image,
            daggregate_rows,
            flat_gate,
            gate_pitch,
            ctx_rows,
            slope_rows,
            H * W,
            as_rows(dz),
            dgate.reshape(-1),
            start,
            stop,
        )

    over_ranges(body, B * H * W, dz.size)
    dctx_before, dweight = depthwise_conv_backward(dz, cache.conv)
    return dctx_before, dweight, None if cache.gate is None else dgate


def global_level_forward(ctx: Array, gate: Array, aggregate: Array | float) -> tuple[Array, GlobalLevelCache]:
    """As functional.context.global_level_forward."""
    check_gate(ctx, gate)
    check_maps(ctx, aggregate)
    B, H, W, C = ctx.shape
    ctx_global, gelu_cache = gelu_forward(mean_over_map(ctx))
    new_aggregate = empty(ctx.shape, ctx.dtype)
    flat_gate, gate_pitch = _gate(gate, ctx.dtype)
    before, before_pitch = _sum_before(aggregate, C, ctx.dtype)

    def body(start: int, stop: int) -> None:
        numba_conv.global_level_kernel(
            as_rows(ctx_global), flat_gate, gate_pitch, before, before_pitch, H * W, as_rows(new_aggregate), start, stop
        )

    over_ranges(body, B * H * W, ctx.size)
    return new_aggregate, GlobalLevelCache(ctx.shape, gelu_cache, ctx_global, gate)


def sgd_update(
    rows: Sequence[UpdateRow], *, lr: float, momentum: float, nesterov: bool, skip: Array | None = None
) -> None:
    """As functional.updates.sgd_update."""
    options = float(lr), float(momentum), bool(nesterov)
    update_rows(lambda decay, *parts: numba_kernels.sgd_kernel(*parts, *options, decay), rows, skip)


def adamw_update(
    rows: Sequence[UpdateRow],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    steps: int,
    skip: Array | None = None,
) -> None:
    """As functional.updates.adamw_update."""
    options = float(lr), *map(float, betas), float(eps)
    update_rows(lambda decay, *parts: numba_kernels.adamw_kernel(*parts, *options, decay, int(steps)), rows, skip)


def _flat(x: Array) -> Array:
    return np.ascontiguousarray(x).reshape(-1)


def _rows(x: Array) -> Array:
    return np.ascontiguousarray(as_rows(x))


def _flat_with_pitch(x: Array) -> tuple[Array, int]:
    """Give (..., C) as a flat array and the distance between its rows: a part of wider rows is not copied."""
    C, rows, pitch = x.shape[-1], 1, 0
    regular = x.strides[-1] == x.itemsize
    for size, stride in zip(x.shape[-2::-1], x.strides[-2::-1], strict=True):
        if size > 1:
            pitch = pitch or stride // x.itemsize
            regular = regular and stride == rows * pitch * x.itemsize
            rows *= size
    if not regular or (rows > 1 and pitch < C):
        return _flat(x), C
    return as_strided(x, ((rows - 1) * pitch + C,), (x.itemsize,)), pitch


def _gate(gate: Array | None, dtype: np.dtype) -> tuple[Array, int]:
    """Give a gate as a flat array and its pitch: one 1 for all tokens where there is none."""
    return (np.ones(1, dtype), 0) if gate is None else _flat_with_pitch(gate)


def _sum_before(aggregate: Array | float, C: int, dtype: np.dtype) -> tuple[Array, int]:
    """Give the sum over the levels before as a flat array and its pitch: the same row for all where it is a number."""
    if isinstance(aggregate, np.ndarray):
        return _flat_with_pitch(aggregate)
    return np.full(C, aggregate, dtype), 0


def _gradient_from_above(dctx: Array | float, shape: tuple[int, ...], dtype: np.dtype) -> tuple[Array, int, int]:
    """Give dctx as a flat array, the distance between its tokens, and that between its images.

    From the global level every token of an image gets the same, an array of which only one row exists.
    """
    _, H, W, C = shape
    if not isinstance(dctx, np.ndarray):
        return np.full(C, dctx, dtype), 0, 0
    if dctx.strides[1:3] == (0, 0):
        return dctx[:, 0, 0].copy().reshape(-1), 0, C
    return _flat(dctx), C, H * W * C


def _room(shape: tuple[int, ...], k: int, dtype: np.dtype) -> Array:
    """Zeros with room for one image and the margins that a k x k kernel needs, flat."""
    _, H, W, C = shape
    padded = empty(((H + k - 1) * (W + k - 1) * C,), dtype)
    padded[:] = 0
    return padded


OVERRIDES = {
    **numpy_ops.OVERRIDES,
    "gelu": (gelu_forward, numpy_activations.gelu_backward),
    "gelu_tanh": (gelu_tanh_forward, numpy_activations.gelu_tanh_backward),
    "sigmoid": (sigmoid_forward, numpy_activations.sigmoid_backward),
    "layer_norm": (layer_norm_forward, layer_norm_backward),
    "layer_scale": (numpy_ops.layer_scale_forward, layer_scale_backward),
    "depthwise_conv": (depthwise_conv_forward, depthwise_conv_backward),
    "focal_level": (focal_level_forward, focal_level_backward),
    "global_level": (global_level_forward, numpy_conv.global_level_backward),
    "patches": (patches_forward, patches_backward),
    "modulate": (numpy_ops.modulate_forward, modulate_backward),
    "sgd_update": sgd_update,
    "adamw_update": adamw_update,
}
"""What replaces what: pairs (forward, backward), and single functions."""
