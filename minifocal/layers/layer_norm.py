"""LayerNorm: scale and shift of a normalisation over channels."""

from minifocal.arrays import Array, Generator
from minifocal.functional.layer_norm import LayerNormCache
from minifocal.layers.base import Layer
from minifocal.layers.initializers import Initializer
from minifocal.ops import REFERENCE, Ops


class LayerNorm(Layer):
    """Normalise the channels of every position, then scale and shift them.

    Args:
        dim: channels.
        eps: added to the variance.
        init: makes weight (dim,) of ones and bias (dim,) of zeros.
    """

    def __init__(self, dim: int, *, init: Initializer, ops: Ops = REFERENCE, eps: float = 1e-5) -> None:
        super().__init__(ops)
        self.eps = eps
        self.weight = init.constant(dim, 1.0)
        self.bias = init.constant(dim, 0.0)

    def forward(self, x: Array, rng: Generator | None = None) -> tuple[Array, LayerNormCache]:
        """Normalise (..., dim)."""
        return self.ops.layer_norm.forward(x, self.weight.data, self.bias.data, self.eps)

    def backward(self, dy: Array, cache: LayerNormCache) -> Array:
        """Give dx; add to the gradients of weight and bias."""
        dx, dweight, dbias = self.ops.layer_norm.backward(dy, cache)
        self.weight.grad += dweight
        self.bias.grad += dbias
        return dx
