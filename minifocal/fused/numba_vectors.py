"""Vectors for Numba's kernels: as many numbers as fill 64 bytes, loaded, multiplied and stored at once.

The compiler makes vector code of a plain loop over channels, but not of one that keeps many sums at once, as a fast
convolution must. There the kernels say what is a vector. Processors with AVX2 take two.

    mask = lanes_below(x, C - c)        # the channels from c on that exist; the rest is neither read nor written
    total = multiply_add(load(x, i, mask), load(weight, c, mask), zeros(x))
    store(y, i, total, mask)

Indices count elements of flat arrays.
"""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, register_model

# Numba's own type does not know that a call leaves out the first argument.
intrinsic: Callable[[Any], Any] = numba_intrinsic

VECTOR_BITS = 512

if numba.version_info.short < (0, 62):  # their compiler writes pointers in another way
    raise ImportError(f"Numba {numba.__version__} is too old, 0.62 is the first that will do")


class Vector(types.Type):
    """The type of a vector of float32 or float64."""

    def __init__(self, element: types.Float) -> None:
        self.element = element
        self.lanes = VECTOR_BITS // element.bitwidth
        super().__init__(f"Vector({element})")

    @property
    def ir(self) -> ir.VectorType:
        """The type in the compiler's language."""
        return ir.VectorType(ir.FloatType() if self.element.bitwidth == 32 else ir.DoubleType(), self.lanes)


class Mask(types.Type):
    """The type of a choice of lanes."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(f"Mask({lanes})")

    @property
    def ir(self) -> ir.VectorType:
        """The type in the compiler's language."""
        return ir.VectorType(ir.IntType(1), self.lanes)


@register_model(Vector)
@register_model(Mask)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, kind.ir)  # type: ignore[no-untyped-call]


def are_fast_here() -> bool:
    """Whether this processor loads and stores chosen lanes at once; others go through them one by one."""
    return binding.get_host_cpu_features().get("avx2", False)


@intrinsic
def lane_count(context: Any, array: Any) -> Any:
    """Count the lanes of a vector of an array's elements."""
    lanes = Vector(array.dtype).lanes
    return types.intp(array), lambda target, builder, signature, args: target.get_constant(types.intp, lanes)


@intrinsic
def lanes_below(context: Any, array: Any, count: Any) -> Any:
    """Choose the first `count` lanes, or all where there are fewer."""
    mask = Mask(Vector(array.dtype).lanes)

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        integers = ir.VectorType(ir.IntType(64), mask.lanes)
        counts: Any = ir.Constant(integers, ir.Undefined)
        for lane in range(mask.lanes):
            counts = builder.insert_element(counts, args[1], ir.IntType(32)(lane))
        return builder.icmp_signed("<", ir.Constant(integers, list(range(mask.lanes))), counts)

    return mask(array, types.intp), generate


@intrinsic
def zeros(context: Any, array: Any) -> Any:
    """Make a vector of zeros for an array's elements."""
    vector = Vector(array.dtype)
    return vector(array), lambda target, builder, signature, args: ir.Constant(vector.ir, [0.0] * vector.lanes)


@intrinsic
def load(context: Any, array: Any, index: Any, mask: Any) -> Any:
    """Read the chosen lanes from array[index] on; the others are zero."""
    vector = Vector(array.dtype)

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.Constant(vector.ir, [0.0] * vector.lanes)
        masked = _masked(builder, "load", vector, vector.ir, [ir.PointerType(), ir.IntType(32), mask.ir, vector.ir])
        return builder.call(masked, [_address(target, builder, signature, args), _bytes(vector), args[2], zero])

    return vector(array, types.intp, mask), generate


@intrinsic
def store(context: Any, array: Any, index: Any, value: Any, mask: Any) -> Any:
    """Write the chosen lanes to array[index] on."""

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        parameters = [value.ir, ir.PointerType(), ir.IntType(32), mask.ir]
        masked = _masked(builder, "store", value, ir.VoidType(), parameters)
        builder.call(masked, [args[2], _address(target, builder, signature, args), _bytes(value), args[3]])
        return target.get_dummy_value()

    return types.void(array, types.intp, value, mask), generate


@intrinsic
def multiply_add(context: Any, x: Any, y: Any, z: Any) -> Any:
    """Give x * y + z, rounded once."""

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(x.ir, [x.ir] * 3)
        name = f"llvm.fma.v{x.lanes}f{x.element.bitwidth}"
        return builder.call(_declared(builder, kind, name), args)

    return x(x, x, x), generate


def _address(target: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = target.make_array(signature.args[0])(target, builder, args[0])
    return builder.gep(array.data, [args[1]])


def _masked(builder: Any, what: str, vector: Vector, result: Any, parameters: list[Any]) -> Any:
    name = f"llvm.masked.{what}.v{vector.lanes}f{vector.element.bitwidth}.p0"
    return _declared(builder, ir.FunctionType(result, parameters), name)


def _declared(builder: Any, kind: ir.FunctionType, name: str) -> Any:
    return cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]


def _bytes(vector: Vector) -> ir.Constant:
    """The alignment that can be relied on: that of one element."""
    return ir.IntType(32)(vector.element.bitwidth // 8)
