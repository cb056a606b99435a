"""Whom a token depends on, level by level: on paper by the kernels, and measured by the way back."""

from collections.abc import Sequence

import numpy as np

from minifocal.arrays import Array, as_numpy, like, random_generator
from minifocal.errors import InputError
from minifocal.models.config import FOCAL
from minifocal.models.focalnet import FocalNet, FocalNetCache
from minifocal.models.modulation import FocalModulation
from minifocal.ops import REFERENCE

WHOLE_MAP, MODULATION = "whole map", "modulation"
SIGNS_SEED = 0


def receptive_widths(kernels: Sequence[int]) -> list[int]:
    """Give the side of the square of tokens that each level of a chain can see: 1 + sum over its levels of (k - 1).

    Args:
        kernels: k of each level, in their order.
    """
    return [1 + sum(k - 1 for k in kernels[:level]) for level in range(1, len(kernels) + 1)]


def level_names(kernels: Sequence[int]) -> list[str]:
    """Name what `effective_fields` measures, in its order."""
    return [*(f"level {level}, {k} × {k}" for level, k in enumerate(kernels, start=1)), WHOLE_MAP, MODULATION]


def effective_fields(model: FocalNet, images: Array, token: tuple[int, int]) -> list[np.ndarray]:
    """Measure how much each patch of the image moves what the first block gathers for one token.

    A random upstream gradient of ±1 for every channel goes to one level's context of that token alone, and back by
    hand through the levels below it, f, the norm and the patches. Its absolute values are averaged over the images:
    signs differ from one to the next and would cancel.

    Args:
        model: with focal modulation. images: (B, Cin, H, W), as the model takes them.
        token: row and column in the grid of the first stage.
    Returns:
        for each of `level_names`, (H, W) over tokens: the share of each token's patch in the whole, on the host. The
        last is of the modulation's output, through query, context and gates. A level's is exactly 0 outside its
        `receptive_widths`.
    Raises:
        InputError: another modulation.
    """
    if model.config.modulation != FOCAL:
        raise InputError(f"levels are measured one by one in focal modulation, got {model.config.modulation!r}")
    twin = model.replica()  # its gradients are its own: those of the model stay as they are
    twin.use_ops(REFERENCE)
    assert isinstance(twin, FocalNet)
    _, cache = twin.forward(images)
    seen, modulation = cache.layers[0].blocks[0].modulation, twin.layers[0].blocks[0].modulation
    assert isinstance(modulation, FocalModulation)
    signs = random_generator(SIGNS_SEED).choice([-1.0, 1.0], (len(images), seen.q.shape[-1]))
    upstream = seen.q * 0.0
    upstream[:, token[0], token[1]] = like(signs, seen.q)

    levels = modulation.context.full_cache(seen.context)
    starts = [(upstream, levels.levels[:level]) for level in range(1, len(levels.levels) + 1)]
    ungated = levels.global_level._replace(gate=seen.gates[..., -1:] * 0.0 + 1.0)  # type: ignore[union-attr]
    starts.append((REFERENCE.global_level.backward(upstream, ungated)[0], levels.levels))
    found = []
    for dctx, below in starts:
        for level in reversed(below):
            dctx, _, _ = REFERENCE.focal_level.backward(dctx, upstream * 0.0, level)
        parts = (upstream * 0.0, dctx, seen.gates * 0.0)
        dx = modulation.f.backward(REFERENCE.split.backward(parts, seen.split), seen.f)
        found.append(_share_of_patches(twin, cache, dx))
    found.append(_share_of_patches(twin, cache, modulation.backward(upstream, seen)))
    return found


def _share_of_patches(model: FocalNet, cache: FocalNetCache, dx: Array) -> np.ndarray:
    """Go back from the input of the modulation to the pixels; sum their magnitudes patch by patch."""
    block = model.layers[0].blocks[0]
    if not block.use_postln:
        dx = block.norm1.backward(dx, cache.layers[0].blocks[0].modulation_branch.norm)
    dimages = as_numpy(model.patch_embed.backward(dx, cache.patch_embed))  # (B, H, W, Cin)
    size = model.patch_embed.stride
    pixels = np.abs(dimages).sum(axis=-1, dtype=np.float64).mean(axis=0)
    H, W = (n // size for n in pixels.shape)
    patches = pixels[: H * size, : W * size].reshape(H, size, W, size).sum(axis=(1, 3))
    return patches / patches.sum()
