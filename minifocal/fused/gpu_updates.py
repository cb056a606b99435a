"""The steps of optimizers on a GPU: all parameters in one launch, each block a chunk of one of them."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minifocal.arrays import Array, get_array_module
from minifocal.functional import updates
from minifocal.functional.updates import UpdateRow
from minifocal.fused import gpu
from minifocal.fused.gpu_calls import C_TYPES, THREADS

CHUNK = 4096  # numbers of a block, as in kernels.cuh
TABLES_KEPT = 8


class _Table(NamedTuple):
    """Where the arrays of all parameters lie, on the device, as `Row` and `Chunk` of kernels_update.cu say it."""

    rows: Array  # (parameters, 6) int64: four addresses, the size, the bits of the weight decay
    chunks: Array  # (blocks, 2) int64: number of the row, first element

    @property
    def grid(self) -> tuple[int]:
        """One block a chunk."""
        return (self.chunks.shape[0],)


_tables: OrderedDict[tuple[Any, ...], _Table] = OrderedDict()


def sgd_update(
    rows: Sequence[UpdateRow], *, lr: float, momentum: float, nesterov: bool, skip: Array | None = None
) -> None:
    """As functional.updates.sgd_update."""
    if not _lie_in_order(rows):
        updates.sgd_update(rows, lr=lr, momentum=momentum, nesterov=nesterov, skip=skip)
        return
    numbers = map(rows[0].data.dtype.type, (lr, momentum))
    _launch("sgd_update", rows, *numbers, np.bool_(nesterov), gpu.NULL if skip is None else skip)


def adamw_update(
    rows: Sequence[UpdateRow],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    steps: int,
    skip: Array | None = None,
) -> None:
    """As functional.updates.adamw_update."""
    if not _lie_in_order(rows):
        updates.adamw_update(rows, lr=lr, betas=betas, eps=eps, steps=steps, skip=skip)
        return
    scales = (1.0 / (1.0 - beta**steps) for beta in betas)
    numbers = map(rows[0].data.dtype.type, (lr, *betas, eps, *scales))
    _launch("adamw_update", rows, *numbers, gpu.NULL if skip is None else skip)


def clip(gradients: Sequence[Array], max_norm: float) -> Array:
    """As functional.updates.clip; the sum of squares is made in float64."""
    rows = [UpdateRow(gradient, gradient, (), 0.0) for gradient in gradients]
    if not _lie_in_order(rows):
        return updates.clip(gradients, max_norm)
    xp = get_array_module(*gradients)
    sums = xp.empty(_table(rows).grid, dtype="float64")
    _launch("squares", rows, sums)
    norm = xp.sqrt(sums.sum())
    scale = xp.where(norm > max_norm, max_norm / norm, 1.0)
    _launch("scale_gradients", rows, scale)
    return norm


def unscale(gradients: Sequence[Array], scale: Array) -> Array:
    """As functional.updates.unscale."""
    rows = [UpdateRow(gradient, gradient, (), 0.0) for gradient in gradients]
    if not _lie_in_order(rows):
        return updates.unscale(gradients, scale)
    xp = get_array_module(scale, *gradients)
    sums = xp.empty(_table(rows).grid, dtype="float64")
    _launch("squares", rows, sums)  # of float32, which do not overflow in float64: finite as the gradients are
    _launch("scale_gradients", rows, 1.0 / scale.astype("float64"))
    return ~xp.isfinite(sums.sum())


def _launch(kernel: str, rows: Sequence[UpdateRow], *arguments: Any) -> None:
    table = _table(rows)
    gpu.launch(
        f"{kernel}<{C_TYPES[rows[0].data.dtype.name]}>", table.grid, (THREADS,), table.rows, table.chunks, *arguments
    )


def _lie_in_order(rows: Sequence[UpdateRow]) -> bool:
    """Whether the numbers of each parameter lie in one order in all its arrays, and all are of one type."""
    dtype = rows[0].data.dtype
    arrays = (array for row in rows for array in (row.data, row.grad, *row.state))
    return all(array.flags.c_contiguous and array.dtype == dtype for array in arrays)


def _table(rows: Sequence[UpdateRow]) -> _Table:
    """Give the table of these rows: a new one only where an array lies elsewhere than before."""
    key = tuple(
        (*(array.data.ptr for array in (row.data, row.grad, *row.state)), row.data.size, row.weight_decay)
        for row in rows
    )
    if key not in _tables:
        _tables[key] = _make_table(rows)
        if len(_tables) > TABLES_KEPT:
            _tables.popitem(last=False)
    _tables.move_to_end(key)
    gpu.keep(_tables[key])
    return _tables[key]


def _make_table(rows: Sequence[UpdateRow]) -> _Table:
    xp = get_array_module(rows[0].data)
    table = np.zeros((len(rows), 6), dtype=np.int64)
    chunks = []
    for number, row in enumerate(rows):
        addresses = [array.data.ptr for array in (row.data, row.grad, *row.state)]
        table[number, : len(addresses)] = addresses
        table[number, 4] = row.data.size
        table[number, 5] = np.float64(row.weight_decay).view(np.int64)
        chunks += [(number, start) for start in range(0, row.data.size, CHUNK)]
    return _Table(xp.asarray(table), xp.asarray(np.array(chunks, dtype=np.int64)))
