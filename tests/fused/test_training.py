"""Training with a fast table goes where the reference goes, for every kind of network."""

import numpy as np
import pytest
from small_networks import NETWORKS, adamw, batches, build, distance, sgd

from minifocal.arrays import random_generator
from minifocal.models.focalnet import FocalNet
from minifocal.ops import list_ops
from minifocal.training.step import train_step


def train(table, network, make_optimizer, dtype="float32", **options):
    """Give the losses and all parameters after some steps on different batches."""
    model = build(network, dtype, table, **options)
    assert model.ops.name == table
    optimizer, rng = make_optimizer(model), random_generator(2)
    losses = [
        train_step(model, optimizer, images, labels, rng, label_smoothing=0.1, clip_norm=5.0).loss
        for images, labels in batches(dtype)
    ]
    return {"losses": np.array(losses), **model.state_dict()}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("table", list_ops()[1:])
def test_ten_steps_lead_where_the_reference_leads(table, network, every_way):
    assert distance(train(table, network, sgd), train("reference", network, sgd)) < 1e-4


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("table", list_ops()[1:])
def test_ten_steps_in_float64_differ_by_rounding_alone(table, network):
    """AdamW divides by the root of small squares, and ten steps multiply what the first one rounds."""
    assert distance(*(train(name, network, adamw, "float64") for name in (table, "reference"))) < 1e-9


@pytest.mark.parametrize("network", ["focal", "focal with every option"])
@pytest.mark.parametrize("table", list_ops())
def test_levels_that_are_computed_again_give_the_same_bits(table, network):
    got, want = (train(table, network, sgd, recompute_levels=again) for again in (True, False))
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_ten_steps_see_a_table_that_is_off(monkeypatch):
    """The comparison itself: with a slope of GELU wrong by a hundredth they lead elsewhere."""
    want = train("reference", "focal", sgd)
    right = FocalNet.backward
    monkeypatch.setattr(FocalNet, "backward", lambda model, dy, cache: right(model, 1.01 * dy, cache))
    assert distance(train("reference", "focal", sgd), want) > 1e-4
