"""Gradients on their way: laid out in buckets, told complete at the right moment, summed while the way back runs."""

from types import SimpleNamespace

import numpy as np
import pytest
from small_runs import network
from strict_array import StrictLibrary
from thread_ranks import together

from minifocal.arrays import random_generator
from minifocal.layers.base import Layer, Parameter
from minifocal.training import shards
from minifocal.training.distributed import ALIGNMENT, BUCKET_BYTES, GradientExchange
from minifocal.training.ranks import ALONE, Ranks, Sum
from minifocal.training.shards import loss_and_gradients
from minifocal.training.step import step_gradients

EPS = float(np.finfo("float64").eps)
SMALL = 2000  # bytes of a bucket: some eight for the network here


def batch(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 2, 6, 8)), rng.integers(0, 4, count)


class Noting(Ranks):
    """One rank of two whose sums are noted: how many gradients were complete when each began."""

    size, overlaps = 2, True

    def __init__(self):
        self.begun, self.polled, self.exchange = [], 0, None

    def start_sum(self, array):
        complete = [p for bucket in self.exchange.buckets if not bucket.missing for p in bucket.parameters]
        self.begun.append((array, complete))
        return NotedSum(self)


class NotedSum(Sum):
    def __init__(self, ranks):
        self.ranks = ranks

    def poll(self):
        self.ranks.polled += 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_gradient_lies_in_one_bucket_those_of_the_last_layers_first(dtype):
    model = network(dtype=dtype)
    exchange = GradientExchange(model, ALONE, SMALL)
    assert all((parameter.grad == 0).all() for parameter in model.parameters())
    assert len(exchange.buckets) > 5
    laid_out = [parameter for bucket in exchange.buckets for parameter in bucket.parameters]
    assert list(map(id, laid_out)) == list(map(id, model.parameters()))[::-1]
    for bucket in exchange.buckets:
        for parameter in bucket.parameters:
            assert parameter.grad.base is bucket.values
            assert parameter.grad.shape == parameter.data.shape
            assert (parameter.grad.ctypes.data - bucket.values.ctypes.data) % 16 == 0
        sizes = [parameter.data.nbytes for parameter in bucket.parameters]
        assert sum(sizes[:-1]) < SMALL
        assert bucket is exchange.buckets[-1] or sum(sizes) >= SMALL
    for number, parameter in enumerate(laid_out):
        parameter.grad[...] = number
    assert all((parameter.grad == number).all() for number, parameter in enumerate(laid_out))  # none lies over another
    assert exchange.bytes == sum(bucket.values.nbytes for bucket in exchange.buckets)
    size = np.dtype(dtype).itemsize
    count = model.count_parameters()
    assert count * size <= exchange.bytes <= count * size + (ALIGNMENT - size) * len(laid_out)


def parameters(*shapes, dtype="float32"):
    """A layer that has nothing but parameters."""
    layer = Layer()
    layer.held = [Parameter(np.ones(shape, dtype)) for shape in shapes]
    return layer


def test_a_bucket_is_full_when_it_has_the_bytes():
    for bucket_bytes, sizes in ((64, [1, 1, 1, 1, 1]), (65, [2, 2, 1]), (128, [2, 2, 1]), (1000, [5])):
        exchange = GradientExchange(parameters(*[(4, 4)] * 5), ALONE, bucket_bytes)
        assert [len(bucket.parameters) for bucket in exchange.buckets] == sizes
    assert (BUCKET_BYTES, ALIGNMENT) == (4 * 1024 * 1024, 16)


def test_buckets_lie_beside_the_parameters():
    array = StrictLibrary().asarray(np.ones((3, 5), "float32"))
    layer = SimpleNamespace(parameters=lambda: iter([parameter]))
    parameter = SimpleNamespace(data=array, grad=None)
    exchange = GradientExchange(layer, ALONE)
    assert type(parameter.grad) is type(array)
    assert parameter.grad.shape == (3, 5)
    assert exchange.bytes == 64


@pytest.mark.parametrize("ops", ["reference", "numpy"])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_sums_begin_in_order_while_the_way_back_still_runs(ops, micro_batch):
    model, ranks = network(dtype="float64", ops=ops), Noting()
    exchange = ranks.exchange = GradientExchange(model, ranks, SMALL)
    for _ in range(2):  # a second step as the first
        ranks.begun.clear()
        outcome = step_gradients(
            model, *batch(5), random_generator(1), label_smoothing=0.0, clip_norm=None, scaler=None,
            micro_batch=micro_batch, weight=0.25, exchange=exchange,
        )  # fmt: skip
        *sums, scalars = ranks.begun
        assert [id(array) for array, _ in sums] == [id(bucket.values) for bucket in exchange.buckets]
        everything = len(list(model.parameters()))
        for number, (_, complete) in enumerate(sums):
            mine = sum(len(bucket.parameters) for bucket in exchange.buckets[: number + 1])
            assert mine <= len(complete) < everything or number == len(sums) - 1
        assert scalars[0].dtype == "float64"
        np.testing.assert_array_equal(scalars[0], [outcome.loss, outcome.accuracy])
    assert ranks.polled > 0


def test_without_leave_to_overlap_all_sums_begin_at_the_end_in_the_same_order():
    model, ranks = network(), Noting()
    ranks.overlaps = False
    exchange = ranks.exchange = GradientExchange(model, ranks, SMALL)
    images, labels = batch(3)
    step_gradients(
        model, images.astype("float32"), labels, None, label_smoothing=0.0, clip_norm=None, scaler=None,
        exchange=exchange,
    )  # fmt: skip
    assert len(ranks.begun) == len(exchange.buckets) + 1
    assert [id(array) for array, _ in ranks.begun[:-1]] == [id(bucket.values) for bucket in exchange.buckets]
    assert all(len(complete) == len(list(model.parameters())) for _, complete in ranks.begun)


@pytest.mark.parametrize("ops", ["reference", "numpy"])
@pytest.mark.parametrize("count", [2, 7])
def test_what_is_told_complete_is_the_gradient(ops, count, monkeypatch):
    monkeypatch.setattr("minifocal.threads.thread_count", lambda: 3)
    monkeypatch.setattr(shards, "thread_count", lambda: 3)
    plain, told = (network(dtype="float64", ops=ops) for _ in range(2))
    loss, logits = loss_and_gradients(plain, *batch(count), random_generator(2), 0.1)
    kept = {}
    other_loss, other_logits = loss_and_gradients(
        told, *batch(count), random_generator(2), 0.1, completed=lambda p: kept.__setitem__(id(p), p.grad.copy())
    )
    assert other_loss == loss
    np.testing.assert_array_equal(other_logits, logits)
    assert len(kept) == len(list(told.parameters()))
    for mine, theirs in zip(plain.parameters(), told.parameters(), strict=True):
        np.testing.assert_array_equal(kept[id(theirs)], mine.grad)
        np.testing.assert_array_equal(theirs.grad, mine.grad)


@pytest.mark.parametrize("ops", ["reference", "numpy"])
def test_a_gradient_that_is_told_too_early_would_be_seen(ops, monkeypatch):
    """One part of the batch too few is waited for."""
    model = network(dtype="float64", ops=ops)
    loss_and_gradients(model, *batch(6), None, micro_batch=1)
    want = [parameter.grad.copy() for parameter in model.parameters()]

    class Early(shards._Watch):
        def __init__(self, model, parts, completed):
            super().__init__(model, parts - 1, completed)

        def _added(self, parameter):
            if self.missing[id(parameter)]:
                super()._added(parameter)

    def gradients(ranks):
        model = network(dtype="float64", ops=ops)
        exchange = GradientExchange(model, ranks, SMALL)
        images, labels = batch(6)
        own = ranks.share(6)
        step_gradients(
            model, images[own], labels[own], None, label_smoothing=0.0, clip_norm=None, scaler=None,
            micro_batch=1, weight=0.5, exchange=exchange,
        )  # fmt: skip
        return [parameter.grad.copy() for parameter in model.parameters()]

    def compare():
        for found in together(2, gradients):
            for mine, theirs in zip(want, found, strict=True):
                np.testing.assert_allclose(theirs, mine, rtol=0, atol=1000 * EPS * max(1, np.abs(mine).max()))

    compare()
    monkeypatch.setattr(shards, "_Watch", Early)
    with pytest.raises(AssertionError):
        compare()


def test_scalars_are_summed_in_float64():
    exchange = GradientExchange(parameters((2, 3)), ALONE)
    exchange.begin()
    totals = exchange.finish([np.float32(0.1), np.float32(3)])
    assert [total.dtype for total in totals] == ["float64", "float64"]
    assert totals == [np.float32(0.1), 3.0]


class Twice(Layer):
    """Adds to its gradient twice, which no layer here does."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(np.ones((3, 4)))

    def forward(self, x, rng=None):
        return x @ self.weight.data, x

    def backward(self, dy, cache):
        for _ in range(2):
            self.weight.grad += cache.T @ dy / 2
        return dy @ self.weight.data.T


class Tied(Layer):
    """Two layers with one weight; and a parameter that nothing is computed with."""

    def __init__(self):
        super().__init__()
        self.first = Once(Parameter(np.random.default_rng(0).standard_normal((4, 4))))
        self.second = Once(self.first.weight)
        self.unused = Parameter(np.ones(5))

    def forward(self, x, rng=None):
        y, first = self.first.forward(x)
        y, second = self.second.forward(y)
        return y, (first, second)

    def backward(self, dy, cache):
        return self.first.backward(self.second.backward(dy, cache[1]), cache[0])


class Once(Layer):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x, rng=None):
        return x @ self.weight.data, x

    def backward(self, dy, cache):
        self.weight.grad += cache.T @ dy
        return dy @ self.weight.data.T


def test_a_gradient_that_grows_after_it_was_told_complete_is_refused():
    x, labels = np.ones((2, 3)), np.array([0, 1])
    loss_and_gradients(Twice(), x, labels, None)
    with pytest.raises(RuntimeError, match=r"adds twice to the gradient of Parameter\(shape=\(3, 4\)"):
        loss_and_gradients(Twice(), x, labels, None, completed=lambda parameter: None)


def test_a_shared_parameter_is_complete_after_both_and_an_unused_one_at_the_end():
    x, labels = np.random.default_rng(1).standard_normal((5, 4)), np.array([0, 1, 2, 3, 0])
    plain, told, order = Tied(), Tied(), []
    loss_and_gradients(plain, x, labels, None)
    told.unused.grad[...] = 7.0  # of a step before
    kept = lambda parameter: order.append((parameter, parameter.grad.copy()))  # noqa: E731
    loss_and_gradients(told, x, labels, None, micro_batch=2, completed=kept)
    assert [parameter for parameter, _ in order] == [told.first.weight, told.unused]
    want = plain.first.weight.grad
    np.testing.assert_allclose(order[0][1], want, rtol=0, atol=100 * EPS * np.abs(want).max())
    np.testing.assert_array_equal(order[1][1], 0.0)


@pytest.mark.parametrize("ops", ["reference", "numpy", "numba"])
@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_a_batch_in_parts_comes_to_the_same(ops, micro_batch, monkeypatch):
    pytest.importorskip("numba")
    whole, parts = (network(dtype="float64", ops=ops) for _ in range(2))
    taken = []
    right = type(parts).forward

    def forward(model, x, rng=None):
        taken.append(len(x))
        return right(model, x, rng)

    loss, logits = loss_and_gradients(whole, *batch(8), random_generator(3), 0.1)
    monkeypatch.setattr(type(parts), "forward", forward)
    other_loss, other_logits = loss_and_gradients(parts, *batch(8), random_generator(3), 0.1, micro_batch=micro_batch)
    assert max(taken) <= micro_batch
    assert sum(taken) == 8
    np.testing.assert_allclose(other_loss, loss, rtol=100 * EPS)
    np.testing.assert_allclose(other_logits, logits, rtol=0, atol=1000 * EPS * np.abs(logits).max())
    for mine, theirs in zip(whole.parameters(), parts.parameters(), strict=True):
        np.testing.assert_allclose(theirs.grad, mine.grad, rtol=0, atol=1e4 * EPS * max(1, np.abs(mine.grad).max()))


def test_a_weight_is_one_of_loss_and_gradients_alike():
    plain, weighted = (network(dtype="float64") for _ in range(2))
    loss, _ = loss_and_gradients(plain, *batch(5), None)
    other_loss, _ = loss_and_gradients(weighted, *batch(5), None, weight=0.375)
    np.testing.assert_allclose(other_loss, 0.375 * loss, rtol=10 * EPS)
    for mine, theirs in zip(plain.parameters(), weighted.parameters(), strict=True):
        tolerance = 1e4 * EPS * max(1, np.abs(mine.grad).max())
        np.testing.assert_allclose(theirs.grad, 0.375 * mine.grad, rtol=0, atol=tolerance)
