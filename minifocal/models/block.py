"""FocalNetBlock: modulation and MLP, each on a residual branch; FocalNetStage: a row of blocks, then half the size."""

from typing import Any, NamedTuple

from minifocal.arrays import Array, Generator
from minifocal.functional.drop_path import DropCache
from minifocal.functional.layer_norm import LayerNormCache
from minifocal.functional.layer_scale import LayerScaleCache
from minifocal.layers.base import Layer, Parameter
from minifocal.layers.drop_path import DropPath
from minifocal.layers.initializers import Initializer
from minifocal.layers.layer_norm import LayerNorm
from minifocal.layers.mlp import MLP
from minifocal.layers.patch_embed import PatchEmbed, PatchEmbedCache
from minifocal.models.config import FocalNetConfig
from minifocal.models.modulation import MODULATIONS, Modulation
from minifocal.ops import REFERENCE, Ops


class ResidualCache(NamedTuple):
    """What the way back along one residual branch needs."""

    norm: LayerNormCache
    branch: Any
    layer_scale: LayerScaleCache | None
    drop_path: DropCache


class FocalNetBlockCache(NamedTuple):
    """What `FocalNetBlock.backward` needs."""

    modulation_branch: ResidualCache
    mlp_branch: ResidualCache

    @property
    def modulation(self) -> Any:
        """The modulation's cache: `q`, `gates`, `modulator` and what its backward pass needs."""
        return self.modulation_branch.branch


class FocalNetBlock(Layer):
    """x = x + drop_path(gamma_1 * modulation(norm1(x))), then x = x + drop_path(gamma_2 * mlp(norm2(x))).

    With use_postln the norm stands after the branch: drop_path(gamma_1 * norm1(modulation(x))). Without
    use_layerscale there is no gamma.

    Args:
        config: of the network. stage: which stage's widths and levels to take.
        drop_path_rate: of both branches.
    """

    def __init__(
        self,
        config: FocalNetConfig,
        stage: int,
        drop_path_rate: float,
        *,
        init: Initializer,
        ops: Ops = REFERENCE,
    ) -> None:
        super().__init__(ops)
        dim = config.dims[stage]
        scaled = config.use_layerscale
        self.use_postln = config.use_postln
        self.norm1 = LayerNorm(dim, init=init, ops=ops, eps=config.ln_eps)
        self.modulation: Modulation = MODULATIONS[config.modulation](config, stage, init=init, ops=ops)
        self.gamma_1 = init.constant(dim, config.layerscale_value) if scaled else None
        self.norm2 = LayerNorm(dim, init=init, ops=ops, eps=config.ln_eps)
        hidden_dim = int(dim * config.mlp_ratio)
        self.mlp = MLP(dim, hidden_dim, init=init, ops=ops, act=config.mlp_act, drop_rate=config.drop_rate)
        self.gamma_2 = init.constant(dim, config.layerscale_value) if scaled else None
        self.drop_path = DropPath(drop_path_rate, ops=ops)

    def forward(self, x: Array, rng: Generator | None = None) -> tuple[Array, FocalNetBlockCache]:
        """Map (B, H, W, C) to the same shape."""
        x, modulation_cache = self._residual_forward(x, self.norm1, self.modulation, self.gamma_1, rng)
        x, mlp_cache = self._residual_forward(x, self.norm2, self.mlp, self.gamma_2, rng)
        return x, FocalNetBlockCache(modulation_cache, mlp_cache)

    def backward(self, dy: Array, cache: FocalNetBlockCache) -> Array:
        """Give dx; add to the gradients of all parameters."""
        dy = self._residual_backward(dy, self.norm2, self.mlp, self.gamma_2, cache.mlp_branch)
        return self._residual_backward(dy, self.norm1, self.modulation, self.gamma_1, cache.modulation_branch)

    def _residual_forward(
        self, x: Array, norm: LayerNorm, branch: Layer, gamma: Parameter | None, rng: Generator | None
    ) -> tuple[Array, ResidualCache]:
        if self.use_postln:
            y, branch_cache = branch.forward(x, rng)
            y, norm_cache = norm.forward(y)
        else:
            y, norm_cache = norm.forward(x)
            y, branch_cache = branch.forward(y, rng)
        scale_cache = None
        if gamma is not None:
            y, scale_cache = self.ops.layer_scale.forward(y, gamma.data)
        y, drop_cache = self.drop_path.forward(y, rng)
        return self.ops.add(x, y), ResidualCache(norm_cache, branch_cache, scale_cache, drop_cache)

    def _residual_backward(
        self, dy: Array, norm: LayerNorm, branch: Layer, gamma: Parameter | None, cache: ResidualCache
    ) -> Array:
        dbranch = self.drop_path.backward(dy, cache.drop_path)
        if gamma is not None:
            dbranch, dgamma = self.ops.layer_scale.backward(dbranch, cache.layer_scale)
            gamma.grad += dgamma
        if self.use_postln:
            dbranch = norm.backward(dbranch, cache.norm)
            dbranch = branch.backward(dbranch, cache.branch)
        else:
            dbranch = branch.backward(dbranch, cache.branch)
            dbranch = norm.backward(dbranch, cache.norm)
        return self.ops.add(dy, dbranch)


class FocalNetStageCache(NamedTuple):
    """What `FocalNetStage.backward` needs, and what there is to see."""

    blocks: tuple[FocalNetBlockCache, ...]
    features: Array  # (B, H, W, C) the stage's last map, before downsampling
    downsample: PatchEmbedCache | None


class FocalNetStage(Layer):
    """`depths[stage]` equal blocks; then, but for the last stage, half the height and width and twice the channels.

    Args:
        config: of the network. stage: its index.
        drop_path_rates: one for each block.
    """

    def __init__(
        self,
        config: FocalNetConfig,
        stage: int,
        drop_path_rates: list[float],
        *,
        init: Initializer,
        ops: Ops = REFERENCE,
    ) -> None:
        super().__init__(ops)
        self.blocks = [FocalNetBlock(config, stage, rate, init=init, ops=ops) for rate in drop_path_rates]
        last = stage == len(config.depths) - 1
        self.downsample = None if last else _downsample(config, stage, init, ops)

    def forward(self, x: Array, rng: Generator | None = None) -> tuple[Array, FocalNetStageCache]:
        """Map (B, H, W, C) to (B, H/2, W/2, 2C), or to the same shape in the last stage.

        Halves are rounded down, or up with overlapping patches or pad_mode "pad".
        """
        blocks = []
        for block in self.blocks:
            x, block_cache = block.forward(x, rng)
            blocks.append(block_cache)
        features, downsample_cache = x, None
        if self.downsample is not None:
            x, downsample_cache = self.downsample.forward(x)
        return x, FocalNetStageCache(tuple(blocks), features, downsample_cache)

    def __call__(self, x: Array) -> Array:
        """Infer block by block, so that no more than one block's cache is alive."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)

    def backward(self, dy: Array, cache: FocalNetStageCache) -> Array:
        """Give dx; add to the gradients of all parameters."""
        if self.downsample is not None:
            dy = self.downsample.backward(dy, cache.downsample)  # type: ignore[arg-type]
        for block, block_cache in zip(reversed(self.blocks), reversed(cache.blocks), strict=True):
            dy = block.backward(dy, block_cache)
        return dy


def _downsample(config: FocalNetConfig, stage: int, init: Initializer, ops: Ops) -> PatchEmbed:
    return PatchEmbed(
        config.dims[stage],
        config.dims[stage + 1],
        size=3 if config.use_conv_embed else 2,
        stride=2,
        padding=1 if config.use_conv_embed else 0,
        pad_to=2 if config.pad_mode == "pad" else 1,
        eps=config.ln_eps,
        init=init,
        ops=ops,
    )
