"""Three modulations, one interface: (B, H, W, C) to the same shape; each cache shows `q`, `gates` and `modulator`.

What they share: a query `q` says what a token is, context is gathered around it, gates choose from the context, and the
query is modulated, multiplied, by the result.
"""

from typing import Any, NamedTuple, TypeAlias

from minifocal.arrays import Array, Generator
from minifocal.functional.activations import GeluCache, SigmoidCache
from minifocal.functional.box_mean import BoxMeanCache
from minifocal.functional.drop_path import DropCache
from minifocal.functional.layer_norm import LayerNormCache
from minifocal.functional.linear import LinearCache
from minifocal.functional.modulate import ModulateCache
from minifocal.functional.split import SplitCache
from minifocal.layers.base import Layer
from minifocal.layers.drop_path import Dropout
from minifocal.layers.focal_context import FocalContext, FocalContextCache, RecomputedContextCache
from minifocal.layers.initializers import Initializer
from minifocal.layers.layer_norm import LayerNorm
from minifocal.layers.linear import Linear
from minifocal.models.config import BOX_MEAN, FOCAL, SIGMOID_GATE, FocalNetConfig
from minifocal.ops import REFERENCE, Ops


class FocalModulationCache(NamedTuple):
    """What `FocalModulation.backward` needs, and what there is to see."""

    f: LinearCache
    split: SplitCache
    context: FocalContextCache | RecomputedContextCache
    h: LinearCache
    gates: Array  # (B, H, W, L+1) one per level, the last for the whole map; any real number
    modulate: ModulateCache
    ln: LayerNormCache | None
    proj: LinearCache
    dropout: DropCache

    @property
    def q(self) -> Array:
        """The query, (B, H, W, C)."""
        return self.modulate.x

    @property
    def modulator(self) -> Array:
        """The modulator, (B, H, W, C)."""
        return self.modulate.modulator


class FocalModulation(Layer):
    """The published focal modulation.

        q, ctx, gates = split(f(x))
        y = proj(q * h(context(ctx, gates)))

    Args:
        config: of the network. stage: which stage's widths and levels to take.
    Source: Yang et al. 2022, section 3 (arXiv:2203.11926).
    """

    def __init__(self, config: FocalNetConfig, stage: int, *, init: Initializer, ops: Ops = REFERENCE) -> None:
        super().__init__(ops)
        dim = config.dims[stage]
        self.widths = (dim, dim, config.focal_levels[stage] + 1)  # of q, ctx and gates: one matrix for all three
        self.f = Linear(dim, sum(self.widths), init=init, ops=ops)
        self.context = FocalContext(dim, config.kernel_sizes(stage), init=init, ops=ops)
        self.h = Linear(dim, dim, init=init, ops=ops, kind="conv")
        self.ln = LayerNorm(dim, init=init, ops=ops, eps=config.ln_eps) if config.use_postln_in_modulation else None
        self.proj = Linear(dim, dim, init=init, ops=ops)
        self.dropout = Dropout(config.drop_rate, ops=ops)
        self.normalize = config.normalize_modulator

    def forward(self, x: Array, rng: Generator | None = None) -> tuple[Array, FocalModulationCache]:
        """Modulate (B, H, W, C)."""
        projected, f_cache = self.f.forward(x)
        (q, ctx, gates), split_cache = self.ops.split.forward(projected, self.widths)
        aggregate, context_cache = self.context.forward(ctx, gates)
        if self.normalize:
            aggregate = aggregate / gates.shape[-1]
        modulator, h_cache = self.h.forward(aggregate)
        y, modulate_cache = self.ops.modulate.forward(q, modulator)
        ln_cache = None
        if self.ln is not None:
            y, ln_cache = self.ln.forward(y)
        y, proj_cache = self.proj.forward(y)
        y, dropout_cache = self.dropout.forward(y, rng)
        return y, FocalModulationCache(
            f_cache, split_cache, context_cache, h_cache, gates, modulate_cache, ln_cache, proj_cache, dropout_cache
        )

    def backward(self, dy: Array, cache: FocalModulationCache) -> Array:
        """Give dx; add to the gradients of f, the kernels, h, ln and proj."""
        dy = self.dropout.backward(dy, cache.dropout)
        dmodulated = self.proj.backward(dy, cache.proj)
        if self.ln is not None:
            dmodulated = self.ln.backward(dmodulated, cache.ln)  # type: ignore[arg-type]
        dq, dmodulator = self.ops.modulate.backward(dmodulated, cache.modulate)
        daggregate = self.h.backward(dmodulator, cache.h)
        if self.normalize:
            daggregate = daggregate / cache.gates.shape[-1]
        dctx, dgates = self.context.backward(daggregate, cache.context)
        return self.f.backward(self.ops.split.backward((dq, dctx, dgates), cache.split), cache.f)


class FocalLevelsCache(NamedTuple):
    """What `FocalLevels.backward` needs."""

    context: LinearCache
    levels: FocalContextCache | RecomputedContextCache


class FocalLevels(Layer):
    """The sum of L chained focal levels, none of them gated by itself.

    ctx_0 = context(x),  ctx_l = GELU(DWConv_l(ctx_{l-1})),  ctx = sum_l ctx_l
    """

    inline = True

    def __init__(self, config: FocalNetConfig, stage: int, *, init: Initializer, ops: Ops) -> None:
        super().__init__(ops)
        dim = config.dims[stage]
        self.context = Linear(dim, dim, init=init, ops=ops)
        self.levels = FocalContext(dim, config.kernel_sizes(stage), init=init, ops=ops)

    def forward(self, x: Array, rng: Generator | None = None) -> tuple[Array, FocalLevelsCache]:
        """Gather context for (B, H, W, C)."""
        ctx, context_cache = self.context.forward(x)
        ctx, levels_cache = self.levels.forward(ctx)
        return ctx, FocalLevelsCache(context_cache, levels_cache)

    def backward(self, dctx: Array, cache: FocalLevelsCache) -> Array:
        """Give dx; add to the gradients of context and of the kernels."""
        dctx, _ = self.levels.backward(dctx, cache.levels)
        return self.context.backward(dctx, cache.context)


class BoxLevelCache(NamedTuple):
    """What one level of `BoxLevels.backward` needs."""

    linear: LinearCache
    gelu: GeluCache
    box: BoxMeanCache


class BoxLevels(Layer):
    """Edifice's context: L levels side by side, each a linear map, GELU and a fixed mean over a growing window.

    ctx = sum_l box_mean(GELU(levels.l(x)), window * (l+1)),  l = 0..L-1,  no mean at l = 0
    """

    inline = True

    def __init__(self, config: FocalNetConfig, stage: int, *, init: Initializer, ops: Ops) -> None:
        super().__init__(ops)
        dim, window = config.dims[stage], config.focal_windows[stage]
        self.levels = [Linear(dim, dim, init=init, ops=ops) for _ in range(config.focal_levels[stage])]
        self.widths = [1] + [window * (level + 1) for level in range(1, len(self.levels))]

    def forward(self, x: Array, rng: Generator | None = None) -> tuple[Array, tuple[BoxLevelCache, ...]]:
        """Gather context for (B, H, W, C)."""
        ctx: Array = 0.0
        caches = []
        for linear, width in zip(self.levels, self.widths, strict=True):
            z, linear_cache = linear.forward(x)
            z, gelu_cache = self.ops.gelu.forward(z)
            z, box_cache = self.ops.box_mean.forward(z, width)
            ctx = ctx + z
            caches.append(BoxLevelCache(linear_cache, gelu_cache, box_cache))
        return ctx, tuple(caches)

    def backward(self, dctx: Array, cache: tuple[BoxLevelCache, ...]) -> Array:
        """Give dx, the sum over the levels; add to the gradients of their linear maps."""
        dx: Array = 0.0
        for linear, level in zip(self.levels, cache, strict=True):
            dz = self.ops.box_mean.backward(dctx, level.box)
            dz = self.ops.gelu.backward(dz, level.gelu)
            dx = dx + linear.backward(dz, level.linear)
        return dx


class SigmoidGateCache(NamedTuple):
    """What `SigmoidGateModulation.backward` needs, and what there is to see."""

    query: LinearCache
    gather: Any
    gate: LinearCache
    sigmoid: SigmoidCache
    gating: ModulateCache
    modulate: ModulateCache
    proj: LinearCache
    dropout: DropCache

    @property
    def q(self) -> Array:
        """The query, (B, H, W, C)."""
        return self.modulate.x

    @property
    def gates(self) -> Array:
        """The gates, (B, H, W, C): one per channel, between 0 and 1."""
        return self.sigmoid.y

    @property
    def ctx(self) -> Array:
        """The context, (B, H, W, C): the sum of the levels."""
        return self.gating.x

    @property
    def modulator(self) -> Array:
        """The modulator, (B, H, W, C): the gated context."""
        return self.modulate.modulator


class SigmoidGateModulation(Layer):
    """The modulation that Edifice's documentation describes, with real depthwise convolutions.

        y = proj(query(x) * sigmoid(gate(x)) * ctx),  ctx gathered by FocalLevels

    Args:
        config: of the network. stage: which stage's widths and levels to take.
    Source: the documentation of Edifice.Vision.FocalNet 0.2.
    """

    gatherer: type[FocalLevels] | type[BoxLevels] = FocalLevels

    def __init__(self, config: FocalNetConfig, stage: int, *, init: Initializer, ops: Ops = REFERENCE) -> None:
        super().__init__(ops)
        dim = config.dims[stage]
        self.query = Linear(dim, dim, init=init, ops=ops)
        self.gather = self.gatherer(config, stage, init=init, ops=ops)
        self.gate = Linear(dim, dim, init=init, ops=ops)
        self.proj = Linear(dim, dim, init=init, ops=ops)
        self.dropout = Dropout(config.drop_rate, ops=ops)

    def forward(self, x: Array, rng: Generator | None = None) -> tuple[Array, SigmoidGateCache]:
        """Modulate (B, H, W, C)."""
        q, query_cache = self.query.forward(x)
        ctx, gather_cache = self.gather.forward(x)
        gates, gate_cache = self.gate.forward(x)
        gates, sigmoid_cache = self.ops.sigmoid.forward(gates)
        modulator, gating_cache = self.ops.modulate.forward(ctx, gates)
        y, modulate_cache = self.ops.modulate.forward(q, modulator)
        y, proj_cache = self.proj.forward(y)
        y, dropout_cache = self.dropout.forward(y, rng)
        return y, SigmoidGateCache(
            query_cache,
            gather_cache,
            gate_cache,
            sigmoid_cache,
            gating_cache,
            modulate_cache,
            proj_cache,
            dropout_cache,
        )

    def backward(self, dy: Array, cache: SigmoidGateCache) -> Array:
        """Give dx, the sum over the three ways in; add to the gradients of all parameters."""
        dy = self.dropout.backward(dy, cache.dropout)
        dmodulated = self.proj.backward(dy, cache.proj)
        dq, dmodulator = self.ops.modulate.backward(dmodulated, cache.modulate)
        dctx, dgates = self.ops.modulate.backward(dmodulator, cache.gating)
        dgates = self.ops.sigmoid.backward(dgates, cache.sigmoid)
        dx = self.ops.add(self.query.backward(dq, cache.query), self.gather.backward(dctx, cache.gather))
        return self.ops.add(dx, self.gate.backward(dgates, cache.gate))


class BoxMeanModulation(SigmoidGateModulation):
    """What Edifice 0.2 computes where its page says convolutions: the same gating, the context of BoxLevels."""

    gatherer = BoxLevels


Modulation: TypeAlias = FocalModulation | SigmoidGateModulation

MODULATIONS: dict[str, type[Modulation]] = {
    FOCAL: FocalModulation,
    SIGMOID_GATE: SigmoidGateModulation,
    BOX_MEAN: BoxMeanModulation,
}
