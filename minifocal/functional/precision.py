"""Matrix products of rounded operands, as the tensor cores of a GPU make them.

A tensor core multiplies numbers of few digits and sums the products in float32. Everything else stays float32: weights,
activations, gradients and sums. So nothing is lost that has to be kept from step to step, and what is rounded is
rounded anew in each product.
"""

import math
from collections.abc import Callable
from typing import Any

from minifocal.arrays import Array, get_array_module
from minifocal.errors import InputError, shown
from minifocal.functional.linear import LinearCache, as_rows

MANTISSA_BITS = {"float32": 23, "tf32": 10, "bfloat16": 7, "float16": 10}
"""Bits behind the point that each format keeps: rounded to it, a number is off by at most 2^-(bits+1) of itself."""

PRECISIONS = tuple(MANTISSA_BITS)
"""What the operands of matrix products may be rounded to; "float32" leaves them as they are."""

FLOAT16_SMALLEST = 2.0**-14  # below, float16 has no more exponents, and bits are lost
FLOAT16_OVERFLOW = 65520.0  # halfway between its largest number, 65504, and what would be the next


def round_to(x: Array, precision: str) -> Array:
    """Give the nearest numbers of another format, still as float32; halfway between two, the one with an even last bit.

    "tf32" and "bfloat16" are float32 with fewer bits and the same range. "float16" ends sooner: from 65520 on numbers
    become infinite, below 2^-14 they lose bits one by one, and up to 2^-25 they are zero.

    Args:
        x: any shape, float32.
        precision: "float32" (gives x itself), "tf32", "bfloat16" or "float16".
    Returns:
        float32, shape of x. Infinity and NaN stay.
    Raises:
        InputError: an unknown precision, or x is not float32.
    Source: Micikevicius et al. 2018 (arXiv:1710.03740) for float16; Kalamkar et al. 2019 (arXiv:1905.12322) for
    bfloat16. A GPU rounds in the same way, but for ties of tf32, which NVIDIA's conversion (cvt.rna.tf32) takes away
    from zero.
    """
    check_precision(precision)
    if precision == "float32":
        return x
    get_array_module(x)
    if x.dtype != "float32":
        raise InputError(
            f'precision "{precision}" rounds float32 arrays, got {x.dtype}: use dtype "float32", or precision "float32"'
        )
    return _round_to_float16(x) if precision == "float16" else _drop_bits(x, 23 - MANTISSA_BITS[precision])


def _drop_bits(x: Array, count: int) -> Array:
    """Round by the pattern of bits: add half a unit of the last bit that stays, then cut.

    Where that bit is 0 a little less is added, which settles ties. A carry runs on into the exponent, which is right:
    after the largest number of one exponent comes the smallest of the next, and infinity last.
    """
    xp = get_array_module(x)
    pattern = x.view("uint32")
    rounded = pattern + ((1 << (count - 1)) - 1)
    rounded += (pattern >> count) & 1
    rounded &= 2**32 - 2**count
    # A NaN's low bits could run into the sign, or leave infinity behind.
    return xp.where(xp.isnan(x), x, rounded.view("float32"))


def _round_to_float16(x: Array) -> Array:
    """Round by a sum: float32 itself rounds |x| + shift to multiples of the last bit of shift.

    With 2^e <= |x| < 2^(e+1) the last bit of shift = 2^(e+13) is worth 2^(e-10), as that of x in float16; e is at
    least -14. `x.astype("float16")` is the same, but warns of infinity, and takes NumPy ten times as long for numbers
    as small as gradients are.
    """
    xp = get_array_module(x)
    size = xp.abs(x)
    exponents = xp.clip(size, FLOAT16_SMALLEST, FLOAT16_OVERFLOW).view("uint32") & 0x7F800000
    shift = exponents.view("float32") * 2.0**13
    return xp.copysign(xp.where(size >= FLOAT16_OVERFLOW, math.inf, size + shift - shift), x)


def rounded_linear(
    forward: Callable[..., Any], backward: Callable[..., Any], precision: str
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Make from a linear map and its way back those that round both operands of each product first: r(x) = round_to(x).

    y = r(x) @ r(weight) + bias
    dx = r(dy) @ r(weight).T,   dweight = r(x).T @ r(dy),   dbias = sum of dy

    This way back is the one of mixed-precision training, not the derivative of the way forward, which is a staircase:
    rounding is taken for the identity. Against the products of float32 each product is off by

    |error| <= (2u + u²) sum |x||weight|,   u = 2^-(bits+1),

    where no operand leaves the range of the format; the sums are off as those of float32 are. Sums in another order, of
    another table or device, may let the next rounding fall the other way: of one operation all give the same numbers,
    up to the sums, but of a whole network only up to u.

    Args:
        forward, backward: as functional.linear.linear_forward and linear_backward, on any arrays.
        precision: as in round_to.
    Returns:
        linear_forward, linear_backward: with the arguments and the cache of the given ones. The cache holds x and
        weight as they came: rounded ways pair with any others.
    Source: Micikevicius et al. 2018, sections 3.1 and 3.3 (arXiv:1710.03740).
    """

    def linear_forward(x: Array, weight: Array, bias: Array) -> tuple[Array, LinearCache]:
        y, _ = forward(round_to(x, precision), round_to(weight, precision), bias)
        return y, LinearCache(x, weight)

    def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array]:
        rounded = LinearCache(round_to(cache.x, precision), round_to(cache.weight, precision))
        dx, dweight, _ = backward(round_to(dy, precision), rounded)
        return dx, dweight, as_rows(dy).sum(axis=0)

    return linear_forward, linear_backward


def check_precision(precision: str) -> None:
    """Refuse a precision that does not exist.

    Raises:
        InputError: it lists those that do.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {shown(precision)}")
