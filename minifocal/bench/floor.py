"""The floor: the matrix products of a network alone, as fast as NumPy's BLAS makes them with all its threads.

Nothing that computes the same products with this BLAS is faster, however well it does the rest.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from minifocal.arrays import Array, random_generator
from minifocal.bench.workloads import Mode, Workload
from minifocal.functional.linear import LinearCache
from minifocal.ops import REFERENCE, Op


class Product(NamedTuple):
    """The shape of one linear map: (rows, inner) @ (inner, columns)."""

    rows: int
    inner: int
    columns: int

    @property
    def multiply_adds(self) -> int:
        """Of the way forward; the way back has twice as many."""
        return self.rows * self.inner * self.columns


class Operands(NamedTuple):
    """The arrays of one product and of the two on its way back."""

    x: Array
    weight: Array
    y: Array
    dx: Array
    dweight: Array


def products(workload: Workload, mode: Mode) -> list[Product]:
    """List the linear maps of a network for a batch, in the order of the forward pass."""
    found = []

    def record(x: Array, weight: Array, bias: Array) -> tuple[Array, LinearCache]:
        found.append(Product(x.size // x.shape[-1], *weight.shape))
        return REFERENCE.linear.forward(x, weight, bias)

    model = workload.model("reference")
    model.use_ops(replace(REFERENCE, linear=Op(record, REFERENCE.linear.backward)))
    images, _ = workload.draw(mode)
    model(images[:1])
    return [product._replace(rows=product.rows * len(images)) for product in found]


def prepare(workload: Workload, mode: Mode) -> Callable[[], None]:
    """Allocate operands, and give the function that multiplies them all: forward, in training also dx and dweight."""
    listed = products(workload, mode)
    operands = {product: _allocate(product) for product in listed}  # those of equal shape share theirs

    def multiply() -> None:
        for product in listed:
            x, weight, y, dx, dweight = operands[product]
            np.matmul(x, weight, out=y)
            if mode.training:
                np.matmul(y, weight.T, out=dx)
                np.matmul(x.T, y, out=dweight)

    return multiply


def _allocate(product: Product) -> Operands:
    rows, inner, columns = product
    rng = random_generator(0)
    x = rng.standard_normal((rows, inner), dtype=np.float32)
    weight = rng.standard_normal((inner, columns), dtype=np.float32)
    return Operands(x, weight, np.empty((rows, columns), np.float32), np.empty_like(x), np.empty_like(weight))
