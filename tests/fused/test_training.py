"""Training with a fast table goes where the reference goes, for every kind of network."""

import numpy as np
import pytest

from minifocal.arrays import random_generator
from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.ops import list_ops
from minifocal.training.optim import SGD, AdamW
from minifocal.training.step import train_step

STEPS, BATCH, CLASSES = 10, 5, 4
NETWORKS = {
    "focal": {},
    "focal with every option": {
        "use_conv_embed": True, "use_layerscale": True, "layerscale_value": 0.3, "use_postln": True,
        "use_postln_in_modulation": True, "normalize_modulator": True, "mlp_act": "gelu_pytorch_tanh",
    },
    "sigmoid_gate": {"modulation": "sigmoid_gate"},
    "box_mean": {"modulation": "box_mean"},
}  # fmt: skip


def train(table, network, make_optimizer, dtype="float32", **options):
    """Give the losses and all parameters after some steps on different batches."""
    config = FocalNetConfig(
        image_size=(20, 16), patch_size=4, in_chans=2, num_classes=CLASSES, embed_dim=12, depths=(1, 2),
        focal_levels=(2, 1), focal_windows=(3, 5), drop_path_rate=0.3, drop_rate=0.1, **NETWORKS[network],
    )  # fmt: skip
    model = FocalNet(config, seed=1, init="lecun", dtype=dtype, ops=table, **options)
    assert model.ops.name == table
    optimizer, rng, data = make_optimizer(model), random_generator(2), np.random.default_rng(3)
    losses = []
    for _ in range(STEPS):
        images = data.standard_normal((BATCH, 2, 20, 16)).astype(dtype)
        labels = data.integers(0, CLASSES, BATCH)
        losses.append(train_step(model, optimizer, images, labels, rng, label_smoothing=0.1, clip_norm=5.0).loss)
    return {"losses": np.array(losses), **model.state_dict()}


def sgd(model):
    return SGD(model, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2)


def adamw(model):
    return AdamW(model, 1e-3, weight_decay=1e-2)


def distance(got, want):
    """The largest difference of any array, relative to its largest number."""
    assert got.keys() == want.keys()
    return max(float(np.abs(got[name] - want[name]).max() / np.abs(want[name]).max()) for name in want)


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
