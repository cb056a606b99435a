"""Depthwise convolutions and focal levels on a GPU."""

import numpy as np

from minifocal.arrays import Array, get_array_module
from minifocal.functional import context, depthwise_conv
from minifocal.functional.activations import GeluCache
from minifocal.functional.add import check_same_shape
from minifocal.functional.context import FocalLevelCache, GlobalLevelCache, check_gate, check_maps
from minifocal.functional.depthwise_conv import DepthwiseConvCache, check_depthwise_conv
from minifocal.functional.linear import as_rows
from minifocal.fused.gpu_activations import gelu_backward, gelu_forward
from minifocal.fused.gpu_calls import (
    LANES,
    array_or_number,
    ceil_divide,
    check_shape,
    column_sums,
    empty,
    gate_or_null,
    in_order,
    launch,
    mean_over_map,
    over_numbers,
    over_rows,
    over_strips,
    pitched,
    rows_of,
    share_of,
    sizes_of,
    vector_for,
)

LARGEST_KERNEL = 31
"""The kernel sizes that a block has a warp for each row of. Larger ones, which nobody uses, are left to CuPy."""


def depthwise_conv_forward(x: Array, weight: Array) -> tuple[Array, DepthwiseConvCache]:
    """As functional.depthwise_conv.depthwise_conv_forward."""
    check_depthwise_conv(x, weight)
    if weight.shape[0] > LARGEST_KERNEL:
        return depthwise_conv.depthwise_conv_forward(x, weight)
    return _convolve(x, weight, turned=False), DepthwiseConvCache(x, weight)


def depthwise_conv_backward(dz: Array, cache: DepthwiseConvCache) -> tuple[Array, Array]:
    """As functional.depthwise_conv.depthwise_conv_backward; each warp has one row of the kernel's gradient."""
    check_same_shape(dz, cache.x)
    x, weight = cache
    if weight.shape[0] > LARGEST_KERNEL:
        return depthwise_conv.depthwise_conv_backward(dz, cache)
    upstream, (tokens, pitch) = in_order(dz), pitched(x)
    B, H, W, C = x.shape
    k = weight.shape[0]
    V = vector_for(C, upstream, tokens, pitches=(pitch,))
    groups = ceil_divide(C, LANES * V)
    share = share_of(B * H, groups)
    shares = ceil_divide(B * H, share)
    parts = empty((shares, weight.size), dz)
    launch(
        "depthwise_conv_weight",
        dz.dtype,
        f", {V}, {k}",
        (shares, groups),
        (LANES, k),
        upstream,
        tokens,
        np.int64(pitch),
        np.int64(B * H),
        np.int64(share),
        *map(np.int32, (H, W, C)),
        parts,
    )
    dweight, _ = column_sums(parts, share=shares)
    return _convolve(upstream, weight, turned=True), dweight.reshape(weight.shape)


def _convolve(x: Array, weight: Array, turned: bool) -> Array:
    (tokens, pitch), taps, z = pitched(x), in_order(weight), empty(x.shape, x)
    V = vector_for(x.shape[3], tokens, taps, pitches=(pitch,))
    options = f", {V}, {weight.shape[0]}, {'true' if turned else 'false'}"
    sizes = map(np.int32, x.shape[1:])
    over_strips("depthwise_conv", x, V, options, tokens, np.int64(pitch), taps, z, *sizes)
    return z


def focal_level_forward(
    ctx_before: Array, weight: Array, gate: Array | None, aggregate: Array | float
) -> tuple[Array, Array, FocalLevelCache]:
    """As functional.context.focal_level_forward, in one pass over memory."""
    check_depthwise_conv(ctx_before, weight)
    check_gate(ctx_before, gate)
    check_maps(ctx_before, aggregate)
    if weight.shape[0] > LARGEST_KERNEL:
        return context.focal_level_forward(ctx_before, weight, gate, aggregate)
    x, pitch = pitched(ctx_before)
    taps, (before, start) = in_order(weight), array_or_number(aggregate, x)
    ctx, slope, new_aggregate = (empty(x.shape, x) for _ in range(3))
    V = vector_for(x.shape[3], x, taps, before, pitches=(pitch,))
    over_strips(
        "focal_level",
        x,
        V,
        f", {V}, {weight.shape[0]}",
        x,
        np.int64(pitch),
        taps,
        *gate_or_null(gate),
        before,
        start,
        ctx,
        slope,
        new_aggregate,
        *map(np.int32, x.shape[1:]),
    )
    cache = FocalLevelCache(DepthwiseConvCache(ctx_before, weight), GeluCache(slope), ctx, gate)
    return ctx, new_aggregate, cache


def focal_level_backward(
    dctx: Array | float, daggregate: Array, cache: FocalLevelCache
) -> tuple[Array, Array, Array | None]:
    """As functional.context.focal_level_backward."""
    check_maps(cache.ctx, daggregate, dctx)
    B, H, W, C = daggregate.shape
    upstream, ctx, slope = map(in_order, (daggregate, cache.ctx, cache.gelu.slope))
    image, token = H * W * C, C
    if not isinstance(dctx, float | int) and dctx.strides[1:3] == (0, 0):
        dctx, image, token = dctx[:, 0, 0], C, 0  # every token of an image gets the same
    from_above, above = array_or_number(dctx, upstream)
    dz, dgate = empty(upstream.shape, upstream), empty((B, H, W, 1), upstream)
    V = vector_for(C, from_above, upstream, ctx, slope)
    over_rows(
        "gated_gradient",
        as_rows(upstream),
        V,
        from_above,
        np.int64(image),
        np.int64(token),
        above,
        upstream,
        *gate_or_null(cache.gate),
        ctx,
        slope,
        dz,
        dgate,
        np.int64(B * H * W),
        np.int32(H * W),
        np.int32(C),
    )
    dctx_before, dweight = depthwise_conv_backward(dz, cache.conv)
    return dctx_before, dweight, None if cache.gate is None else dgate


def global_level_forward(ctx: Array, gate: Array, aggregate: Array | float) -> tuple[Array, GlobalLevelCache]:
    """As functional.context.global_level_forward."""
    check_gate(ctx, gate)
    check_maps(ctx, aggregate)
    B, H, W, C = ctx.shape
    ctx_global, gelu_cache = gelu_forward(mean_over_map(ctx).reshape(B, 1, 1, C))
    before, start = array_or_number(aggregate, ctx)
    new_aggregate = empty(ctx.shape, ctx)
    V = vector_for(C, ctx_global, before)
    over_numbers(
        "global_level",
        new_aggregate,
        V,
        ctx_global,
        *gate_or_null(gate),
        before,
        start,
        new_aggregate,
        np.int32(H * W),
        np.int32(C),
    )
    return new_aggregate, GlobalLevelCache(ctx.shape, gelu_cache, ctx_global, gate)


def global_level_backward(daggregate: Array, cache: GlobalLevelCache) -> tuple[Array, Array]:
    """As functional.context.global_level_backward."""
    check_shape(daggregate, cache.ctx_shape)
    B, H, W, C = cache.ctx_shape
    rows, ctx_global = rows_of(daggregate), in_order(cache.ctx_global)
    dgate = empty((B, H, W, 1), rows)
    V = vector_for(C, rows, ctx_global)
    over_rows("row_products", rows, V, rows, ctx_global, np.int32(H * W), *sizes_of(rows), dgate)
    dctx_global, _ = column_sums(rows, weight=cache.gate, share=H * W)
    dmean = gelu_backward(dctx_global.reshape(B, 1, 1, C), cache.gelu)
    return get_array_module(rows).broadcast_to(dmean / (H * W), cache.ctx_shape), dgate
