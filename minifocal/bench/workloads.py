"""What is measured: networks with a batch, and what is done with them."""

from dataclasses import dataclass, replace

import numpy as np

from minifocal.arrays import Array, random_generator
from minifocal.models.config import SIGMOID_GATE, FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.models.zoo import model_config

LEARNING_RATE = 0.01
"""Of every training step here: small, so that hundreds of steps on one batch stay finite."""


@dataclass(frozen=True)
class Mode:
    """What is done with a network.

    Attributes:
        name: on the command line. title: in tables.
        training: a whole step, forward, back and update; else inference.
        images: in the batch; None takes the workload's.
    """

    name: str
    title: str
    training: bool
    images: int | None = None


MODES = {
    mode.name: mode
    for mode in (
        Mode("train", "training step", training=True),
        Mode("infer8", "inference 8", training=False, images=8),
        Mode("infer1", "inference 1", training=False, images=1),
    )
}
GPU_MODES = {
    mode.name: mode
    for mode in (MODES["train"], Mode("infer", "inference", training=False), MODES["infer8"], MODES["infer1"])
}
GPU_DEFAULT_MODES = ("train", "infer")
GPU_BATCH, GPU_BATCHES = 128, {"small": 256}


@dataclass(frozen=True)
class Workload:
    """A network and its batch.

    Attributes:
        name: on the command line.
        config: nothing in it is random, so that everyone computes the same.
        batch: images in a training step.
        init: as in FocalNet.
    """

    name: str
    config: FocalNetConfig
    batch: int
    init: str = "official"

    def model(self, ops: str, device: str = "cpu", precision: str = "float32") -> FocalNet:
        """Build the network with a table of operations; its weights are always the same."""
        return FocalNet(self.config, init=self.init, ops=ops, device=device, precision=precision)

    def for_gpu(self) -> "Workload":
        """Give the same network with a batch that keeps a GPU busy."""
        return replace(self, batch=GPU_BATCHES.get(self.name, GPU_BATCH))

    def draw(self, mode: Mode) -> tuple[Array, Array]:
        """Draw images (B, Cin, H, W) and labels (B,), always the same."""
        count = mode.images or self.batch
        rng = random_generator(0)
        images = rng.standard_normal((count, self.config.in_chans, *self.config.image_hw), dtype=np.float32)
        return images, rng.integers(0, self.config.num_classes, count)


FLAGS = (
    "use_conv_embed",
    "use_layerscale",
    "use_postln",
    "use_postln_in_modulation",
    "normalize_modulator",
)
_SMALL = FocalNetConfig(
    image_size=32,
    patch_size=2,
    num_classes=10,
    embed_dim=48,
    depths=(2, 2, 2),
    drop_path_rate=0.0,
    focal_levels=(2, 2, 2),
    focal_windows=(3, 3, 3),
)
_EDIFICE = FocalNetConfig(  # of FocalNet.build with its defaults
    patch_size=16,
    num_classes=10,
    embed_dim=256,
    depths=(4,),
    drop_path_rate=0.0,
    patch_norm=False,
    focal_levels=(3,),
    focal_windows=(3,),
    modulation=SIGMOID_GATE,
)
_ALL_FLAGS = model_config("focalnet_tiny_srf", drop_path_rate=0.0, **dict.fromkeys(FLAGS, True))

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("small", _SMALL, batch=64, init="lecun"),
        Workload("tiny_srf", model_config("focalnet_tiny_srf", drop_path_rate=0.0), batch=8),
        Workload("tiny_lrf", model_config("focalnet_tiny_lrf", drop_path_rate=0.0), batch=8),
        Workload("all_flags", _ALL_FLAGS, batch=8),
        Workload("edifice", _EDIFICE, batch=8, init="glorot"),
    )
}
