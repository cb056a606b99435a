"""PatchEmbed: cut a map into patches, map each to a token, normalise it."""

from typing import NamedTuple

from minifocal.arrays import Array, Generator
from minifocal.functional.layer_norm import LayerNormCache
from minifocal.functional.linear import LinearCache
from minifocal.functional.patches import PatchesCache
from minifocal.layers.base import Layer
from minifocal.layers.initializers import Initializer
from minifocal.layers.layer_norm import LayerNorm
from minifocal.layers.linear import Linear
from minifocal.ops import REFERENCE, Ops


class PatchEmbedCache(NamedTuple):
    """What `PatchEmbed.backward` needs."""

    patches: PatchesCache
    proj: LinearCache
    norm: LayerNormCache | None


class PatchEmbed(Layer):
    """A strided convolution, written as what it is: patches times a matrix; then LayerNorm.

    Serves as the stem and as the downsampling between stages.

    Args:
        in_dim, dim: channels in and out.
        size, stride: of the patches. Equal: the patches tile the map. size > stride: they overlap.
        padding: zeros on every side.
        norm: whether LayerNorm follows.
        pad_to: zeros are added below and at the right until height and width are multiples of this
            (Hugging Face's rule); 1 adds none, and a remainder that fills no patch is left out (the official rule).
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        *,
        size: int,
        stride: int,
        init: Initializer,
        ops: Ops = REFERENCE,
        padding: int = 0,
        pad_to: int = 1,
        norm: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(ops)
        self.size, self.stride, self.padding, self.pad_to = size, stride, padding, pad_to
        self.proj = Linear(in_dim * size * size, dim, init=init, ops=ops, kind="conv")
        self.norm = LayerNorm(dim, init=init, ops=ops, eps=eps) if norm else None

    def forward(self, x: Array, rng: Generator | None = None) -> tuple[Array, PatchEmbedCache]:
        """Map (B, H, W, in_dim) to (B, H', W', dim).

        Raises:
            InputError: the map is smaller than one patch.
        """
        _, H, W, _ = x.shape
        padding = tuple((self.padding, self.padding + -n % self.pad_to) for n in (H, W))
        patches, patches_cache = self.ops.patches.forward(x, self.size, self.stride, padding)
        y, proj_cache = self.proj.forward(patches)
        norm_cache = None
        if self.norm is not None:
            y, norm_cache = self.norm.forward(y)
        return y, PatchEmbedCache(patches_cache, proj_cache, norm_cache)

    def backward(self, dy: Array, cache: PatchEmbedCache) -> Array:
        """Give dx; add to the gradients of proj and norm."""
        if self.norm is not None:
            dy = self.norm.backward(dy, cache.norm)  # type: ignore[arg-type]
        dpatches = self.proj.backward(dy, cache.proj)
        return self.ops.patches.backward(dpatches, cache.patches)
