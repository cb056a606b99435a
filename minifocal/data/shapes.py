"""Coloured shapes over clutter, made on the spot: a task that no single patch can answer.

Every image holds four shapes: two of one kind and one each of two other kinds, of circle, square, triangle and
cross. The label is the kind that occurs twice. Whoever sees one shape alone is right at most one time in two; only
the whole image tells. Colours, places, sizes and rotations are drawn independently of the label.
"""

from collections.abc import Callable

import numpy as np

from minifocal.arrays import random_generator
from minifocal.data.dataset import Dataset, Splits
from minifocal.errors import InputError

SHAPE_NAMES = ("circle", "square", "triangle", "cross")
SHAPES_PER_IMAGE = 4
STROKES_PER_IMAGE = 6
GRATINGS_PER_IMAGE = 3
REACH = 1.12  # how far the farthest corner of any kind lies from its middle, in radii

# How many uniform numbers describe each part of a scene. An image is a function of these numbers alone.
SCENE_PARTS = {
    "label": 1,
    "absent": 1,  # which of the other three kinds does not occur
    "cells": SHAPES_PER_IMAGE,  # their order says which shape stands in which cell of a 2×2 grid
    "shapes": SHAPES_PER_IMAGE * 6,  # jitter x and y, radius, rotation, hue, lightness
    "background": 3,
    "gratings": GRATINGS_PER_IMAGE * 6,  # frequency, direction, phase, amplitude of red, green and blue
    "strokes": STROKES_PER_IMAGE * 7,  # middle x and y, direction, length, width, hue, lightness
}
PIXELS_PER_CHUNK = 2**18


def make_shapes(count: int, size: int = 32, seed: int = 0) -> Dataset:
    """Make `count` images of coloured shapes with the kind that occurs twice as label.

    Image i depends on `seed` and i alone, not on `count`; another `size` shows the same scene.

    Args:
        count: number of images, at least 1.
        size: height and width in pixels, at least 16.
        seed: the same seed gives the same images.
    Returns:
        a dataset of images (count, 3, size, size) uint8.
    Raises:
        InputError: no images are asked for, or smaller ones than 16 pixels.
    """
    if count < 1:
        raise InputError(f"count must be at least 1, got {count}")
    if size < 16:
        raise InputError(f"size must be at least 16 pixels for the shapes to be told apart, got {size}")
    images = np.empty((count, 3, size, size), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    chunk = max(1, PIXELS_PER_CHUNK // size**2)
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        scene = _draw_scenes(seed, start, stop)
        kinds = _shape_kinds(scene)
        labels[start:stop] = kinds[:, 0]
        images[start:stop] = np.rint(255.0 * np.clip(_render(scene, kinds, size), 0.0, 1.0))
    return Dataset(images, labels, SHAPE_NAMES)


def shapes_splits(size: int = 32, train: int = 2000, test: int = 500, seed: int = 0) -> Splits:
    """Make shapes to train and to test on: the first `train` images of a seed, and the `test` next ones."""
    if train < 1 or test < 1:
        raise InputError(f"train and test must be at least 1 image each, got {train} and {test}")
    dataset = make_shapes(train + test, size, seed)
    indices = np.arange(len(dataset))
    note = f"made by minifocal.data.shapes, no licence; seed {seed}, first {train} images and next {test}"
    return Splits("shapes", dataset.subset(indices[:train]), dataset.subset(indices[train:]), note)


def _draw_scenes(seed: int, start: int, stop: int) -> dict[str, np.ndarray]:
    """Draw the numbers of images start … stop-1, one generator for each image; every part is (B, numbers)."""
    total = sum(SCENE_PARTS.values())
    draws = np.stack([random_generator(seed, index).random(total) for index in range(start, stop)])
    edges = np.cumsum(list(SCENE_PARTS.values()))[:-1]
    return dict(zip(SCENE_PARTS, np.split(draws, edges, axis=1), strict=True))


def _shape_kinds(scene: dict[str, np.ndarray]) -> np.ndarray:
    """Kinds of the shapes (B, 4): the label's twice, at 0 and 1, then two of the other three."""
    label = np.floor(len(SHAPE_NAMES) * scene["label"]).astype(np.int64)
    absent = np.floor((len(SHAPE_NAMES) - 1) * scene["absent"]).astype(np.int64)
    # The other kinds are 1, 2 and 3 steps beyond the label; those from the absent one on move up by one.
    steps = np.arange(1, len(SHAPE_NAMES) - 1)
    others = label + steps + (steps > absent)
    return np.concatenate([label, label, others], axis=1) % len(SHAPE_NAMES)


def _render(scene: dict[str, np.ndarray], kinds: np.ndarray, size: int) -> np.ndarray:
    """Paint background, strokes and shapes over each other; colours in [0, 1], about (B, 3, size, size)."""
    batch = len(kinds)
    middles = (np.arange(size) + 0.5) / size
    grid_y, grid_x = middles[:, None], middles[None, :]
    image = _background(scene, grid_x, grid_y)

    for stroke in np.moveaxis(scene["strokes"].reshape(batch, STROKES_PER_IMAGE, 7), 1, 0):
        x, y, direction, length, width, hue, lightness = stroke.T[:, :, None, None]
        along, across = _local(grid_x, grid_y, x, y, np.pi * direction)
        beyond = np.maximum(np.abs(along) - (0.05 + 0.15 * length), 0.0)
        distance = np.hypot(beyond, across) - (0.006 + 0.010 * width)
        image += _coverage(distance, size)[:, None] * (_vivid(hue, lightness) - image)

    cells = scene["cells"].argsort(axis=1)
    shapes = scene["shapes"].reshape(batch, SHAPES_PER_IMAGE, 6)
    for slot in range(SHAPES_PER_IMAGE):
        jitter_x, jitter_y, size_draw, rotation, hue, lightness = shapes[:, slot].T[:, :, None, None]
        cell = cells[:, slot, None, None]
        radius = 0.15 + 0.06 * size_draw
        # A shape goes as far from the middle as its cell has room: none overlap, so the order of painting,
        # which follows the label, cannot be seen.
        room = 1 / 4 - REACH * radius
        x = (cell % 2 + 0.5) / 2 + room * (2 * jitter_x - 1)
        y = (cell // 2 + 0.5) / 2 + room * (2 * jitter_y - 1)
        u, v = _local(grid_x, grid_y, x, y, 2 * np.pi * rotation)
        distance = np.empty_like(u)
        for kind, signed_distance in enumerate(SIGNED_DISTANCES):
            chosen = kinds[:, slot] == kind
            distance[chosen] = signed_distance(u[chosen], v[chosen], radius[chosen])
        image += _coverage(distance, size)[:, None] * (_vivid(hue, lightness) - image)
    return image


def _background(scene: dict[str, np.ndarray], grid_x: np.ndarray, grid_y: np.ndarray) -> np.ndarray:
    """Texture of a muted colour and a few coloured gratings, (B, 3, size, size)."""
    batch = len(scene["background"])
    image = np.broadcast_to(
        (0.35 + 0.3 * scene["background"])[:, :, None, None], (batch, 3, grid_y.size, grid_x.size)
    ).copy()
    for grating in np.moveaxis(scene["gratings"].reshape(batch, GRATINGS_PER_IMAGE, 6), 1, 0):
        frequency, direction, phase = grating.T[:3, :, None, None]
        along = np.cos(np.pi * direction) * grid_x + np.sin(np.pi * direction) * grid_y
        wave = np.sin(2 * np.pi * ((1.0 + 5.0 * frequency) * along + phase))
        image += (0.12 * (grating[:, 3:] - 0.5))[:, :, None, None] * wave[:, None]
    return image


def _local(
    grid_x: np.ndarray, grid_y: np.ndarray, x: np.ndarray, y: np.ndarray, angle: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel middles seen from (x, y) in axes turned by `angle` (radians), two arrays (B, size, size)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * (grid_x - x) + sin * (grid_y - y), cos * (grid_y - y) - sin * (grid_x - x)


def _coverage(distance: np.ndarray, size: int) -> np.ndarray:
    """How much of each pixel lies inside, 0 to 1: a ramp of one pixel across the edge smooths it."""
    return np.clip(0.5 - size * distance, 0.0, 1.0)


def _vivid(hue: np.ndarray, lightness: np.ndarray) -> np.ndarray:
    """A saturated colour (B, 3, 1, 1), so that shapes stand out from the muted background."""
    thirds = np.arange(3)[:, None, None] / 3
    wheel = 0.5 + 0.5 * np.cos(2 * np.pi * (hue[:, None] - thirds))
    shade = 2.0 * lightness[:, None] - 1.0
    return np.where(shade > 0, wheel + 0.6 * shade * (1 - wheel), wheel * (1 + 0.6 * shade))


# Signed distances from the edge, negative inside, in units of the image side. The factors bring the four
# kinds to similar areas within the same reach.


def _circle(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 0.85 * radius


def _square(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.75 * radius


def _triangle(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.maximum(-v, 0.5 * v + np.sqrt(0.75) * np.abs(u)) - 0.56 * radius


def _cross(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(a, b) - 0.34 * radius, np.maximum(a, b) - 1.05 * radius)


SIGNED_DISTANCES: tuple[Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], ...] = (
    _circle,
    _square,
    _triangle,
    _cross,
)
