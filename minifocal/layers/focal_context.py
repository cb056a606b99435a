"""FocalContext: the chain of focal levels, gathered into one context per token."""

from typing import NamedTuple

from minifocal.arrays import Array, get_array_module
from minifocal.functional.context import FocalLevelCache, GlobalLevelCache
from minifocal.layers.base import Layer
from minifocal.layers.depthwise_conv import DepthwiseConv
from minifocal.layers.initializers import Initializer
from minifocal.ops import REFERENCE, Ops


class FocalContextCache(NamedTuple):
    """What `FocalContext.backward` needs, level by level."""

    levels: tuple[FocalLevelCache, ...]
    global_level: GlobalLevelCache | None


class RecomputedContextCache(NamedTuple):
    """What `FocalContext.backward` needs to gather the levels once more: what went in, and nothing of what it gave."""

    ctx: Array  # (B, H, W, C)
    gates: Array | None  # (B, H, W, L+1)


class FocalContext(Layer):
    """Hierarchical contextualisation and gated aggregation.

        ctx_l = GELU(DWConv_l(ctx_{l-1})),  l = 1..L
        aggregate = sum_l gates[l-1] * ctx_l + gates[L] * GELU(mean over H and W of ctx_L)

    Without gates: the plain sum of the levels, and no global level. It takes gates where other layers take an rng
    and gives two gradients, so check it through a modulation.

    Args:
        dim: channels.
        kernel_sizes: k of each level, odd; its length is L.
        init: draws the kernels.
    Attributes:
        recompute: keep nothing of the levels for the way back, but compute them again there: less memory, more time.
    """

    inline = True

    def __init__(self, dim: int, kernel_sizes: tuple[int, ...], *, init: Initializer, ops: Ops = REFERENCE) -> None:
        super().__init__(ops)
        self.recompute = False
        # One-tuples, so that a kernel is called "focal_layers.l.0.weight" as in published weights.
        self.focal_layers = [(DepthwiseConv(dim, k, init=init, ops=ops),) for k in kernel_sizes]

    def forward(
        self, ctx: Array, gates: Array | None = None
    ) -> tuple[Array, FocalContextCache | RecomputedContextCache]:
        """Gather context.

        Args:
            ctx: (B, H, W, C), float: ctx_0.
            gates: (B, H, W, L+1), the last one for the global level; or None.
        Returns:
            the aggregate, (B, H, W, C); and a FocalContextCache, or a RecomputedContextCache.
        """
        aggregate, cache = self._gather(ctx, gates)
        return aggregate, RecomputedContextCache(ctx, gates) if self.recompute else cache

    def _gather(self, ctx: Array, gates: Array | None) -> tuple[Array, FocalContextCache]:
        aggregate: Array = 0.0
        levels = []
        # A level is one operation (conv, GELU, gate, sum), which a fused implementation does in one pass over memory.
        for level, (conv,) in enumerate(self.focal_layers):
            gate = None if gates is None else gates[..., level : level + 1]
            ctx, aggregate, cache = self.ops.focal_level.forward(ctx, conv.weight.data, gate, aggregate)
            levels.append(cache)
        global_cache = None
        if gates is not None:
            aggregate, global_cache = self.ops.global_level.forward(ctx, gates[..., -1:], aggregate)
        return aggregate, FocalContextCache(tuple(levels), global_cache)

    def backward(
        self, daggregate: Array, cache: FocalContextCache | RecomputedContextCache
    ) -> tuple[Array, Array | None]:
        """Give (dctx, dgates), from the widest level back to the first; add to the kernels' gradients."""
        cache = self.full_cache(cache)
        dctx: Array = 0.0
        dgates = []
        if cache.global_level is not None:
            dctx, dgate = self.ops.global_level.backward(daggregate, cache.global_level)
            dgates.append(dgate)
        for (conv,), level in zip(reversed(self.focal_layers), reversed(cache.levels), strict=True):
            dctx, dweight, dgate = self.ops.focal_level.backward(dctx, daggregate, level)
            conv.weight.grad += dweight
            dgates.append(dgate)
        if cache.global_level is None:
            return dctx, None
        return dctx, get_array_module(daggregate).concatenate(dgates[::-1], axis=-1)

    def full_cache(self, cache: FocalContextCache | RecomputedContextCache) -> FocalContextCache:
        """Give the cache with all levels in it: computed again where they were not kept."""
        return self._gather(*cache)[1] if isinstance(cache, RecomputedContextCache) else cache
