"""Coloured shapes over clutter, made on the spot: a task that no single patch can answer.

Every image holds one whole shape, and the label is its kind: circle, square, triangle or cross. Around and behind it
lies clutter: pieces cut from the edges of shapes of the same kinds, sizes and colours, equally many of each kind in
every image, over coloured gratings.

So a small window shows a stretch of straight edge, an arc or a corner, and not whether it belongs to the whole shape
or to a piece; a straight edge belongs to three kinds, and all kinds have the same area. Only how the edges go on, all
the way around, tells. From one patch of 4×4 pixels of 32×32 a small classifier only guesses (25 %); counting such
patches all over the image, to which the whole shape adds its own edges and corners, it stays below a half. Colours,
places, sizes and rotations are drawn independently of the label.
"""

from collections.abc import Callable, Iterator

import numpy as np

from minifocal.arrays import random_generator
from minifocal.data.dataset import Dataset, Splits
from minifocal.errors import InputError, shown

SHAPE_NAMES = ("circle", "square", "triangle", "cross")
PIECES_PER_IMAGE = 8  # a multiple of the kinds: equally many of each
GRATINGS_PER_IMAGE = 3
SMALLEST, LARGEST = 0.2, 0.3  # radius of the circle of the same area, in units of the image side
REACH = 1.56  # how far the farthest corner of any kind, the triangle's, lies from its middle, in radii
PIECE = 0.1  # radius of the disc in which a piece is seen, in units of the image side

# How many uniform numbers describe each part of a scene. An image is a function of these numbers alone.
SCENE_PARTS = {
    "label": 1,
    "shape": 6,  # middle x and y, radius, rotation, hue, paleness
    "pieces": PIECES_PER_IMAGE * 7,  # middle x and y, which point of the edge, then as above from the radius
    "background": 3,
    "gratings": GRATINGS_PER_IMAGE * 6,  # frequency, direction, phase, amplitude of red, green and blue
}
PIXELS_PER_CHUNK = 2**18
MAX_SIZE = 1024  # pixels; 2,500 images of it take 8 GB
TRAIN_IMAGES, TEST_IMAGES = 2000, 500  # of a seed: the first ones to train on, the next ones to test on


def make_shapes(count: int, size: int = 32, seed: int = 0, *, start: int = 0) -> Dataset:
    """Make `count` images of coloured shapes with the kind of the whole shape as label.

    Image i depends on `seed` and i alone, not on `count`; another `size` shows the same scene.

    Args:
        count: number of images, at least 1.
        size: height and width in pixels, at least 16.
        seed: the same seed gives the same images.
        start: i of the first image, at least 0.
    Returns:
        a dataset of images (count, 3, size, size) uint8.
    Raises:
        InputError: no images are asked for, or smaller ones than 16 pixels.
    """
    chunks = _chunks(count, size, start)
    images = np.empty((count, 3, size, size), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    for chunk in chunks:
        scene = _draw_scenes(seed, start + chunk.start, start + chunk.stop)
        labels[chunk] = _labels(scene)
        images[chunk] = np.rint(255.0 * np.clip(_render(scene, labels[chunk], size), 0.0, 1.0))
    return Dataset(images, labels, SHAPE_NAMES)


def shape_masks(count: int, size: int = 32, seed: int = 0, *, start: int = 0) -> np.ndarray:
    """Say where the whole shape lies in the images that `make_shapes` makes of the same arguments.

    Returns:
        (count, size, size) float64: the share of each pixel that the shape covers, 1 inside, in between at its edge.
    Raises:
        InputError: as make_shapes.
    """
    return _masks(count, size, seed, start)[0]


def clutter_masks(count: int, size: int = 32, seed: int = 0, *, start: int = 0) -> np.ndarray:
    """Say where pieces are to be seen in the images that `make_shapes` makes of the same arguments.

    Returns:
        (count, size, size) float64: the share of each pixel that pieces cover and the whole shape does not. With
        `shape_masks` and the share of the background it adds up to 1.
    Raises:
        InputError: as make_shapes.
    """
    return _masks(count, size, seed, start)[1]


def _masks(count: int, size: int, seed: int, start: int) -> np.ndarray:
    """Shares of shape and of pieces, (2, count, size, size)."""
    chunks = _chunks(count, size, start)
    masks = np.empty((2, count, size, size))
    for chunk in chunks:
        scene = _draw_scenes(seed, start + chunk.start, start + chunk.stop)
        shape = _coverage(_shape_distance(scene, _labels(scene), size), size)
        without = np.ones_like(shape)  # the share of each pixel that no piece covers
        for distance, _, _ in _pieces(scene, size):
            without *= 1 - _coverage(distance, size)
        masks[:, chunk] = shape, (1 - shape) * (1 - without)
    return masks


def shapes_splits(size: int = 32, train: int = TRAIN_IMAGES, test: int = TEST_IMAGES, seed: int = 0) -> Splits:
    """Make shapes to train and to test on: the first `train` images of a seed, and the `test` next ones."""
    if train < 1 or test < 1:
        raise InputError(f"train and test must be at least 1 image each, got {train} and {test}")
    dataset = make_shapes(train + test, size, seed)
    indices = np.arange(len(dataset))
    note = f"made by minifocal.data.shapes, no licence; seed {seed}, first {train} images and next {test}"
    return Splits("shapes", dataset.subset(indices[:train]), dataset.subset(indices[train:]), note)


def _chunks(count: int, size: int, start: int) -> list[slice]:
    """Check the arguments of `make_shapes`, and cut its images into parts that memory holds."""
    if count < 1:
        raise InputError(f"count must be at least 1, got {count}")
    if start < 0:
        raise InputError(f"start must be at least 0, got {start}")
    if size < 16:
        raise InputError(f"size must be at least 16 pixels for the shapes to be told apart, got {size}")
    if size > MAX_SIZE:
        raise InputError(f"size must be at most {MAX_SIZE} pixels, got {shown(size)}")
    chunk = max(1, PIXELS_PER_CHUNK // size**2)
    return [slice(first, min(first + chunk, count)) for first in range(0, count, chunk)]


def _labels(scene: dict[str, np.ndarray]) -> np.ndarray:
    return np.floor(len(SHAPE_NAMES) * scene["label"][:, 0]).astype(np.int64)


def _draw_scenes(seed: int, start: int, stop: int) -> dict[str, np.ndarray]:
    """Draw the numbers of images start … stop-1, one generator for each image; every part is (B, numbers)."""
    total = sum(SCENE_PARTS.values())
    draws = np.stack([random_generator(seed, index).random(total) for index in range(start, stop)])
    edges = np.cumsum(list(SCENE_PARTS.values()))[:-1]
    return dict(zip(SCENE_PARTS, np.split(draws, edges, axis=1), strict=True))


def _render(scene: dict[str, np.ndarray], labels: np.ndarray, size: int) -> np.ndarray:
    """Paint background, pieces and the whole shape over each other; colours in [0, 1], about (B, 3, size, size)."""
    image = _background(scene, *_grid(size))
    for distance, hue, paleness in _pieces(scene, size):
        _paint(image, distance, hue, paleness)
    hue, paleness = scene["shape"][:, 4:].T[:, :, None, None]
    _paint(image, _shape_distance(scene, labels, size), hue, paleness)
    return image


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Middles of the pixels in units of the image side: x (1, size) and y (size, 1)."""
    middles = (np.arange(size) + 0.5) / size
    return middles[None, :], middles[:, None]


def _pieces(scene: dict[str, np.ndarray], size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Go through the pieces from below: signed distances (B, size, size), hue and paleness (B, 1, 1)."""
    grid_x, grid_y = _grid(size)
    pieces = scene["pieces"].reshape(len(scene["pieces"]), PIECES_PER_IMAGE, 7)
    for number in range(PIECES_PER_IMAGE):
        x, y, direction, size_draw, rotation, hue, paleness = pieces[:, number].T[:, :, None, None]
        signed_distance = SIGNED_DISTANCES[number % len(SHAPE_NAMES)]
        radius = _radius(size_draw)
        edge_u, edge_v = _edge_point(signed_distance, 2 * np.pi * direction, radius)
        u, v = _local(grid_x, grid_y, x, y, 2 * np.pi * rotation)
        # A shape with this point of its edge at (x, y), as far as a disc around the point shows it.
        yield np.maximum(signed_distance(u + edge_u, v + edge_v, radius), np.hypot(u, v) - PIECE), hue, paleness


def _shape_distance(scene: dict[str, np.ndarray], labels: np.ndarray, size: int) -> np.ndarray:
    """Signed distances from the edge of the whole shape, (B, size, size)."""
    grid_x, grid_y = _grid(size)
    jitter_x, jitter_y, size_draw, rotation = scene["shape"][:, :4].T[:, :, None, None]
    radius = _radius(size_draw)
    room = 1 / 2 - REACH * radius  # the same for all kinds: the place does not tell the kind
    x = 0.5 + room * (2 * jitter_x - 1)
    y = 0.5 + room * (2 * jitter_y - 1)
    u, v = _local(grid_x, grid_y, x, y, 2 * np.pi * rotation)
    distance = np.empty_like(u)
    for kind, signed_distance in enumerate(SIGNED_DISTANCES):
        chosen = labels == kind
        distance[chosen] = signed_distance(u[chosen], v[chosen], radius[chosen])
    return distance


def _radius(draw: np.ndarray) -> np.ndarray:
    return SMALLEST + (LARGEST - SMALLEST) * draw


def _paint(image: np.ndarray, distance: np.ndarray, hue: np.ndarray, paleness: np.ndarray) -> None:
    """Paint what lies inside, where the signed distance (B, size, size) is negative, over the image."""
    image += _coverage(distance, image.shape[-1])[:, None] * (_vivid(hue, paleness) - image)


def _background(scene: dict[str, np.ndarray], grid_x: np.ndarray, grid_y: np.ndarray) -> np.ndarray:
    """Texture of a dark colour and a few coloured gratings, (B, 3, size, size)."""
    batch = len(scene["background"])
    image = np.broadcast_to(
        (0.1 + 0.2 * scene["background"])[:, :, None, None], (batch, 3, grid_y.size, grid_x.size)
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


def _vivid(hue: np.ndarray, paleness: np.ndarray) -> np.ndarray:
    """A bright colour (B, 3, 1, 1), so that shapes stand out from the dark background."""
    thirds = np.arange(3)[:, None, None] / 3
    wheel = 0.5 + 0.5 * np.cos(2 * np.pi * (hue[:, None] - thirds))
    return wheel + 0.6 * paleness[:, None] * (1 - wheel)


SignedDistance = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _edge_point(
    signed_distance: SignedDistance, angle: np.ndarray, radius: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the ray from the middle of a shape at `angle` (radians) meets the edge, in the shape's own axes."""
    cos, sin = np.cos(angle), np.sin(angle)
    along = REACH * radius
    for _ in range(20):  # from outside; a step as long as the distance from the edge never passes it
        along = along - signed_distance(along * cos, along * sin, radius)
    return along * cos, along * sin


# Signed distances from the edge, negative inside, in units of the image side. All four kinds have the area π radius².


def _circle(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - radius


def _square(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - np.sqrt(np.pi / 4) * radius


def _triangle(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.maximum(-v, 0.5 * v + np.sqrt(0.75) * np.abs(u)) - np.sqrt(np.pi / np.sqrt(27)) * radius


def _cross(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    a, b = np.abs(u), np.abs(v)
    half = np.sqrt(np.pi / 20) * radius  # of five squares
    return np.maximum(np.minimum(a, b) - half, np.maximum(a, b) - 3 * half)


SIGNED_DISTANCES: tuple[SignedDistance, ...] = (_circle, _square, _triangle, _cross)
