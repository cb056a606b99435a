"""DropPath and Dropout: rates, no parameters."""

from minifocal.arrays import Array, Generator
from minifocal.functional.drop_path import DropCache, check_drop_rate
from minifocal.layers.base import Layer
from minifocal.ops import REFERENCE, Ops


class DropPath(Layer):
    """Drop a whole residual branch for some samples of a batch, while training.

    Args:
        rate: probability of dropping, in [0, 1).
    Raises:
        InputError: a rate outside [0, 1).
    """

    def __init__(self, rate: float, *, ops: Ops = REFERENCE) -> None:
        super().__init__(ops)
        check_drop_rate(rate)
        self.rate = rate

    def forward(self, x: Array, rng: Generator | None = None) -> tuple[Array, DropCache]:
        """Drop by one draw per sample; without an rng nothing is dropped."""
        return self.ops.drop_path.forward(x, self.rate, rng)

    def backward(self, dy: Array, cache: DropCache) -> Array:
        """Give dx: zero where the branch was dropped."""
        return self.ops.drop_path.backward(dy, cache)


class Dropout(DropPath):
    """Drop single values, while training. Arguments and errors as for DropPath."""

    def forward(self, x: Array, rng: Generator | None = None) -> tuple[Array, DropCache]:
        """Drop by one draw per value; without an rng nothing is dropped."""
        return self.ops.dropout.forward(x, self.rate, rng)

    def backward(self, dy: Array, cache: DropCache) -> Array:
        """Give dx: zero where the value was dropped."""
        return self.ops.dropout.backward(dy, cache)
