import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifocal.data.dataset import Dataset, Splits, Standardize, batch_indices, stratified_split
from minifocal.errors import InputError


def make(count=7, channels=3, height=5, width=4, classes=2, dtype="uint8", seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, channels, height, width)).astype(dtype)
    return Dataset(images, np.arange(count) % classes, tuple(map(str, range(classes))))


def test_a_dataset_knows_its_sizes():
    dataset = make()
    assert (len(dataset), dataset.num_classes, dataset.in_channels, dataset.image_size) == (7, 2, 3, (5, 4))


def test_labels_of_another_integer_type_become_int64():
    labels = np.array([0, 1, 1], dtype=np.uint8)
    assert Dataset(np.zeros((3, 1, 2, 2), np.uint8), labels, ("a", "b")).labels.dtype == np.int64


def test_a_subset_keeps_order_labels_and_scale():
    dataset = Dataset(make().images, np.arange(7), tuple("abcdefg"), max_value=16.0)
    subset = dataset.subset(np.array([5, 2]))
    np.testing.assert_array_equal(subset.images, dataset.images[[5, 2]])
    assert subset.labels.tolist() == [5, 2]
    assert (subset.class_names, subset.max_value) == (dataset.class_names, 16.0)


IMAGES = np.zeros((3, 1, 4, 2), dtype=np.uint8)
LABELS = np.array([0, 1, 0])


@pytest.mark.parametrize(
    ("images", "labels", "max_value", "message"),
    [
        (IMAGES[:, 0], LABELS, 255.0, r"\(count, channels, height, width\), got shape \(3, 4, 2\)"),
        (IMAGES[:0], LABELS[:0], 255.0, "empty dataset"),
        (IMAGES.astype(np.int32), LABELS, 255.0, "images must be uint8, float32, float64, got int32"),
        (IMAGES, LABELS[:2], 255.0, r"labels must be one for each image, shape \(3,\), got shape \(2,\)"),
        (IMAGES, LABELS[:, None], 255.0, r"got shape \(3, 1\)"),
        (IMAGES, LABELS.astype(float), 255.0, "labels must be integers, got float64"),
        (IMAGES, np.array([0, 2, 1]), 255.0, "labels must be 0 to 1 for 2 classes, got 2 for image 1"),
        (IMAGES, np.array([0, 1, -1]), 255.0, "got -1 for image 2"),
        (IMAGES, LABELS, 0.0, "max_value must be a positive number, got 0.0"),
        (IMAGES, LABELS, float("nan"), "max_value must be a positive number, got nan"),
    ],
)
def test_a_dataset_refuses_what_does_not_fit(images, labels, max_value, message):
    with pytest.raises(InputError, match=message):
        Dataset(images, labels, ("a", "b"), max_value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_float_image_that_is_not_finite_is_named(value):
    images = np.zeros((2000, 1, 1, 2), dtype=np.float32)
    images[1500, 0, 0, 1] = value
    with pytest.raises(InputError, match="image 1500 holds NaN or infinity"):
        Dataset(images, np.zeros(2000, np.int64), ("a",))


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (make(height=6), "same image shape"),
        (make(classes=3), "same class names"),
        (Dataset(make().images, make().labels, ("0", "1"), max_value=16.0), "same max_value, got 255.0 and 16.0"),
    ],
)
def test_splits_that_differ_are_refused(test, message):
    with pytest.raises(InputError, match=message):
        Splits("name", make(), test, "note")


def numbered(labels, classes):
    """A dataset whose pixels are the index of the image, to see where each one goes."""
    pixels = np.arange(len(labels), dtype=np.float64)[:, None, None, None]
    return Dataset(pixels, np.array(labels), tuple(map(str, range(classes))))


@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=60), seed=st.integers(0, 99), data=st.data())
def test_a_stratified_split_is_exact_disjoint_ordered_and_fair(labels, seed, data):
    test_size = data.draw(st.integers(1, len(labels) - 1))
    rest, test = stratified_split(numbered(labels, 5), test_size, seed)
    rest_ids, test_ids = (part.images[:, 0, 0, 0].astype(int) for part in (rest, test))
    assert len(test) == test_size
    assert sorted([*rest_ids, *test_ids]) == list(range(len(labels)))
    assert (np.diff(rest_ids) > 0).all()
    assert (np.diff(test_ids) > 0).all()
    assert [labels[i] for i in test_ids] == test.labels.tolist()
    share = np.bincount(labels, minlength=5) * test_size / len(labels)
    assert (np.abs(np.bincount(test.labels, minlength=5) - share) < 1).all()


def test_a_stratified_split_rounds_by_the_largest_remainder():
    labels = [0] * 5 + [1] * 3 + [2] * 2  # shares of 4 are 2.0, 1.2 and 0.8
    _, test = stratified_split(numbered(labels, 3), 4, seed=1)
    assert np.bincount(test.labels).tolist() == [2, 1, 1]


def test_a_stratified_split_depends_on_the_seed_alone():
    dataset = numbered([0, 1] * 30, 2)
    first, again, other = (stratified_split(dataset, 20, seed)[1].images for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("test_size", [0, 7, 8])
def test_a_split_with_an_empty_half_is_refused(test_size):
    with pytest.raises(InputError, match=f"test_size must be 1 to 6 for 7 images, got {test_size}"):
        stratified_split(make(), test_size, seed=0)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_standardized_training_images_have_mean_0_and_std_1(dtype):
    dataset = make(count=1500, dtype=dtype)
    standardize = Standardize.fit(dataset)
    result = standardize(dataset.images, dataset.max_value, np.float64)
    np.testing.assert_allclose(result.mean(axis=(0, 2, 3)), 0.0, atol=1e-12)
    np.testing.assert_allclose(result.std(axis=(0, 2, 3)), 1.0, rtol=1e-12)


def test_standardize_measures_in_units_of_max_value():
    images = np.array([[0, 8], [16, 16]], dtype=np.uint8).reshape(2, 1, 1, 2)
    standardize = Standardize.fit(Dataset(images, np.array([0, 0]), ("a",), max_value=16.0))
    assert standardize.mean == pytest.approx((0.625,), rel=1e-15)
    assert standardize.std == pytest.approx((np.sqrt(11 / 64),), rel=1e-15)
    result = standardize(images, 16.0, np.float32)
    assert (result.dtype, result.shape) == (np.float32, (2, 1, 1, 2))
    np.testing.assert_allclose(result.ravel(), (np.array([0, 0.5, 1, 1]) - 0.625) / np.sqrt(11 / 64), rtol=1e-6)


def test_a_constant_channel_gets_std_1_even_where_its_mean_is_rounded():
    images = np.full((1000, 2, 3, 1), 0.1)
    images[:500, 1] = 0.7
    standardize = Standardize.fit(Dataset(images, np.zeros(1000, np.int64), ("a",), max_value=1.0))
    assert standardize.std == pytest.approx((1.0, 0.3), rel=1e-12)


def test_standardize_survives_json_exactly():
    standardize = Standardize((0.1, 1 / 3), (0.2, 2 / 3))
    assert Standardize.from_dict(json.loads(json.dumps(standardize.to_dict()))) == standardize


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": [0.0]}, 'expected "mean" and "std" as lists of numbers'),
        ({"mean": 0.0, "std": 1.0}, 'expected "mean" and "std" as lists of numbers'),
        ({"mean": [0.0, 1.0], "std": [1.0]}, "one value per channel, got 2 and 1"),
        ({"mean": [], "std": []}, "one value per channel, got 0 and 0"),
        ({"mean": [0.0], "std": [0.0]}, "mean must be finite and std positive"),
        ({"mean": [float("nan")], "std": [1.0]}, "mean must be finite and std positive"),
    ],
)
def test_a_damaged_standardize_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        Standardize.from_dict(values)


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (3, 4, 4)])
def test_standardize_refuses_other_channels(shape):
    with pytest.raises(InputError, match=r"must be \(batch, 3, height, width\)"):
        Standardize.fit(make())(np.zeros(shape, np.uint8), 255.0, np.float32)


@given(count=st.integers(1, 50), batch_size=st.integers(1, 60), shuffle=st.booleans())
def test_batches_hold_every_sample_once(count, batch_size, shuffle):
    if shuffle and batch_size > count:
        batch_size = count
    rng = np.random.default_rng(5) if shuffle else None
    batches = list(batch_indices(count, batch_size, rng))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert 1 <= len(batches[-1]) <= batch_size
    samples = np.concatenate(batches).tolist()
    assert sorted(samples) == list(range(count))
    if not shuffle:
        assert samples == list(range(count))


def test_shuffling_mixes_samples_across_batches():
    first = next(batch_indices(100, 10, np.random.default_rng(0)))
    assert (np.abs(np.diff(first)) != 1).any()
    assert len(set(first // 10)) > 1
    again = next(batch_indices(100, 10, np.random.default_rng(0)))
    np.testing.assert_array_equal(first, again)


def test_a_batch_larger_than_the_data_is_refused_when_shuffling():
    assert [batch.tolist() for batch in batch_indices(3, 8)] == [[0, 1, 2]]
    with pytest.raises(InputError, match="batch larger than the data: batch_size 8, but only 3 images; use a"):
        batch_indices(3, 8, np.random.default_rng(0))


@pytest.mark.parametrize(("count", "batch_size"), [(0, 1), (3, 0), (3, -2)])
def test_batches_of_nothing_are_refused(count, batch_size):
    with pytest.raises(InputError, match=f"at least 1, got {count} and {batch_size}"):
        batch_indices(count, batch_size)
