"""Training with the table "cuda" goes where the reference goes, for every kind of network."""

import numpy as np
import pytest
from small_networks import NETWORKS, adamw, batches, build, distance, sgd

from minifocal.arrays import random_generator
from minifocal.ops import GPU_TABLE, get_ops
from minifocal.training.step import train_step


def train(network, make_optimizer, dtype, home=None, **options):
    """Give the losses and all parameters after some steps: with the table "cuda" at a home, or the reference here."""
    model = build(network, dtype, "reference", **options)
    if home is not None:
        for parameter in model.parameters():
            parameter.data, parameter.grad = home.put((parameter.data, parameter.grad))
        model.use_ops(get_ops(GPU_TABLE, "cuda"))
    optimizer, rng = make_optimizer(model), random_generator(2)
    losses = [
        train_step(model, optimizer, images, labels, rng, label_smoothing=0.1, clip_norm=5.0).loss
        for images, labels in (batch if home is None else home.put(batch) for batch in batches(dtype))
    ]
    values = {name: array if home is None else home.get(array) for name, array in model.state_dict().items()}
    return {"losses": np.array(losses), **values}


@pytest.mark.parametrize("network", NETWORKS)
def test_ten_steps_lead_where_the_reference_leads(network, home):
    assert distance(train(network, sgd, "float32", home), train(network, sgd, "float32")) < 1e-4


@pytest.mark.parametrize("network", NETWORKS)
def test_ten_steps_in_float64_differ_by_rounding_alone(network, home):
    """AdamW divides by the root of small squares, and ten steps multiply what the first one rounds."""
    assert distance(train(network, adamw, "float64", home), train(network, adamw, "float64")) < 1e-9


def test_levels_that_are_computed_again_give_the_same_bits(home):
    got, want = (train("focal", sgd, "float32", home, recompute_levels=again) for again in (True, False))
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)
