"""Linear: weight and bias of a map over channels."""

from minifocal.arrays import Array, Generator
from minifocal.functional.linear import LinearCache
from minifocal.layers.base import Layer
from minifocal.layers.initializers import Initializer
from minifocal.ops import REFERENCE, Ops


class Linear(Layer):
    """y = x @ weight + bias, at every position.

    Args:
        in_dim, out_dim: channels of x and of y.
        init: draws weight (in_dim, out_dim) and bias (out_dim,).
        kind: how the recipe draws them: "linear", "conv" or "head".
    """

    def __init__(
        self, in_dim: int, out_dim: int, *, init: Initializer, ops: Ops = REFERENCE, kind: str = "linear"
    ) -> None:
        super().__init__(ops)
        self.weight = init.weight(kind, (in_dim, out_dim), in_dim, out_dim)
        self.bias = init.bias(kind, out_dim, in_dim)

    def forward(self, x: Array, rng: Generator | None = None) -> tuple[Array, LinearCache]:
        """Map (..., in_dim) to (..., out_dim)."""
        return self.ops.linear.forward(x, self.weight.data, self.bias.data)

    def backward(self, dy: Array, cache: LinearCache) -> Array:
        """Give dx; add to the gradients of weight and bias."""
        dx, dweight, dbias = self.ops.linear.backward(dy, cache)
        self.weight.grad += dweight
        self.bias.grad += dbias
        return dx
