import numpy as np
import pytest

from minifocal.data import shapes
from minifocal.data.digits import nearest_neighbour_accuracy
from minifocal.data.shapes import SHAPE_NAMES, make_shapes, shapes_splits
from minifocal.errors import InputError

# Read off a contact sheet by eye.
FIRST_LABELS = ["triangle", "cross", "circle", "cross", "cross", "square", "square", "circle", "cross"]


@pytest.mark.parametrize("size", [16, 33])
def test_images_have_the_size_asked_for(size):
    dataset = make_shapes(3, size)
    assert dataset.images.shape == (3, 3, size, size)
    assert dataset.images.dtype == np.uint8


def test_the_first_labels_are_those_a_person_sees():
    dataset = make_shapes(len(FIRST_LABELS))
    assert [SHAPE_NAMES[label] for label in dataset.labels] == FIRST_LABELS


def test_the_same_seed_gives_the_same_bits():
    np.testing.assert_array_equal(make_shapes(5, seed=3).images, make_shapes(5, seed=3).images)
    assert (make_shapes(5, seed=3).images != make_shapes(5, seed=4).images).any()


def test_an_image_does_not_depend_on_how_many_are_made():
    many = make_shapes(300)  # more than one chunk
    few = make_shapes(261)
    np.testing.assert_array_equal(many.images[:261], few.images)
    np.testing.assert_array_equal(many.labels[:261], few.labels)


def test_another_size_shows_the_same_scene():
    small, large = make_shapes(10, 32), make_shapes(10, 64)
    np.testing.assert_array_equal(small.labels, large.labels)
    shrunk = large.images.reshape(10, 3, 32, 2, 32, 2).mean(axis=(3, 5))
    assert np.abs(shrunk - small.images).mean() < 2.0  # of 255


def test_the_label_is_the_one_kind_that_occurs_twice():
    scene = shapes._draw_scenes(0, 0, 400)
    kinds = shapes._shape_kinds(scene)
    counts = np.stack([(kinds == kind).sum(axis=1) for kind in range(4)], axis=1)
    assert (np.sort(counts, axis=1) == [0, 1, 1, 2]).all()
    np.testing.assert_array_equal(counts.argmax(axis=1), make_shapes(400, 16).labels)
    absent = counts.argmin(axis=1)
    pairs = np.bincount(4 * counts.argmax(axis=1) + absent, minlength=16).reshape(4, 4)
    assert (np.diag(pairs) == 0).all()
    assert pairs[~np.eye(4, dtype=bool)].min() > 15  # about 33 each: no kind is left out more often


def test_one_shape_alone_says_little():
    kinds = shapes._shape_kinds(shapes._draw_scenes(0, 0, 2000))
    labels = kinds[:, 0]
    cells_seen = np.random.default_rng(0).integers(0, 4, 2000)
    seen = kinds[np.arange(2000), cells_seen]
    assert np.mean(seen == labels) == pytest.approx(1 / 2, abs=0.04)


def test_pixels_alone_do_not_give_the_label_away():
    splits = shapes_splits(train=600, test=400)
    assert nearest_neighbour_accuracy(splits.train, splits.test) < 0.33


def test_the_classes_are_about_equally_frequent():
    assert np.bincount(make_shapes(1000, 16).labels).min() > 200


def test_mean_colour_is_independent_of_the_label():
    dataset = make_shapes(1000, 16)
    means = [dataset.images[dataset.labels == label].mean(axis=(0, 2, 3)) for label in range(4)]
    assert np.ptp(means, axis=0).max() < 6.0  # of 255; the images themselves spread by about 25


RADIUS = 0.21
AREAS = (
    np.pi * 0.85**2,
    (2 * 0.75) ** 2,
    3 * np.sqrt(3) * 0.56**2,
    4 * 0.34 * (2 * 1.05 - 0.34),
)


@pytest.mark.parametrize("kind", range(4), ids=SHAPE_NAMES)
@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_each_kind_has_its_area_at_any_angle_and_stays_in_reach(kind, angle):
    size = 200
    middles = (np.arange(size) + 0.5) / size
    grid_x, grid_y = middles[None, :], middles[:, None]
    u, v = shapes._local(grid_x, grid_y, np.array(0.5), np.array(0.47), np.array(angle))
    distance = shapes.SIGNED_DISTANCES[kind](u, v, np.array(RADIUS))
    area = shapes._coverage(distance, size).mean()
    assert area == pytest.approx(AREAS[kind] * RADIUS**2, rel=5e-3)
    farthest = np.hypot(grid_x - 0.5, grid_y - 0.47)[distance < 0].max()
    assert 0.8 * RADIUS < farthest < shapes.REACH * RADIUS


def test_shapes_have_room_in_their_cells():
    largest_radius = 0.15 + 0.06
    assert shapes.REACH * largest_radius < 1 / 4


def test_train_and_test_are_different_images_of_one_seed():
    splits = shapes_splits(size=16, train=7, test=4, seed=2)
    whole = make_shapes(11, 16, seed=2)
    np.testing.assert_array_equal(splits.train.images, whole.images[:7])
    np.testing.assert_array_equal(splits.test.images, whole.images[7:])
    assert "seed 2" in splits.note


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_shapes(0), "count must be at least 1, got 0"),
        (lambda: make_shapes(1, 15), "size must be at least 16 pixels for the shapes to be told apart, got 15"),
        (lambda: shapes_splits(train=0), "at least 1 image each, got 0 and 500"),
        (lambda: shapes_splits(test=0), "at least 1 image each, got 2000 and 0"),
    ],
)
def test_impossible_sizes_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
