"""How kernels are called: with a thread for every number, a warp for every row, or a block for a part of a map."""

from typing import Any

import numpy as np

from minifocal.arrays import Array, get_array_module
from minifocal.errors import InputError
from minifocal.functional.linear import as_rows
from minifocal.fused import gpu

# As in kernels.cuh.
LANES, WALKERS, STRIP = 32, 8, 8
VECTOR, ALIGNMENT = 4, 16  # channels of a vector, and bytes that its address is a multiple of
THREADS = 256  # of a block
BLOCKS = 2048
"""Blocks that sums over all rows are cut into: enough for every processor of a large GPU to have several."""

C_TYPES = {"float32": "float", "float64": "double"}


def launch(kernel: str, dtype: np.dtype, options: str, grid: Any, block: Any, *arguments: Any) -> None:
    """Launch a kernel for a type, after a look at its arrays: a kernel would take one type for another."""
    for argument in arguments:
        if getattr(argument, "ndim", 0) and argument.dtype.kind == "f" and argument.dtype != dtype:
            raise InputError(f"{kernel}: expected arrays of one dtype, got {dtype} and {argument.dtype}")
    gpu.launch(f"{kernel}<{C_TYPES[dtype.name]}{options}>", grid, block, *arguments)


def over_numbers(kernel: str, like: Array, V: int | None, *arguments: Any) -> None:
    """Launch a kernel that has a thread for every number, or vector, of an array; their count is its last argument."""
    options = "" if V is None else f", {V}"
    blocks = ceil_divide(like.size, THREADS * (V or 1))
    launch(kernel, like.dtype, options, (blocks,), (THREADS,), *arguments, np.int64(like.size))


def over_rows(kernel: str, rows: Array, V: int | None, *arguments: Any) -> None:
    """Launch a kernel that has a warp for every row."""
    options = "" if V is None else f", {V}"
    launch(kernel, rows.dtype, options, (ceil_divide(rows.shape[0], WALKERS),), (LANES, WALKERS), *arguments)


def over_strips(kernel: str, x: Array, V: int, options: str, *arguments: Any) -> None:
    """Launch a kernel that has a thread for every strip of tokens and every vector of channels of a map."""
    B, H, W, C = x.shape
    lanes = LANES // V
    strips = min(ceil_divide(W, STRIP), 2 if V == 1 else 4)
    rows = min(H, THREADS // (lanes * strips))
    blocks = B * ceil_divide(H, rows) * ceil_divide(W, STRIP * strips)
    launch(kernel, x.dtype, options, (blocks, ceil_divide(C, lanes * V)), (lanes, strips, rows), *arguments)


def column_sums(
    x: Array, y: Array | None = None, weight: Array | None = None, share: int | None = None, scale: float = 1.0
) -> tuple[Array, Array | None]:
    """Sum the columns of rows (R, C), and of their products with the rows of y.

    Args:
        x: (R, C), in order. y: likewise, or None.
        weight: a factor for each row, an array of R numbers of any shape, or None.
        share: rows that are summed together; all by default, in two stages.
        scale: of the sums.
    Returns:
        sums and products, (R / share, C), or (C,) without a share; None for products without y.
    """
    R, C = x.shape
    groups = ceil_divide(C, LANES)
    part = share or max(WALKERS, share_of(R, groups))
    parts = ceil_divide(R, part)
    sums = empty((1 if y is None else 2, parts, C), x)
    products = gpu.NULL if y is None else sums[1]
    launch(
        "column_sums",
        x.dtype,
        "",
        (parts, groups),
        (LANES, WALKERS),
        x,
        gpu.NULL if y is None else y,
        *gate_or_null(weight),
        np.int64(R),
        np.int64(part),
        np.int64(C),
        x.dtype.type(scale),
        sums[0],
        products,
    )
    if share is None and parts > 1:
        sums, _ = column_sums(sums.reshape(-1, C), share=parts)
        sums = sums.reshape(-1, 1, C)
    results = sums if share is not None else sums[:, 0]
    return results[0], None if y is None else results[1]


def share_of(rows: int, groups: int) -> int:
    """Choose how many rows a block sums, where `groups` blocks stand beside each other along the columns."""
    return ceil_divide(rows, max(1, BLOCKS // groups))


def mean_over_map(x: Array) -> Array:
    """Average the tokens of each image: (B, H, W, C) to (B, C)."""
    _, H, W, _ = x.shape
    means, _ = column_sums(rows_of(x), share=H * W, scale=1.0 / (H * W))
    return means


def elementwise(kernel: str, *inputs: Array, outputs: int = 1) -> list[Array]:
    """Give new arrays of the shape of the inputs, which a kernel fills number by number."""
    arrays = [in_order(array) for array in inputs]
    results = [empty(arrays[0].shape, arrays[0]) for _ in range(outputs)]
    over_numbers(kernel, arrays[0], vector_for(arrays[0].size, *arrays, *results), *arrays, *results)
    return results


def gate_or_null(gate: Array | None) -> tuple[Any, np.int64]:
    """Give a number for each token, and the distance between them; a null pointer where there are none."""
    if gate is None:
        return gpu.NULL, np.int64(0)
    array, pitch = pitched(gate)
    return array, np.int64(pitch)


def array_or_number(value: Array | float, like: Array) -> tuple[Any, np.generic]:
    """Give a map, in order, or a null pointer; and the number that stands in its place."""
    if isinstance(value, float | int):
        return gpu.NULL, like.dtype.type(value)
    return in_order(value), like.dtype.type(0)


def check_shape(array: Array, shape: tuple[int, ...]) -> None:
    """Refuse another shape: a kernel would read beside the array. Raises InputError."""
    if array.shape != shape:
        raise InputError(f"expected an array of shape {shape}, got {tuple(array.shape)}")


def sizes_of(rows: Array) -> tuple[np.int64, np.int32]:
    """Give the number of rows and of columns, as kernels take them."""
    return np.int64(rows.shape[0]), np.int32(rows.shape[1])


def rows_of(x: Array) -> Array:
    """Give (..., C) as rows, in order."""
    return in_order(as_rows(x))


def in_order(x: Array) -> Array:
    """Give an array whose numbers lie one after the other: itself, or a copy."""
    return x if x.flags.c_contiguous else get_array_module(x).ascontiguousarray(x)


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """Make an array with anything in it, of the home and dtype of another."""
    return get_array_module(like).empty(shape, dtype=like.dtype)


def pitched(x: Array) -> tuple[Array, int]:
    """Give (..., C) and the distance between its rows: a part of wider rows is not copied."""
    C, rows, pitch = x.shape[-1], 1, 0
    regular = C == 1 or x.strides[-1] == x.itemsize
    for size, stride in zip(x.shape[-2::-1], x.strides[-2::-1], strict=True):
        if size > 1:
            pitch = pitch or stride // x.itemsize
            regular = regular and stride == rows * pitch * x.itemsize
            rows *= size
    if not regular or (rows > 1 and pitch < C):
        return in_order(x), C
    return x, pitch or C


def vector_for(C: int, *arrays: Any, pitches: tuple[int, ...] = ()) -> int:
    """Choose how many channels a thread takes at a time: several where all rows begin at a multiple of a vector."""
    sizes = (C, *pitches)
    addresses = [array.data.ptr for array in arrays if array is not gpu.NULL]
    fits = all(size % VECTOR == 0 for size in sizes) and all(address % ALIGNMENT == 0 for address in addresses)
    return VECTOR if fits else 1


def ceil_divide(count: int, size: int) -> int:
    """Count the parts of at most `size` that a whole has."""
    return -(-count // size)
