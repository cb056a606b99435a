"""MLP: two linear maps with a GELU between, at every position."""

from typing import Any, NamedTuple

from minifocal.arrays import Array, Generator
from minifocal.errors import InputError
from minifocal.functional.linear import LinearCache
from minifocal.layers.base import Layer
from minifocal.layers.drop_path import Dropout
from minifocal.layers.initializers import Initializer
from minifocal.layers.linear import Linear
from minifocal.ops import REFERENCE, Op, Ops

ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
"""The names of `mlp_act` and the operations that they stand for."""


class MLPCache(NamedTuple):
    """What `MLP.backward` needs."""

    fc1: LinearCache
    act: Any
    hidden_dropout: Any
    fc2: LinearCache
    dropout: Any


class MLP(Layer):
    """y = fc2(GELU(fc1(x))), with dropout after the GELU and after fc2.

    Args:
        dim: channels in and out.
        hidden_dim: channels between.
        act: "gelu" (by erf) or "gelu_pytorch_tanh".
        drop_rate: of both dropouts.
    Raises:
        InputError: another name of an activation.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        init: Initializer,
        ops: Ops = REFERENCE,
        act: str = "gelu",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(ops)
        if act not in ACTIVATIONS:
            raise InputError(f"act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")
        self.fc1 = Linear(dim, hidden_dim, init=init, ops=ops)
        self.act = ACTIVATIONS[act]
        self.fc2 = Linear(hidden_dim, dim, init=init, ops=ops)
        self.dropout = Dropout(drop_rate, ops=ops)

    @property
    def activation(self) -> Op:
        """The pair of functions behind `act`."""
        return getattr(self.ops, self.act)

    def forward(self, x: Array, rng: Generator | None = None) -> tuple[Array, MLPCache]:
        """Map (..., dim) to (..., dim)."""
        hidden, fc1_cache = self.fc1.forward(x)
        hidden, act_cache = self.activation.forward(hidden)
        hidden, hidden_dropout_cache = self.dropout.forward(hidden, rng)
        y, fc2_cache = self.fc2.forward(hidden)
        y, dropout_cache = self.dropout.forward(y, rng)
        return y, MLPCache(fc1_cache, act_cache, hidden_dropout_cache, fc2_cache, dropout_cache)

    def backward(self, dy: Array, cache: MLPCache) -> Array:
        """Give dx; add to the gradients of fc1 and fc2."""
        dy = self.dropout.backward(dy, cache.dropout)
        dhidden = self.fc2.backward(dy, cache.fc2)
        dhidden = self.dropout.backward(dhidden, cache.hidden_dropout)
        dhidden = self.activation.backward(dhidden, cache.act)
        return self.fc1.backward(dhidden, cache.fc1)
