"""Ten training steps of small networks of every kind, which all tables of operations make."""

import numpy as np

from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.training.optim import SGD, AdamW

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


def build(network, dtype, table, **options):
    config = FocalNetConfig(
        image_size=(20, 16), patch_size=4, in_chans=2, num_classes=CLASSES, embed_dim=12, depths=(1, 2),
        focal_levels=(2, 1), focal_windows=(3, 5), drop_path_rate=0.3, drop_rate=0.1, **NETWORKS[network],
    )  # fmt: skip
    return FocalNet(config, seed=1, init="lecun", dtype=dtype, ops=table, **options)


def batches(dtype):
    data = np.random.default_rng(3)
    for _ in range(STEPS):
        yield data.standard_normal((BATCH, 2, 20, 16)).astype(dtype), data.integers(0, CLASSES, BATCH)


def sgd(model):
    return SGD(model, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2)


def adamw(model):
    return AdamW(model, 1e-3, weight_decay=1e-2)


def distance(got, want):
    """The largest difference of any array, relative to its largest number."""
    assert got.keys() == want.keys()
    return max(float(np.abs(got[name] - want[name]).max() / np.abs(want[name]).max()) for name in want)
