"""GELU, exact and by tanh, and the logistic sigmoid on a GPU."""

from minifocal.arrays import Array
from minifocal.functional.activations import GeluCache, SigmoidCache
from minifocal.functional.add import check_same_shape
from minifocal.fused.gpu_calls import elementwise


def gelu_forward(x: Array) -> tuple[Array, GeluCache]:
    """As functional.activations.gelu_forward."""
    y, slope = elementwise("gelu", x, outputs=2)
    return y, GeluCache(slope)


def gelu_tanh_forward(x: Array) -> tuple[Array, GeluCache]:
    """As functional.activations.gelu_tanh_forward."""
    y, slope = elementwise("gelu_tanh", x, outputs=2)
    return y, GeluCache(slope)


def gelu_backward(dy: Array, cache: GeluCache) -> Array:
    """As functional.activations.gelu_backward."""
    check_same_shape(dy, cache.slope)
    return dy * cache.slope


def gelu_tanh_backward(dy: Array, cache: GeluCache) -> Array:
    """As functional.activations.gelu_tanh_backward."""
    return gelu_backward(dy, cache)


def sigmoid_forward(x: Array) -> tuple[Array, SigmoidCache]:
    """As functional.activations.sigmoid_forward."""
    (y,) = elementwise("sigmoid", x)
    return y, SigmoidCache(y)


def sigmoid_backward(dy: Array, cache: SigmoidCache) -> Array:
    """As functional.activations.sigmoid_backward."""
    check_same_shape(dy, cache.y)
    (dx,) = elementwise("sigmoid_backward", dy, cache.y)
    return dx
