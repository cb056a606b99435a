"""Random changes of images: what moves, what stays, and that the rng alone decides."""

import numpy as np
import pytest

from minifocal.errors import InputError
from minifocal.training.augment import Augmentation, random_crop, random_flip, random_shift

SHAPE = (40, 2, 5, 7)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(1, 255, SHAPE).astype(np.uint8)  # no zeros: those come from the edge


def moved(image, down, right):
    """The image moved, with zeros coming in, one pixel at a time."""
    out = np.zeros_like(image)
    _, H, W = image.shape
    for h in range(H):
        for w in range(W):
            if 0 <= h - down < H and 0 <= w - right < W:
                out[:, h, w] = image[:, h - down, w - right]
    return out


def test_every_image_is_moved_within_the_limit_and_zeros_come_in(images):
    shifted = random_shift(images, np.random.default_rng(1), 2)
    offsets = set()
    for before, after in zip(images, shifted, strict=True):
        found = [(d, r) for d in range(-2, 3) for r in range(-2, 3) if np.array_equal(after, moved(before, d, r))]
        assert len(found) == 1
        offsets.update(found)
    assert len(offsets) > 12  # of 25, over 40 images


def test_a_fraction_of_the_images_is_moved(images):
    shifted = random_shift(images, np.random.default_rng(1), 2, fraction=0.5)
    still = sum(np.array_equal(a, b) for a, b in zip(images, shifted, strict=True))
    assert 12 <= still <= 30
    assert np.array_equal(random_shift(images, np.random.default_rng(1), 2, fraction=0.0), images)


def test_half_of_the_images_are_mirrored_left_to_right(images):
    flipped = random_flip(images, np.random.default_rng(1))
    same = [np.array_equal(a, b) for a, b in zip(images, flipped, strict=True)]
    mirrored = [np.array_equal(a[..., ::-1], b) for a, b in zip(images, flipped, strict=True)]
    assert all(s != m for s, m in zip(same, mirrored, strict=True))
    assert 10 <= sum(mirrored) <= 30


def test_a_crop_is_a_window_of_its_image_and_reaches_every_corner(images):
    crops = random_crop(images, np.random.default_rng(1), (4, 5))
    assert crops.shape == (40, 2, 4, 5)
    places = set()
    for image, crop in zip(images, crops, strict=True):
        places.update(
            (top, left)
            for top in range(2)
            for left in range(3)
            if np.array_equal(image[:, top : top + 4, left : left + 5], crop)
        )
    assert len(places) == 6


def test_a_crop_larger_than_the_image_is_refused(images):
    with pytest.raises(InputError, match=r"crop of 6 x 5 does not fit into images of 5 x 7"):
        random_crop(images, np.random.default_rng(1), (6, 5))


def test_augmentation_is_decided_by_the_rng_and_leaves_its_input_alone(images):
    augment = Augmentation(crop=(4, 6), shift=1, flip=True)
    kept = images.copy()
    one, two = (augment(images, np.random.default_rng(3)) for _ in range(2))
    other = augment(images, np.random.default_rng(4))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert np.array_equal(images, kept)
    assert one.dtype == images.dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": -1}, "shift must be an integer of at least 0"),
        ({"crop": (0, 3)}, "crop must be an integer of at least 1"),
        ({"shift_fraction": 1.5}, "shift_fraction must lie in"),
    ],
)
def test_what_cannot_be_done_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**options)


def test_nothing_asked_for_draws_nothing(images):
    rng = np.random.default_rng(3)
    before = rng.bit_generator.state
    assert Augmentation()(images, rng) is images
    assert rng.bit_generator.state == before
