"""What a pass has left to see: maps of tokens out of the caches, and how they are laid over the image."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minifocal.arrays import Array, as_numpy
from minifocal.models.config import FOCAL
from minifocal.models.focalnet import FocalNet, FocalNetCache
from minifocal.models.modulation import BoxLevels, Modulation, SigmoidGateModulation

GATE, NORM = "gate", "norm"


class TokenGrid(NamedTuple):
    """Where the tokens of a stage lie in the image: the middle of token i at pixel centre + size * i, both ways.

    Attributes:
        size: pixels from one token to the next. centre: of the first token, in pixels, the first pixel's middle at 0.
    """

    size: int
    centre: float

    def enlarged(self, times: int) -> "TokenGrid":
        """Give the same in an image whose pixels are squares of times * times."""
        return TokenGrid(self.size * times, self.centre * times + (times - 1) / 2)


def token_grid(model: FocalNet, stage: int) -> TokenGrid:
    """Find where the tokens of a stage lie: each patch embedding on the way takes patches of what is before it.

    Args:
        model: of any patches. stage: its index.
    """
    size, centre = 1, 0.0
    for embed in (model.patch_embed, *(layer.downsample for layer in model.layers[:stage])):
        assert embed is not None
        centre += ((embed.size - 1) / 2 - embed.padding) * size
        size *= embed.stride
    return TokenGrid(size, centre)


@dataclass(frozen=True)
class TokenMap:
    """One number for each token.

    Attributes:
        name: what it is, such as "gate 3 × 3".
        kind: "gate", of either sign, or between 0 and 1 where a sigmoid makes it; or "norm", an L2 norm over channels.
        values: (H, W), on the host.
    """

    name: str
    kind: str
    values: np.ndarray


@dataclass(frozen=True)
class BlockMaps:
    """The maps of one block, for one image.

    Attributes:
        stage, block: their indices. grid: where the tokens lie in the image.
        maps: those of the levels, the modulator, and the query times the modulator, in this order.
    """

    stage: int
    block: int
    grid: TokenGrid
    maps: list[TokenMap]

    @property
    def name(self) -> str:
        """Where the block stands, counted from 1 as people do."""
        return f"stage {self.stage + 1}, block {self.block + 1}"


def block_maps(model: FocalNet, cache: FocalNetCache, image: int = 0) -> list[BlockMaps]:
    """Take the maps of every block out of the cache of a forward pass.

    Focal modulation has one gate a level and token, and one for the whole map: these are shown. The other modulations
    have one gate a channel, which all levels share: its mean over channels is shown, after the norm of each level's
    context. Of modulator and query times modulator, the L2 norm over channels is shown: their mean over channels would
    be near nothing wherever some are positive and others negative, however large.

    Args:
        model: that made the pass; with recomputed levels, those of sigmoid gates are computed again.
        cache: of its forward pass.
        image: which one of the batch.
    """
    found = []
    for stage, (layer, stage_cache) in enumerate(zip(model.layers, cache.layers, strict=True)):
        kernels = model.config.kernel_sizes(stage)
        for number, (block, block_cache) in enumerate(zip(layer.blocks, stage_cache.blocks, strict=True)):
            seen = block_cache.modulation
            if model.config.modulation == FOCAL:
                names = [*(f"gate {k} × {k}" for k in kernels), "global gate"]
                maps = [TokenMap(name, GATE, values) for name, values in zip(names, _gates(seen, image), strict=True)]
            else:
                maps = [
                    TokenMap(name, NORM, _norm(ctx, image)) for name, ctx in _contexts(block.modulation, seen, kernels)
                ]
                maps.append(TokenMap("gate, mean of channels", GATE, as_numpy(seen.gates[image].mean(axis=-1))))
            maps.append(TokenMap("modulator", NORM, _norm(seen.modulator, image)))
            maps.append(TokenMap("query × modulator", NORM, _norm(seen.q * seen.modulator, image)))
            found.append(BlockMaps(stage, number, token_grid(model, stage), maps))
    return found


def over_image(tokens: np.ndarray, grid: TokenGrid, image_hw: tuple[int, int]) -> np.ndarray:
    """Bring a map of tokens to the pixels of the image.

    Bilinear between the centres of the tokens; beyond the outermost centres the edge value stays.

    Args:
        tokens: (H, W). grid: where they lie; tokens may reach beyond the image, and pixels beyond the tokens.
        image_hw: height and width of the image.
    Returns:
        (height, width), float64.
    """
    from scipy.ndimage import map_coordinates

    rows, columns = ((np.arange(n) - grid.centre) / grid.size for n in image_hw)  # of each pixel, in tokens
    where = np.meshgrid(rows, columns, indexing="ij")
    return map_coordinates(tokens.astype(np.float64), where, order=1, mode="nearest")


def _gates(seen: Any, image: int) -> np.ndarray:
    return np.moveaxis(as_numpy(seen.gates[image]), -1, 0)


def _norm(values: Array, image: int) -> np.ndarray:
    return np.linalg.norm(as_numpy(values[image]), axis=-1)


def _contexts(modulation: Modulation, seen: Any, kernels: tuple[int, ...]) -> list[tuple[str, Array]]:
    """The context of each level of a modulation with sigmoid gates, with its name."""
    assert isinstance(modulation, SigmoidGateModulation)
    gather = modulation.gather
    if isinstance(gather, BoxLevels):  # nothing of a level's result is needed on the way back: computed again
        contexts = []
        for linear, width, level in zip(gather.levels, gather.widths, seen.gather, strict=True):
            z, _ = gather.ops.gelu.forward(linear(level.linear.x))
            contexts.append((f"context, mean of {width}", gather.ops.box_mean.forward(z, width)[0]))
        return contexts
    levels = gather.levels.full_cache(seen.gather.levels).levels
    return [(f"context {k} × {k}", level.ctx) for k, level in zip(kernels, levels, strict=True)]
