"""Training with the table "cuda" goes where the reference goes, for every kind of network."""

import numpy as np
import pytest

from minifocal.arrays import random_generator
from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.ops import GPU_TABLE, get_ops
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


def build(network, home=None, dtype="float32", **options):
    """A network with the reference on the host; with the table "cuda" where there is another home."""
    config = FocalNetConfig(
        image_size=(20, 16), patch_size=4, in_chans=2, num_classes=CLASSES, embed_dim=12, depths=(1, 2),
        focal_levels=(2, 1), focal_windows=(3, 5), drop_path_rate=0.3, drop_rate=0.1, **NETWORKS[network],
    )  # fmt: skip
    model = FocalNet(config, seed=1, init="lecun", dtype=dtype, ops="reference", **options)
    if home is not None:
        for parameter in model.parameters():
            parameter.data, parameter.grad = home.put((parameter.data, parameter.grad))
        model.use_ops(get_ops(GPU_TABLE, "cuda"))
    return model


def batches(dtype, home=None):
    data = np.random.default_rng(3)
    for _ in range(STEPS):
        batch = data.standard_normal((BATCH, 2, 20, 16)).astype(dtype), data.integers(0, CLASSES, BATCH)
        yield batch if home is None else home.put(batch)


def train(network, make_optimizer, dtype, home=None, **options):
    """Give the losses and all parameters after some steps on different batches."""
    model = build(network, home, dtype, **options)
    optimizer, rng = make_optimizer(model), random_generator(2)
    losses = [
        train_step(model, optimizer, images, labels, rng, label_smoothing=0.1, clip_norm=5.0).loss
        for images, labels in batches(dtype, home)
    ]
    values = {name: array if home is None else home.get(array) for name, array in model.state_dict().items()}
    return {"losses": np.array(losses), **values}


def sgd(model):
    return SGD(model, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2)


def adamw(model):
    return AdamW(model, 1e-3, weight_decay=1e-2)


def distance(got, want):
    """The largest difference of any array, relative to its largest number."""
    assert got.keys() == want.keys()
    return max(float(np.abs(got[name] - want[name]).max() / np.abs(want[name]).max()) for name in want)


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
