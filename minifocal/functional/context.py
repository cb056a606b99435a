"""Context for a token: focal levels, each a depthwise convolution wider than the last, and the whole map.

Each step takes the sum gathered so far and gives it back with its own share added, so that a fused implementation
can do a whole step in one pass over memory.
"""

from typing import NamedTuple

from minifocal.arrays import Array, get_array_module
from minifocal.errors import InputError
from minifocal.functional.activations import GeluCache, gelu_backward, gelu_forward
from minifocal.functional.add import check_same_shape
from minifocal.functional.depthwise_conv import (
    DepthwiseConvCache,
    depthwise_conv_backward,
    depthwise_conv_forward,
)


class FocalLevelCache(NamedTuple):
    """What `focal_level_backward` needs."""

    conv: DepthwiseConvCache
    gelu: GeluCache
    ctx: Array  # (B, H, W, C) this level's context
    gate: Array | None  # (B, H, W, 1)


def focal_level_forward(
    ctx_before: Array, weight: Array, gate: Array | None, aggregate: Array | float
) -> tuple[Array, Array, FocalLevelCache]:
    """Widen the context by one level and add its gated share to the aggregate.

    ctx_l = GELU(DWConv(ctx_{l-1})),   aggregate + gate * ctx_l

    Args:
        ctx_before: (B, H, W, C), float: ctx_{l-1}, the context of the level before.
        weight: (k, k, C): the level's depthwise kernel, k odd.
        gate: (B, H, W, 1): how much of this level each token wants, shared over channels; None adds it whole.
        aggregate: (B, H, W, C): the sum over the levels before; 0.0 at the first.
    Returns:
        ctx_l and the new aggregate, both (B, H, W, C); and a FocalLevelCache.
    Raises:
        InputError: weight has other channels than ctx_before, k is even, or gate is not (B, H, W, 1).
    Source: Yang et al. 2022, equations 4 and 5 (arXiv:2203.11926).
    """
    check_gate(ctx_before, gate)
    z, conv_cache = depthwise_conv_forward(ctx_before, weight)
    ctx, gelu_cache = gelu_forward(z)
    share = ctx if gate is None else gate * ctx
    return ctx, aggregate + share, FocalLevelCache(conv_cache, gelu_cache, ctx, gate)


def focal_level_backward(
    dctx: Array | float, daggregate: Array, cache: FocalLevelCache
) -> tuple[Array, Array, Array | None]:
    """Gradients of focal_level_forward: (dctx of the level before, dweight, dgate).

    Args:
        dctx: what comes back to ctx_l from the level after it (and from the global level); 0.0 at the last.
        daggregate: (B, H, W, C): it goes to the aggregate of the levels before unchanged.
        cache: of the forward pass.
    """
    if cache.gate is None:
        dctx, dgate = dctx + daggregate, None
    else:
        dctx = dctx + cache.gate * daggregate
        dgate = (daggregate * cache.ctx).sum(axis=-1, keepdims=True)
    dz = gelu_backward(dctx, cache.gelu)
    dctx_before, dweight = depthwise_conv_backward(dz, cache.conv)
    return dctx_before, dweight, dgate


class GlobalLevelCache(NamedTuple):
    """What `global_level_backward` needs."""

    ctx_shape: tuple[int, ...]  # (B, H, W, C)
    gelu: GeluCache
    ctx_global: Array  # (B, 1, 1, C)
    gate: Array  # (B, H, W, 1)


def global_level_forward(ctx: Array, gate: Array, aggregate: Array | float) -> tuple[Array, GlobalLevelCache]:
    """Add the gated context of the whole map: aggregate + gate * GELU(mean of ctx over H and W).

    Args:
        ctx: (B, H, W, C), float: the last level's context.
        gate: (B, H, W, 1). aggregate: (B, H, W, C), or 0.0 where there is no level.
    Returns:
        the new aggregate, (B, H, W, C); and a GlobalLevelCache.
    Raises:
        InputError: gate is not (B, H, W, 1).
    Source: Yang et al. 2022, section 3.2 (arXiv:2203.11926).
    """
    check_gate(ctx, gate)
    ctx_global, gelu_cache = gelu_forward(ctx.mean(axis=(1, 2), keepdims=True))
    return aggregate + gate * ctx_global, GlobalLevelCache(ctx.shape, gelu_cache, ctx_global, gate)


def global_level_backward(daggregate: Array, cache: GlobalLevelCache) -> tuple[Array, Array]:
    """Gradients of global_level_forward: (dctx, dgate), shaped like ctx and gate.

    The mean spreads its gradient evenly: each of the H*W tokens gets 1/(H*W) of it.
    """
    xp = get_array_module(daggregate)
    _, H, W, _ = cache.ctx_shape
    dgate = (daggregate * cache.ctx_global).sum(axis=-1, keepdims=True)
    dctx_global = (daggregate * cache.gate).sum(axis=(1, 2), keepdims=True)
    dmean = gelu_backward(dctx_global, cache.gelu)
    return xp.broadcast_to(dmean / (H * W), cache.ctx_shape), dgate


def check_gate(ctx: Array, gate: Array | None) -> None:
    """Refuse a gate that is not one number a token.

    Raises:
        InputError: gate is not (B, H, W, 1).
    """
    if gate is None:
        return
    get_array_module(ctx, gate)
    expected = (*ctx.shape[:3], 1)
    if gate.shape != expected:
        raise InputError(f"context: expected a gate of shape {expected}, got {tuple(gate.shape)}")


def check_maps(ctx: Array, *others: Array | float) -> None:
    """Refuse maps that are neither numbers nor of the shape of ctx.

    Raises:
        InputError: a shape differs.
    """
    for other in others:
        if not isinstance(other, float | int):
            check_same_shape(ctx, other)
