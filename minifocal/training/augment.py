"""Random changes of training images that do not change what they show."""

from dataclasses import dataclass

from minifocal.arrays import Array, Generator, get_array_module
from minifocal.errors import InputError, check_integer


def random_shift(images: Array, rng: Generator, max_shift: int, fraction: float = 1.0) -> Array:
    """Move some images by up to max_shift pixels each way; zeros come in at the edge.

    Args:
        images: (B, C, H, W).
        rng: draws, for each image, whether to move it and by how much (also for those that stay).
        max_shift: in pixels. fraction: how many of the images move, in [0, 1].
    Returns:
        a new array, shape and dtype of images.
    """
    xp = get_array_module(images)
    B, _, H, W = images.shape
    offsets = rng.integers(0, 2 * max_shift + 1, (B, 2))
    offsets[rng.random(B) >= fraction] = max_shift  # the middle of the padding: no move
    margin = (max_shift, max_shift)
    padded = xp.pad(images, ((0, 0), (0, 0), margin, margin))
    shifted = xp.empty_like(images)
    for image, (top, left) in enumerate(offsets.tolist()):
        shifted[image] = padded[image, :, top : top + H, left : left + W]
    return shifted


def random_flip(images: Array, rng: Generator, fraction: float = 0.5) -> Array:
    """Mirror some images left to right.

    Args:
        images: (B, C, H, W).
        rng: draws, for each image, whether to mirror it. fraction: how many of them, in [0, 1].
    Returns:
        a new array, shape and dtype of images.
    """
    xp = get_array_module(images)
    flip = xp.asarray(rng.random(images.shape[0]) < fraction)
    return xp.where(flip[:, None, None, None], images[..., ::-1], images)


def random_crop(images: Array, rng: Generator, size: tuple[int, int]) -> Array:
    """Cut a window out of each image, each at its own place.

    Args:
        images: (B, C, H, W).
        rng: draws the places.
        size: height and width of the window in pixels.
    Returns:
        (B, C, height, width), dtype of images.
    Raises:
        InputError: the window is larger than the images.
    """
    xp = get_array_module(images)
    B, C, H, W = images.shape
    height, width = size
    if height > H or width > W:
        raise InputError(f"a crop of {height} x {width} does not fit into images of {H} x {W} pixels")
    tops, lefts = rng.integers(0, H - height + 1, B), rng.integers(0, W - width + 1, B)
    crops = xp.empty((B, C, height, width), dtype=images.dtype)
    for image, (top, left) in enumerate(zip(tops.tolist(), lefts.tolist(), strict=True)):
        crops[image] = images[image, :, top : top + height, left : left + width]
    return crops


@dataclass(frozen=True)
class Augmentation:
    """What is done to each training batch, in this order.

    Attributes:
        crop: height and width of a random window in pixels; None keeps the images whole.
        shift: largest shift in pixels. shift_fraction: how many images are shifted.
        flip: mirror half of the images (not for digits).
    Raises:
        InputError: an empty window, a negative shift, a fraction outside [0, 1].
    """

    crop: tuple[int, int] | None = None
    shift: int = 0
    shift_fraction: float = 0.5
    flip: bool = False

    def __post_init__(self) -> None:
        check_integer("shift", self.shift, at_least=0)
        if self.crop is not None:
            if not isinstance(self.crop, tuple) or len(self.crop) != 2:
                raise InputError(f"crop must be a tuple of height and width, got {self.crop!r}")
            for pixels in self.crop:
                check_integer("crop", pixels, at_least=1)
        if not 0.0 <= self.shift_fraction <= 1.0:
            raise InputError(f"shift_fraction must lie in [0, 1], got {self.shift_fraction}")

    def __call__(self, images: Array, rng: Generator) -> Array:
        """Augment images (B, C, H, W); what is off draws nothing."""
        if self.crop is not None:
            images = random_crop(images, rng, self.crop)
        if self.shift:
            images = random_shift(images, rng, self.shift, self.shift_fraction)
        if self.flip:
            images = random_flip(images, rng)
        return images
