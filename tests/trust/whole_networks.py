"""Small networks of every kind, whose sizes all differ, for what holds of a network as a whole."""

from typing import Any

import numpy as np

from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import FocalNet

BATCH, CHANNELS, HEIGHT, WIDTH, CLASSES = 7, 2, 12, 8, 5
KINDS: dict[str, dict[str, Any]] = {
    "focal": {},
    "focal, post-LN": {
        "use_postln": True, "use_postln_in_modulation": True, "use_layerscale": True, "layerscale_value": 0.3,
        "normalize_modulator": True, "mlp_act": "gelu_pytorch_tanh",
    },
    "focal, overlapping patches": {"use_conv_embed": True, "use_layerscale": True, "layerscale_value": 0.5},
    "sigmoid_gate": {"modulation": "sigmoid_gate"},
    "box_mean": {"modulation": "box_mean", "use_layerscale": True, "layerscale_value": 0.7},
}  # fmt: skip
DROPPING = {"drop_path_rate": 0.3, "drop_rate": 0.1}


def build(kind: str, dtype: str = "float32", ops: str = "reference", seed: int = 1, **options: Any) -> FocalNet:
    """Two stages and three blocks, with every parameter away from where it starts."""
    built = {name: options.pop(name) for name in ("recompute_levels", "precision", "device") if name in options}
    config = FocalNetConfig(
        image_size=(HEIGHT, WIDTH), patch_size=2, in_chans=CHANNELS, num_classes=CLASSES, embed_dim=10, depths=(1, 2),
        mlp_ratio=1.5, focal_levels=(2, 1), focal_windows=(3, 5), **({"drop_path_rate": 0.0} | KINDS[kind] | options),
    )  # fmt: skip
    model = FocalNet(config, seed=seed, init="lecun", dtype=dtype, ops=ops, **built)
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.data[...] += rng.uniform(-0.2, 0.2, parameter.data.shape).astype(dtype)
    return model


def batch(dtype: str = "float32", count: int = BATCH, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, CHANNELS, HEIGHT, WIDTH)).astype(dtype), rng.integers(0, CLASSES, count)


def gradients(model: FocalNet) -> dict[str, np.ndarray]:
    """Copies of the gradients of all parameters, by name."""
    return {name: parameter.grad.copy() for name, parameter in model.named_parameters()}
