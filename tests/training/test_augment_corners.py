"""Augmentation at its corners: what is drawn, how far things move, what fits just so, and what is taken unsaid."""

import math

import numpy as np
import pytest

from minifocal.errors import InputError
from minifocal.training.augment import Augmentation, random_crop, random_flip, random_shift


def random_images(count, height=5, width=7):
    rng = np.random.default_rng(0)
    return rng.integers(1, 255, (count, 2, height, width)).astype(np.uint8)  # no zeros: those come from the edge


class Drawn:
    """A generator whose numbers between 0 and 1 are given; its integers are the smallest that there may be."""

    def __init__(self, *values):
        self.values = np.array(values)

    def integers(self, low, high, size):
        return np.full(size, low)

    def random(self, count):
        assert count == len(self.values)
        return self.values


def test_every_shift_within_the_limit_happens_and_none_beyond():
    image = np.zeros((1, 1, 9, 11), dtype=np.uint8)
    image[0, 0, 4, 5] = 1
    shifted = random_shift(np.repeat(image, 300, axis=0), np.random.default_rng(1), 2)
    places = {tuple(np.argwhere(one[0])[0].tolist()) for one in shifted}
    assert places == {(4 + down, 5 + right) for down in range(-2, 3) for right in range(-2, 3)}


def test_an_image_moves_where_its_draw_is_below_the_fraction():
    images = random_images(4)
    shifted = random_shift(images, Drawn(0.3, 0.7, 0.5, 0.0), 3, fraction=0.5)
    assert [np.array_equal(a, b) for a, b in zip(images, shifted, strict=True)] == [False, True, True, False]


def test_an_image_is_mirrored_where_its_draw_is_below_the_fraction_which_is_one_half():
    images = random_images(4)
    for options, fraction in (({}, 0.5), ({"fraction": 0.25}, 0.25)):
        draws = (fraction, 0.99, fraction + 0.1, fraction - 0.1)
        flipped = random_flip(images, Drawn(*draws), **options)
        assert np.array_equal(flipped, [*images[:3], images[3, :, :, ::-1]])


def test_a_crop_as_large_as_the_image_is_the_image():
    images = random_images(3)
    assert np.array_equal(random_crop(images, np.random.default_rng(1), (5, 7)), images)
    assert random_crop(images, np.random.default_rng(1), (4, 7)).shape == (3, 2, 4, 7)
    assert random_crop(images, np.random.default_rng(1), (5, 6)).shape == (3, 2, 5, 6)


@pytest.mark.parametrize("size", [(6, 7), (5, 8), (6, 8), (7, 5)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_crop_too_high_or_too_wide_is_refused(size, turned):
    shape = (7, 5) if turned else (5, 7)
    size = size[::-1] if turned else size
    message = rf"a crop of {size[0]} x {size[1]} does not fit into images of {shape[0]} x {shape[1]} pixels"
    with pytest.raises(InputError, match=message):
        random_crop(random_images(3, *shape), np.random.default_rng(1), size)


def test_what_is_not_said_is_as_the_docstring_has_it():
    augment = Augmentation()
    assert (augment.crop, augment.shift, augment.shift_fraction, augment.flip) == (None, 0, 0.5, False)


def test_the_limits_themselves_are_allowed():
    images = random_images(3)
    augment = Augmentation(crop=(1, 1), shift=1, shift_fraction=0.0)
    assert augment(images, np.random.default_rng(1)).shape == (3, 2, 1, 1)
    assert Augmentation(shift_fraction=1.0).shift_fraction == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": 1.0}, r"shift must be an integer of at least 0, got 1\.0"),
        ({"crop": (3, 0)}, "crop must be an integer of at least 1, got 0"),
        ({"crop": (3, 2.0)}, r"crop must be an integer of at least 1, got 2\.0"),
        ({"crop": [3, 2]}, r"crop must be a tuple of height and width, got \[3, 2\]"),
        ({"crop": 3}, "crop must be a tuple of height and width, got 3"),
        ({"crop": (3,)}, r"crop must be a tuple of height and width, got \(3,\)"),
        ({"crop": (3, 2, 4)}, r"crop must be a tuple of height and width, got \(3, 2, 4\)"),
        ({"crop": ()}, r"crop must be a tuple of height and width, got \(\)"),
        ({"shift_fraction": -0.01}, r"shift_fraction must lie in \[0, 1\], got -0\.01"),
        ({"shift_fraction": 1.01}, r"shift_fraction must lie in \[0, 1\], got 1\.01"),
        ({"shift_fraction": math.nan}, r"shift_fraction must lie in \[0, 1\], got nan"),
    ],
)
def test_what_lies_just_beyond_a_limit_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**options)


def test_the_crop_comes_first_then_the_shift_of_a_fraction_then_the_mirror():
    images = random_images(40, 8, 9)
    augment = Augmentation(crop=(5, 7), shift=2, shift_fraction=0.25, flip=True)
    rng = np.random.default_rng(3)
    expected = random_flip(random_shift(random_crop(images, rng, (5, 7)), rng, 2, 0.25), rng, 0.5)
    assert np.array_equal(augment(images, np.random.default_rng(3)), expected)
