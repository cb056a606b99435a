"""GELU and sigmoid of one number, for Numba's kernels; the number's type chooses how.

float32 goes by short polynomials, which become vector code; float64 by the C library, which is exact and slower.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import overload

from minifocal.functional.activations import INV_SQRT_2PI, SQRT_2_OVER_PI, SQRT_HALF, TANH_CUBIC
from minifocal.fused.numba_vectors import intrinsic
from minifocal.fused.numpy_activations import ERF_A, ERF_P

F = np.float32
ZERO, ONE, HALF, TWO, THREE = F(0.0), F(1.0), F(0.5), F(2.0), F(3.0)
LOWEST, HIGHEST = F(-126.0), F(126.0)  # exponents of normal numbers
LOG2_E = F(math.log2(math.e))
# 2^f = sum_n (f ln 2)^n / n!: with |f| <= 1/2, what follows the sixth power is below the last bit.
C1, C2, C3, C4, C5, C6 = (F(math.log(2.0) ** n / math.factorial(n)) for n in range(1, 7))
P = F(ERF_P * SQRT_HALF)
A1, A2, A3, A4, A5 = (F(0.5 * a) for a in ERF_A)
DENSITY = F(INV_SQRT_2PI)
TANH_1, TANH_3 = F(SQRT_2_OVER_PI), F(TANH_CUBIC)

# Products may be added in one rounding and zeros lose their sign; infinities, NaN and the order of sums stay.
compiled: Callable[[Any], Any] = partial(njit, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})


def gelu(x: float) -> tuple[float, float]:
    """GELU and its slope; in float32 within 5e-7 of the exact values."""
    raise NotImplementedError("for kernels only")


def gelu_tanh(x: float) -> tuple[float, float]:
    """GELU by tanh, and its slope."""
    raise NotImplementedError("for kernels only")


def sigmoid(x: float) -> float:
    """The logistic sigmoid."""
    raise NotImplementedError("for kernels only")


@intrinsic
def _float_of_bits(context: Any, bits: Any) -> Any:
    """The float32 whose bits an int32 holds."""

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@compiled
def _exp2(u: Any) -> Any:
    """2^u in float32 for u in LOWEST..HIGHEST: the integer part goes into the exponent, the rest into a polynomial."""
    whole = np.int32(math.floor(u + HALF))
    f = u - F(whole)
    power: Any = _float_of_bits(np.int32((whole + np.int32(127)) << np.int32(23)))
    return power * (ONE + f * (C1 + f * (C2 + f * (C3 + f * (C4 + f * (C5 + f * C6))))))


@compiled
def _gelu32(x: Any) -> Any:
    u = x * x * (-HALF * LOG2_E)
    bell = _exp2(max(u, LOWEST)) if u > LOWEST else ZERO  # exp(-x²/2)
    t = ONE / (ONE + P * abs(x))
    tail = bell * t * (A1 + t * (A2 + t * (A3 + t * (A4 + t * A5))))  # 1 - Φ(|x|), Abramowitz and Stegun 7.1.26
    cdf = ONE - tail if x >= ZERO else tail
    return x * cdf, cdf + x * (DENSITY * bell)


@compiled
def _gelu64(x: Any) -> Any:
    cdf = 0.5 * (1.0 + math.erf(x * SQRT_HALF))
    return x * cdf, cdf + x * (INV_SQRT_2PI * math.exp(-0.5 * x * x))


@compiled
def _sigmoid32(x: Any) -> Any:
    return ONE / (ONE + _exp2(min(max(-x * LOG2_E, LOWEST), HIGHEST)))


@compiled
def _sigmoid64(x: Any) -> Any:
    return 0.5 * (1.0 + math.tanh(0.5 * x))


@compiled
def _gelu_tanh32(x: Any) -> Any:
    v = TWO * TANH_1 * x * (ONE + TANH_3 * x * x)
    share = sigmoid(v) if v > LOWEST else ZERO  # (1 + tanh u) / 2
    du = TANH_1 * (ONE + THREE * TANH_3 * x * x)
    return x * share, share + (x * share) * (TWO * (ONE - share)) * du


@compiled
def _gelu_tanh64(x: Any) -> Any:
    tanh = math.tanh(SQRT_2_OVER_PI * (x + TANH_CUBIC * x * x * x))
    du = SQRT_2_OVER_PI * (1.0 + 3.0 * TANH_CUBIC * x * x)
    return 0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * du


def _by_type(stub: Callable[..., Any], for_float32: Any, for_float64: Any) -> None:
    """Let kernels call `stub`, and get the one or the other."""

    @overload(stub, inline="never")
    def choose(x):  # type: ignore[no-untyped-def]  # Numba compares the signatures
        function = for_float32 if x is types.float32 else for_float64
        return lambda x: function(x)


_by_type(gelu, _gelu32, _gelu64)
_by_type(gelu_tanh, _gelu_tanh32, _gelu_tanh64)
_by_type(sigmoid, _sigmoid32, _sigmoid64)
