"""A batch in shards: the loss, the logits and every gradient are those of the whole batch at once."""

import threading

import numpy as np
import pytest

from minifocal.arrays import random_generator
from minifocal.errors import InputError
from minifocal.layers.base import Layer, Parameter
from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.ops import get_ops, list_ops
from minifocal.threads import shards
from minifocal.training import shards as module
from minifocal.training.shards import SharedDraws, loss_and_gradients

CLASSES = 5
TABLES = list_ops()[1:]
every_table = pytest.mark.parametrize("table", TABLES)
DROPPING = {"drop_rate": 0.2, "drop_path_rate": 0.5}


@pytest.fixture
def use(monkeypatch):
    """Set the number of threads, and how many images are computed at a time."""

    def use(threads, size):
        monkeypatch.setattr("minifocal.threads.thread_count", lambda: threads)
        monkeypatch.setattr("minifocal.models.focalnet.thread_count", lambda: threads)
        monkeypatch.setattr(FocalNet, "shard_size", lambda model, shape: size)

    return use


def build(table, dtype="float64", kind=FocalNet, **options):
    """Two stages and three blocks, all parameters away from where they start."""
    config = FocalNetConfig(
        image_size=8, patch_size=2, in_chans=2, num_classes=CLASSES, embed_dim=6, depths=(2, 1), mlp_ratio=2.0,
        focal_levels=(2, 1), focal_windows=(3, 3), **({"drop_path_rate": 0.0} | options),
    )  # fmt: skip
    model = kind(config, seed=1, init="lecun", dtype=dtype, ops=table)
    rng = np.random.default_rng(2)
    for parameter in model.parameters():
        parameter.data += rng.uniform(-0.3, 0.3, parameter.data.shape).astype(dtype)
        parameter.grad[...] = 7.0  # of an earlier batch
    return model


def batch(count, dtype="float64"):
    rng = np.random.default_rng(3)
    return rng.standard_normal((count, 2, 10, 8)).astype(dtype), rng.integers(0, CLASSES, count)


def results(model, count, seed=None, dtype="float64"):
    """Loss, logits, gradients and what the generator draws next."""
    rng = None if seed is None else random_generator(seed)
    loss, logits = loss_and_gradients(model, *batch(count, dtype), rng, label_smoothing=0.1)
    gradients = {name: parameter.grad.copy() for name, parameter in model.named_parameters()}
    return {"loss": loss, "logits": logits, **gradients, "next draw": 0.0 if rng is None else rng.random()}


def assert_same(got, want, dtype="float64"):
    """A thousand roundings of the largest number: three blocks there and back, and sums over up to 180 tokens."""
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert np.asarray(got[name]).dtype == (dtype if name != "next draw" else "float64"), name
        tolerance = 1000 * float(np.finfo(dtype).eps) * max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(got[name], array, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("threads", [2, 3])
@every_table
def test_shards_give_what_the_whole_batch_gives(use, table, threads, size):
    use(threads, size)
    for count in range(1, 10):
        assert_same(results(build(table), count), results(build("reference"), count))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("threads", [2, 3])
@every_table
def test_shards_drop_what_the_whole_batch_drops(use, table, threads, size):
    use(threads, size)
    for count in (1, 2, 5, 7):
        got, want = (results(build(name, **DROPPING), count, seed=4) for name in (table, "reference"))
        assert_same(got, want)
        assert np.abs(got["logits"] - results(build(table), count)["logits"]).max() > 0.01  # something was dropped


@every_table
def test_shards_in_float32_stay_in_float32(use, table):
    use(3, 1)
    got, want = (results(build(name, "float32"), 7, dtype="float32") for name in (table, "reference"))
    assert_same(got, want, "float32")


@every_table
def test_the_same_batch_gives_the_same_bits(use, table):
    use(3, 2)
    first, second = (results(build(table, "float32", **DROPPING), 7, seed=4, dtype="float32") for _ in range(2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


@every_table
def test_the_gradients_replaced_are_the_arrays_that_were_there(use, table):
    """An optimizer, or a user, may hold on to them."""
    use(2, 1)
    model = build(table)
    held = [parameter.grad for parameter in model.parameters()]
    results(model, 3)
    assert all(parameter.grad is grad for parameter, grad in zip(model.parameters(), held, strict=True))
    assert not any((grad == 7.0).any() for grad in held)


class Idle(FocalNet):
    """A network with a parameter that nothing uses."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.idle = Parameter(np.ones((3, 2)))
        self.idle.grad[...] = 7.0


@every_table
def test_a_parameter_that_gets_no_gradient_has_one_of_zeros(use, table):
    use(2, 1)
    model = build(table, kind=Idle)
    assert_same(results(model, 3), results(build("reference", kind=Idle), 3))
    np.testing.assert_array_equal(model.idle.grad, np.zeros((3, 2)))


@every_table
def test_shares_that_are_not_weighted_are_caught(use, table, monkeypatch):
    """The comparison itself: the mean of means is not the mean where shares differ, as 3 and 2 images do."""
    use(2, 8)
    even, odd = (results(build("reference"), count) for count in (4, 5))
    right = module._go_through
    monkeypatch.setattr(module, "_go_through", lambda *inputs: right(*inputs[:-1], 0.5))
    assert_same(results(build(table), 4), even)
    with pytest.raises(AssertionError):
        assert_same(results(build(table), 5), odd)


# Inference


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 2, 8])
@every_table
def test_inference_gives_what_forward_gives(use, table, size, dtype):
    use(3, size)
    model, reference = build(table, dtype), build("reference", dtype)
    for count in range(1, 10):
        images, _ = batch(count, dtype)
        want, _ = reference.forward(images)
        assert_same({"logits": model(images)}, {"logits": want}, dtype)
        assert_same({"logits": model.forward(images)[0]}, {"logits": want}, dtype)


# What is wrong


@pytest.mark.parametrize("label", [-1, CLASSES])
@every_table
def test_a_bad_label_is_refused_in_any_share(use, table, label):
    use(3, 1)
    images, labels = batch(7)
    for bad in range(7):
        wrong = labels.copy()
        wrong[bad] = label
        with pytest.raises(InputError, match=rf"labels must lie in 0\.\.{CLASSES - 1}"):
            loss_and_gradients(build(table), images, wrong, random_generator(1))
    model = build(table)
    loss_and_gradients(model, images, labels, random_generator(1))  # the threads are there for the next batch


@pytest.mark.parametrize("shape", [(9,), (5,), (7, 1), ()], ids=str)
@every_table
def test_labels_must_be_one_for_each_image_of_the_batch(use, table, shape):
    use(3, 1)
    images, _ = batch(7)
    for name in (table, "reference"):
        with pytest.raises(InputError, match="labels"):
            loss_and_gradients(build(name), images, np.zeros(shape, dtype=int), None)


@every_table
def test_an_image_with_nan_is_named_by_its_place_in_the_batch(use, table):
    use(3, 1)
    images, labels = batch(7)
    images[5, 1, 2, 3] = np.nan
    model = build(table)
    for call in (lambda: loss_and_gradients(model, images, labels, None), lambda: model(images)):
        with pytest.raises(InputError, match="image 5 holds NaN"):
            call()


@every_table
def test_no_thread_is_left_waiting_after_a_failure(use, table):
    use(3, 1)
    images, labels = batch(6)
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(InputError):
            loss_and_gradients(build(table, **DROPPING), images, labels - CLASSES, random_generator(1))
    assert threading.active_count() <= before + 2  # the pool's, which wait for work
    results(build(table, **DROPPING), 6, seed=1)


# Draws


def test_shards_share_the_draws_of_the_whole_batch():
    whole = [random_generator(5).random(shape) for shape in [(7,)]]
    rng, parts = random_generator(5), [slice(0, 3), slice(3, 4), slice(4, 7)]
    draws = SharedDraws(rng, 7, len(parts))
    shares = [draws.shard(part) for part in parts]
    got = [share.random((part.stop - part.start,)) for share, part in zip(shares, parts, strict=True)]
    np.testing.assert_array_equal(np.concatenate(got), whole[0])


def test_a_shard_may_run_ahead_of_the_others():
    reference = random_generator(5)
    whole = [reference.random((5,)), reference.random((5, 2))]
    draws = SharedDraws(random_generator(5), 5, 2)
    first, second = draws.shard(slice(0, 2)), draws.shard(slice(2, 5))
    got = [[share.random((n,)), share.random((n, 2))] for share, n in ((first, 2), (second, 3))]
    for draw, parts in zip(whole, zip(*got, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), draw)
    assert draws.waiting == {}  # nothing is kept for a shard that has all it wants


# Replicas


def test_a_replica_shares_values_and_has_gradients_of_its_own():
    model = build("reference")
    twin = model.replica()
    assert type(twin) is type(model)
    names = dict(model.named_parameters())
    assert dict(twin.named_parameters()).keys() == names.keys()
    for name, parameter in twin.named_parameters():
        assert parameter is not names[name]
        assert parameter.data is names[name].data
        assert not parameter.has_gradient
    images, _ = batch(3)
    logits, cache = twin.forward(images)
    twin.backward(np.ones_like(logits), cache)
    twin.backward(np.ones_like(logits), cache)
    model.zero_grad()
    model.backward(np.ones_like(logits), cache)
    for name, parameter in twin.named_parameters():
        np.testing.assert_allclose(parameter.grad, 2 * names[name].grad, rtol=1e-12, atol=1e-12, err_msg=name)


def test_a_layer_that_holds_a_named_tuple_has_a_replica():
    """An operation is one, and a layer may keep the one that it computes with."""
    layer = Layer(get_ops("numpy"))
    layer.activation = layer.ops.gelu
    assert layer.replica().activation == layer.ops.gelu


def test_a_layer_that_knows_no_better_is_computed_all_at_once():
    assert Layer(get_ops("numpy")).shard_size((6, 2, 8, 8)) == 6
    assert shards(0, 1) == []
