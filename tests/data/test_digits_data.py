import numpy as np
import pytest

from minifocal.data.dataset import Dataset, stratified_split
from minifocal.data.digits import (
    DIGITS_FILE,
    SPLIT_SEED,
    TEST_SIZE,
    digits_splits,
    load_digits,
    nearest_neighbour_accuracy,
)
from minifocal.errors import InputError


def test_the_digits_are_all_there():
    digits = load_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.dtype == np.uint8
    assert (digits.images.min(), digits.images.max(), digits.max_value) == (0, 16, 16.0)
    assert digits.class_names == tuple("0123456789")
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.images.sum(dtype=np.int64) == 561718
    assert DIGITS_FILE.stat().st_size < 60_000


def test_the_baseline_is_the_documented_one():
    splits = digits_splits()
    assert (len(splits.train), len(splits.test)) == (1437, 360)
    assert nearest_neighbour_accuracy(splits.train, splits.test) == 356 / 360
    assert "CC BY 4.0" in splits.note


def test_the_seed_is_the_smallest_with_that_baseline():
    for seed in range(SPLIT_SEED):
        assert nearest_neighbour_accuracy(*stratified_split(load_digits(), TEST_SIZE, seed)) != 356 / 360


def test_nearest_neighbour_agrees_with_all_distances_at_once():
    rng = np.random.default_rng(0)
    train, test = (
        Dataset(rng.random((count, 2, 3, 1)), rng.integers(0, 3, count), tuple("abc"), 1.0) for count in (1100, 700)
    )
    differences = test.images.reshape(700, 1, 6) - train.images.reshape(1, 1100, 6)
    guesses = train.labels[np.square(differences).sum(axis=2).argmin(axis=1)]
    assert nearest_neighbour_accuracy(train, test) == np.mean(guesses == test.labels)


def test_of_equally_near_images_the_first_decides():
    train = Dataset(np.full((1200, 1, 1, 1), 7, np.uint8), np.array([1] + [0] * 1199), ("a", "b"))
    test = Dataset(np.full((2, 1, 1, 1), 9, np.uint8), np.array([1, 0]), ("a", "b"))
    assert nearest_neighbour_accuracy(train, test) == 0.5


def test_images_of_another_shape_are_refused():
    other = Dataset(np.zeros((1, 1, 8, 7), np.uint8), np.array([0]), ("a",))
    with pytest.raises(InputError, match=r"same shape, got \(1, 8, 8\) and \(1, 8, 7\)"):
        nearest_neighbour_accuracy(load_digits(), other)
