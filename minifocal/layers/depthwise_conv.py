"""DepthwiseConv: one k x k kernel per channel."""

from minifocal.arrays import Array, Generator
from minifocal.functional.depthwise_conv import DepthwiseConvCache
from minifocal.layers.base import Layer
from minifocal.layers.initializers import Initializer
from minifocal.ops import REFERENCE, Ops


class DepthwiseConv(Layer):
    """Convolve each channel with its own k x k kernel: stride 1, zero padding k//2, no bias.

    Args:
        dim: channels.
        kernel_size: k, odd.
        init: draws weight (k, k, dim).
    """

    def __init__(self, dim: int, kernel_size: int, *, init: Initializer, ops: Ops = REFERENCE) -> None:
        super().__init__(ops)
        fan = kernel_size * kernel_size
        self.weight = init.weight("conv", (kernel_size, kernel_size, dim), fan, fan)

    def forward(self, x: Array, rng: Generator | None = None) -> tuple[Array, DepthwiseConvCache]:
        """Convolve (B, H, W, dim)."""
        return self.ops.depthwise_conv.forward(x, self.weight.data)

    def backward(self, dy: Array, cache: DepthwiseConvCache) -> Array:
        """Give dx; add to the gradient of weight."""
        dx, dweight = self.ops.depthwise_conv.backward(dy, cache)
        self.weight.grad += dweight
        return dx
