"""Shards at their corners: when a batch is split, what is taken unsaid, and what each shard computes with."""

import numpy as np
import pytest

from minifocal.arrays import random_generator
from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.ops import list_ops
from minifocal.training import shards as module
from minifocal.training.shards import SharedDraws, loss_and_gradients

CLASSES = 5
every_table = pytest.mark.parametrize("table", list_ops()[1:])


@pytest.fixture
def three_threads(monkeypatch):
    """And one image at a time."""
    monkeypatch.setattr("minifocal.threads.thread_count", lambda: 3)
    monkeypatch.setattr(module, "thread_count", lambda: 3)
    monkeypatch.setattr("minifocal.models.focalnet.thread_count", lambda: 3)
    monkeypatch.setattr(FocalNet, "shard_size", lambda model, shape: 1)


def build(table, **options):
    config = FocalNetConfig(
        image_size=8, patch_size=2, in_chans=2, num_classes=CLASSES, embed_dim=6, depths=(1,), mlp_ratio=2.0,
        focal_levels=(1,), focal_windows=(3,), **{"drop_path_rate": 0.0, **options},
    )  # fmt: skip
    model = FocalNet(config, seed=1, init="lecun", dtype="float64", ops=table)
    # It starts with zeros, so that all logits, and all losses, would be the same.
    model.head.weight.data[...] = np.random.default_rng(2).standard_normal(model.head.weight.data.shape)
    for parameter in model.parameters():
        parameter.grad[...] = 7.0  # of an earlier batch
    return model


def batch(count):
    rng = np.random.default_rng(3)
    return rng.standard_normal((count, 2, 8, 6)), rng.integers(0, CLASSES, count)


def gradients(model):
    return {name: parameter.grad.copy() for name, parameter in model.named_parameters()}


@every_table
def test_a_batch_is_split_from_as_many_images_on_as_there_are_threads(three_threads, table, monkeypatch):
    seen, right = [], module._go_through
    monkeypatch.setattr(module, "_go_through", lambda *inputs: seen.append(len(inputs[1])) or right(*inputs))
    for count, expected in ((1, [1]), (2, [2]), (3, [1, 1, 1]), (4, [1, 1, 1, 1])):
        seen.clear()
        loss_and_gradients(build(table), *batch(count), None)
        assert seen == expected
    seen.clear()
    loss_and_gradients(build("reference"), *batch(4), None)  # which has no threads
    assert seen == [4]


@every_table
def test_where_there_is_no_generator_nothing_is_dropped(three_threads, table):
    plain, dropping = build(table), build(table, drop_rate=0.4, drop_path_rate=0.5)
    loss, logits = loss_and_gradients(plain, *batch(5), None)
    other_loss, other_logits = loss_and_gradients(dropping, *batch(5), None)
    assert other_loss == loss
    np.testing.assert_array_equal(other_logits, logits)
    want = gradients(plain)
    for name, grad in gradients(dropping).items():
        np.testing.assert_array_equal(grad, want[name], err_msg=name)


@pytest.mark.parametrize("table", list_ops())
@pytest.mark.parametrize("count", [2, 6])
def test_labels_are_smoothed_by_what_is_said_and_where_nothing_is_said_not_at_all(three_threads, table, count):
    model, (images, labels) = build(table), batch(count)
    for options, smoothing in (({}, 0.0), ({"label_smoothing": 0.3}, 0.3)):
        loss, logits = loss_and_gradients(model, images, labels, None, **options)
        log_chances = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        targets = np.full((count, CLASSES), smoothing / CLASSES)
        targets[range(count), labels] += 1 - smoothing
        expected = -(targets * log_chances).sum(axis=1).mean()
        np.testing.assert_allclose(loss, expected, rtol=100 * float(np.finfo("float64").eps))


@pytest.mark.parametrize("table", list_ops())
@pytest.mark.parametrize("count", [2, 7])
def test_a_scale_is_one_of_the_gradients_in_their_own_precision(three_threads, table, count):
    """The seventh part of 1000 is no float32: in it the gradients would be as coarse as that."""
    plain, scaled = build(table), build(table)
    loss, logits = loss_and_gradients(plain, *batch(count), None)
    other_loss, other_logits = loss_and_gradients(scaled, *batch(count), None, scale=np.array(1000, "float32"))
    assert other_loss == loss
    np.testing.assert_array_equal(other_logits, logits)
    want = gradients(plain)
    for name, grad in gradients(scaled).items():
        tolerance = 1e5 * float(np.finfo("float64").eps) * max(1.0, float(np.abs(want[name]).max()))
        np.testing.assert_allclose(grad, 1000 * want[name], rtol=0, atol=tolerance, err_msg=name)


def test_a_parameter_without_gradients_makes_no_array_of_zeros_for_them(monkeypatch):
    """What is summed are the gradients that there are."""
    model, summed = build("numpy"), []
    replicas = [model.replica() for _ in range(3)]
    for replica in replicas[1:]:
        next(replica.parameters()).grad = np.ones(next(model.parameters()).data.shape)
    monkeypatch.setattr(module, "sum_into", lambda total, parts: summed.append(len(parts)))
    module._sum_gradients(model, replicas)
    assert summed == [2] + [0] * (len(list(model.parameters())) - 1)


def test_a_draw_is_kept_until_the_last_shard_has_its_part():
    reference = random_generator(5)
    whole = [reference.random((6, 2)), reference.random((6,)), reference.random((6, 3, 4))]
    draws = SharedDraws(random_generator(5), 6, 3)
    parts = [slice(0, 1), slice(1, 3), slice(3, 6)]
    shares = [draws.shard(part) for part in parts]
    kept = []
    for share, part in zip(shares, parts, strict=True):
        for draw in whole:
            got = share.random((part.stop - part.start, *draw.shape[1:]))
            np.testing.assert_array_equal(got, draw[part])
        kept.append(len(draws.waiting))
    assert kept == [3, 3, 0]
