"""How an array is gone through: by rows, by blocks, in threads."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from minifocal.arrays import Array
from minifocal.functional.updates import UpdateRow
from minifocal.fused.workspace import empty
from minifocal.threads import over_items, over_ranges

BLOCK = 2**17
"""Elements of a block. Smaller ones lie deeper in the cache, but then threads wait for each other to enter NumPy."""


def blocks(start: int, stop: int, size: int) -> Iterator[slice]:
    """Cut start..stop into slices of at most `size`."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def row_blocks(start: int, stop: int, width: int) -> Iterator[slice]:
    """Cut rows of `width` elements into slices of about one block."""
    return blocks(start, stop, max(1, BLOCK // width))


def image_rows(start: int, stop: int, H: int) -> Iterator[tuple[int, slice]]:
    """Cut rows start..stop of all images, counted on, into an image's number and its rows at a time."""
    for b in range(start // H, -(-stop // H)):
        yield b, slice(max(start - b * H, 0), min(stop - b * H, H))


def elementwise(function: Callable[..., object], *inputs: Array, outputs: int = 1) -> list[Array]:
    """Give new arrays of the shape of the inputs, which `function` fills block by block.

    Args:
        function: takes a block of each input and a block of each output, all flat, and fills the latter.
        inputs: of one shape and dtype.
        outputs: how many.
    """
    shape, dtype = inputs[0].shape, inputs[0].dtype
    results = [empty(shape, dtype) for _ in range(outputs)]
    flat = [np.ascontiguousarray(array).reshape(-1) for array in inputs] + [array.reshape(-1) for array in results]

    def body(start: int, stop: int) -> None:
        for block in blocks(start, stop, BLOCK):
            function(*(array[block] for array in flat))

    over_ranges(body, flat[0].size, flat[0].size)
    return results


def flat_views(*arrays: Array) -> list[Array] | None:
    """Give views of the elements of arrays of one shape in one order; None where there is no such view."""
    if all(array.flags.c_contiguous for array in arrays):
        return [array.reshape(-1) for array in arrays]
    return [array.T.reshape(-1) for array in arrays] if all(array.flags.f_contiguous for array in arrays) else None


def in_place(function: Callable[..., object], changed: list[Array], read: list[Array]) -> None:
    """Let a function go through arrays of one shape and change some of them; each thread takes a part.

    Args:
        function: takes a part of each array, flat, in the order of the arguments.
        changed: arrays that it changes. read: arrays that it only reads.
    """
    arrays = [*changed, *read]
    views = flat_views(*arrays)
    flat = [array.reshape(-1) for array in arrays] if views is None else views
    over_ranges(lambda start, stop: function(*(part[start:stop] for part in flat)), flat[0].size, flat[0].size)
    if views is None:  # some of the flat ones are copies
        for array, part in zip(changed, flat, strict=False):
            array[...] = part.reshape(array.shape)


def update_rows(function: Callable[..., object], rows: Sequence[UpdateRow], skip: Array | None) -> None:
    """Let a function make the step of every row, rows side by side in threads; of none where `skip` is true.

    Args:
        function: takes a row's weight decay and a part of its data, state and gradient, flat; it changes the first two.
        rows: one for each parameter. skip: a boolean scalar, or None.
    """

    def update(row: UpdateRow) -> None:
        in_place(partial(function, float(row.weight_decay)), [row.data, *row.state], [row.grad])

    if skip is None or not skip:
        over_items(update, rows, [row.data.size for row in rows])


def sum_into(total: Array, parts: list[Array]) -> None:
    """Set `total` to the sum of arrays of its shape, in their order."""
    views = flat_views(total, *parts)
    if views is None or len(parts) < 2:
        total[...] = sum(parts)
        return
    flat_total, first, second, *others = views
    for block in blocks(0, total.size, BLOCK):
        np.add(first[block], second[block], out=flat_total[block])
        for part in others:
            flat_total[block] += part[block]
