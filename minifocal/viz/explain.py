"""What a network does with one image, in numbers: the maps of its blocks, and where a class comes from.

Maps of gates and modulators say what the network looks at, whatever it answers. Two more maps are of one class c,
and come out of one way back from its logit:

    Grad-CAM of a stage   cam[h, w] = ReLU(sum_k weight_k A[h, w, k]),  weight_k = mean_hw d logit_c / d A[h, w, k]
    input gradient        the largest |d logit_c / d image| of a pixel's channels

A is the stage's last map, before it is halved. Sources: Selvaraju et al. 2017 (arXiv:1610.02391); Simonyan et al. 2013
(arXiv:1312.6034).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minifocal.arrays import Array, as_numpy, get_array_module, overflow_is_looked_for
from minifocal.errors import InputError, check_integer
from minifocal.functional.cross_entropy import log_softmax
from minifocal.models.focalnet import FocalNet, FocalNetCache
from minifocal.viz.maps import BlockMaps, TokenGrid, block_maps, token_grid


class WayBack(NamedTuple):
    """Gradients on the way back through a network.

    Attributes:
        features: of each stage's last map, (B, H_s, W_s, C_s), before downsampling.
        images: (B, Cin, H, W).
    """

    features: list[Array]
    images: Array


@dataclass(frozen=True)
class StageCam:
    """Grad-CAM of one stage.

    Attributes:
        stage: its index. grid: where its tokens lie in the image.
        values: (H_s, W_s), at least 0, on the host.
    """

    stage: int
    grid: TokenGrid
    values: np.ndarray


@dataclass(frozen=True)
class ClassMaps:
    """Where one class comes from.

    Attributes:
        label: its index.
        cams: of every stage, the first one first.
        input_gradient: (H, W), at least 0: logits per unit of the network's input, of the channel with the largest.
    """

    label: int
    cams: list[StageCam]
    input_gradient: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """What a network does with one image.

    Attributes:
        blocks: the maps of every block.
        probabilities: of every class, (N,), float64; None without a classifier.
        of_class: where one class comes from; None without a classifier.
    """

    blocks: list[BlockMaps]
    probabilities: np.ndarray | None
    of_class: ClassMaps | None

    def likeliest(self, count: int) -> list[int]:
        """Give the indices of the likeliest classes, the likeliest first; of equals the first."""
        assert self.probabilities is not None
        return [int(label) for label in np.argsort(-self.probabilities, kind="stable")[:count]]


def explain(model: FocalNet, images: Array, label: int | None = None) -> Explanation:
    """Send one image through a network, and the logit of one class back.

    The network's own gradients stay as they are.

    Args:
        model: with or without a classifier.
        images: (1, Cin, H, W), as the model takes them.
        label: the class to explain; the likeliest where not given.
    Raises:
        InputError: not exactly one image, a class that there is not, or numbers that are not finite.
    """
    if images.ndim != 4 or len(images) != 1:
        raise InputError(f"one image is explained at a time, (1, channels, height, width), got {images.shape}")
    classes = model.config.num_classes
    if label is not None:
        if not classes:
            raise InputError("without a classifier there is no class to explain: leave the class out")
        check_integer("class", label, at_least=0, at_most=classes - 1)
    with overflow_is_looked_for():
        logits, cache = model.forward(images)
        blocks = block_maps(model, cache)
        _check_finite(as_numpy(logits), *(shown.values for block in blocks for shown in block.maps))
        if not classes:
            return Explanation(blocks, None, None)
        probabilities = np.exp(as_numpy(log_softmax(logits))[0].astype(np.float64))
        chosen = int(probabilities.argmax()) if label is None else int(label)
        dlogits = get_array_module(logits).zeros_like(logits)
        dlogits[0, chosen] = 1
        of_class = class_maps(model, cache, chosen, way_back(model, dlogits, cache))
        _check_finite(of_class.input_gradient, *(cam.values for cam in of_class.cams))
    return Explanation(blocks, probabilities, of_class)


def way_back(model: FocalNet, dlogits: Array, cache: FocalNetCache) -> WayBack:
    """Do what `FocalNet.backward` does, and keep what it passes: the gradient of each stage's last map.

    Parameters gain no gradient here: the way goes through a replica.

    Args:
        model: that made the pass, with a classifier. dlogits: (B, N). cache: of its forward pass.
    """
    twin: Any = model.replica()
    dx = twin.head.backward(dlogits, cache.head)
    dx = twin.ops.mean_pool.backward(dx, cache.pool)
    dx = twin.norm.backward(dx, cache.norm)
    features: list[Array] = []
    for stage, stage_cache in zip(reversed(twin.layers), reversed(cache.layers), strict=True):
        if stage.downsample is not None:
            dx = stage.downsample.backward(dx, stage_cache.downsample)
        features.insert(0, dx)
        for block, block_cache in zip(reversed(stage.blocks), reversed(stage_cache.blocks), strict=True):
            dx = block.backward(dx, block_cache)
    dx = twin.dropout.backward(dx, cache.dropout)
    dx = twin.patch_embed.backward(dx, cache.patch_embed)
    return WayBack(features, dx.transpose(0, 3, 1, 2))


def class_maps(model: FocalNet, cache: FocalNetCache, label: int, gradients: WayBack, image: int = 0) -> ClassMaps:
    """Make the maps of one class out of the way back from its logit.

    Args:
        model: that made the pass. cache: of its forward pass. gradients: of the logit of class `label`.
        image: which one of the batch.
    """
    cams = []
    for stage, (features, dfeatures) in enumerate(zip(cache.stage_maps, gradients.features, strict=True)):
        values = grad_cam(as_numpy(features[image]), as_numpy(dfeatures[image]))
        cams.append(StageCam(stage, token_grid(model, stage), values))
    input_gradient = np.abs(as_numpy(gradients.images[image])).max(axis=0)
    return ClassMaps(label, cams, input_gradient)


def grad_cam(features: np.ndarray, dfeatures: np.ndarray) -> np.ndarray:
    """Weigh each channel of a map by its mean gradient, add up, and keep what speaks for the class.

    cam[h, w] = ReLU(sum_k weight_k features[h, w, k]),  weight_k = 1/(H*W) sum_hw dfeatures[h, w, k]

    Args:
        features: (H, W, C). dfeatures: the gradient of one logit with respect to them.
    Returns:
        (H, W), at least 0.
    """
    weights = dfeatures.mean(axis=(0, 1))
    return np.maximum(features @ weights, 0)


def _check_finite(*arrays: np.ndarray) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise InputError("the network's numbers for this image are not finite: its weights or the image are too large")
