"""How parameters start: one class per recipe, found by name.

A recipe says how to draw the weight and the bias of three kinds of linear map: `"linear"`, `"conv"` (patch
embeddings, depthwise kernels and the 1x1 convolution `h`, which the published code draws otherwise) and `"head"`
(the classifier). `fan_in` counts the inputs of one output, `fan_out` the outputs of one input. A depthwise channel
is a map of its own, so both of its fans are k*k.
"""

import math

from minifocal.arrays import Array, full, random_generator
from minifocal.errors import InputError
from minifocal.layers.base import Parameter


class Initializer:
    """Draws parameters, in the order in which layers are built, from one seed.

    Args:
        seed: the same seed gives the same parameters.
        dtype: "float32" or "float64"; both get the same draws, rounded to their precision.
    """

    def __init__(self, seed: int = 0, dtype: str = "float32") -> None:
        self.rng = random_generator(seed)
        self.dtype = dtype

    def weight(self, kind: str, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Parameter:
        """Draw a weight. kind: "linear", "conv" or "head"."""
        raise NotImplementedError

    def bias(self, kind: str, size: int, fan_in: int) -> Parameter:
        """Start a bias at zero, unless the recipe draws it."""
        return self.constant(size, 0.0)

    def constant(self, size: int, value: float) -> Parameter:
        """Start a vector with every element at `value`."""
        return Parameter(full((size,), value, self.dtype))

    def _normal(self, shape: tuple[int, ...], std: float) -> Parameter:
        return self._parameter(self.rng.normal(0.0, std, shape))

    def _uniform(self, shape: tuple[int, ...], limit: float) -> Parameter:
        return self._parameter(self.rng.uniform(-limit, limit, shape))

    def _parameter(self, values: Array) -> Parameter:
        return Parameter(values.astype(self.dtype))


class Official(Initializer):
    """The published FocalNets' own: linear weights N(0, 0.02²), convolutions and their biases U(±1/√fan_in).

    Right at widths of hundreds. A net of a few dozen channels starts too near zero and does not learn by plain SGD:
    use `"lecun"` there.
    """

    def weight(self, kind: str, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Parameter:
        """Draw N(0, 0.02²), or U(±1/√fan_in) for a convolution."""
        return self._uniform(shape, 1.0 / math.sqrt(fan_in)) if kind == "conv" else self._normal(shape, 0.02)

    def bias(self, kind: str, size: int, fan_in: int) -> Parameter:
        """Start at zero, or draw U(±1/√fan_in) for a convolution."""
        return self._uniform((size,), 1.0 / math.sqrt(fan_in)) if kind == "conv" else self.constant(size, 0.0)


class Glorot(Initializer):
    """Uniform with variance 2 / (fan_in + fan_out), biases zero: what Axon, Edifice's framework, does.

    Source: Glorot and Bengio 2010 (Proceedings of Machine Learning Research 9, 249-256).
    """

    def weight(self, kind: str, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Parameter:
        """Draw U(±√(6 / (fan_in + fan_out)))."""
        return self._uniform(shape, math.sqrt(6.0 / (fan_in + fan_out)))


class LeCun(Initializer):
    """Normal with variance 1 / fan_in, biases and the classifier zero: for small networks.

    Source: LeCun, Bottou, Orr and Müller 1998, Efficient BackProp, section 4.6.
    """

    def weight(self, kind: str, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Parameter:
        """Draw N(0, 1 / fan_in); a classifier starts at zero, so that all classes start equally likely."""
        if kind == "head":
            return Parameter(full(shape, 0.0, self.dtype))
        return self._normal(shape, 1.0 / math.sqrt(fan_in))


class Zeros(Initializer):
    """Every weight zero: draws nothing and takes no memory, for counting and for weights that are loaded next."""

    def weight(self, kind: str, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Parameter:
        """Start at zero."""
        return Parameter(full(shape, 0.0, self.dtype))


INITIALIZERS: dict[str, type[Initializer]] = {
    "official": Official,
    "glorot": Glorot,
    "lecun": LeCun,
    "zeros": Zeros,
}


def get_initializer(name: str, seed: int, dtype: str) -> Initializer:
    """Find a recipe by its name and seed it.

    Raises:
        InputError: no recipe of that name.
    """
    if name not in INITIALIZERS:
        raise InputError(f"init must be one of {', '.join(INITIALIZERS)}, got {name!r}")
    return INITIALIZERS[name](seed, dtype)
