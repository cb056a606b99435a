import numpy as np
import pytest

from minifocal.data import shapes
from minifocal.data.digits import nearest_neighbour_accuracy
from minifocal.data.shapes import SHAPE_NAMES, clutter_masks, make_shapes, shape_masks, shapes_splits
from minifocal.errors import InputError

# Read off a contact sheet by eye.
FIRST_LABELS = ["triangle", "cross", "circle", "cross", "cross", "square", "square", "circle", "cross"]


@pytest.mark.parametrize("size", [16, 32, 33, 48, 64])
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


def test_only_the_whole_shape_shows_the_label():
    labels = make_shapes(40, 48).labels
    scene = shapes._draw_scenes(0, 0, 40)
    image, other = shapes._render(scene, labels, 48), shapes._render(scene, (labels + 1) % 4, 48)
    x, y, size_draw = scene["shape"][:, :3].T[:, :, None, None]
    radius = shapes._radius(size_draw)
    middles = (np.arange(48) + 0.5) / 48
    room = 0.5 - shapes.REACH * radius
    from_middle = np.hypot(middles - 0.5 - room * (2 * x - 1), middles[:, None] - 0.5 - room * (2 * y - 1))
    changed = (image != other).any(axis=1)
    assert not changed[from_middle > shapes.REACH * radius + 1 / 48].any()  # edges are smooth
    assert changed.mean(axis=(1, 2)).min() > 0.02


def _patches(images, stride):
    """4×4 patches (B, patches, 48), to colours in [0, 1]."""
    windows = np.lib.stride_tricks.sliding_window_view(images / np.float32(255), (4, 4), (2, 3))
    windows = windows[:, :, ::stride, ::stride].transpose(0, 2, 3, 1, 4, 5)
    return windows.reshape(len(images), -1, 48)


def _likeness(train, test, count):
    """How like each patch is to `count` patches of the training images, all whitened; what is below 1 counts as 0."""
    flat = train.reshape(-1, 48)
    mean = flat.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((flat - mean).T) + 0.01 * np.eye(48))
    whiten = vectors / np.sqrt(values)
    prototypes = (np.random.default_rng(0).permutation(flat)[:count] - mean) @ whiten
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    return (np.maximum((patches - mean) @ whiten @ prototypes.T - 1, 0) for patches in (train, test))


def _ridge_scores(features, labels, test_features):
    """Scores of the four classes by ridge regression."""
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
    features, test_features = (features - mean) / std, (test_features - mean) / std
    gram = features.T @ features + 100 * np.eye(features.shape[1])
    return test_features @ np.linalg.solve(gram, features.T @ (np.eye(4)[labels] - 0.25))


def test_one_patch_does_not_give_the_label_away():
    splits = shapes_splits(train=1000, test=500)
    train, test = _likeness(_patches(splits.train.images, 4), _patches(splits.test.images, 4), 100)
    count = train.shape[1]
    scores = _ridge_scores(train.reshape(-1, 100), np.repeat(splits.train.labels, count), test.reshape(-1, 100))
    each = scores.argmax(axis=1) == np.repeat(splits.test.labels, count)
    most_confident = scores.reshape(500, -1).argmax(axis=1) % 4 == splits.test.labels
    assert each.mean() < 0.28
    assert most_confident.mean() < 0.33


def test_counting_patches_wherever_they_are_says_little():
    splits = shapes_splits(train=1000, test=500)
    train, test = _likeness(_patches(splits.train.images, 4), _patches(splits.test.images, 4), 100)
    scores = _ridge_scores(train.mean(axis=1), splits.train.labels, test.mean(axis=1))
    assert np.mean(scores.argmax(axis=1) == splits.test.labels) < 0.4


def test_pixels_in_place_tell_a_little_and_not_the_label():
    splits = shapes_splits()
    assert 0.3 < nearest_neighbour_accuracy(splits.train, splits.test) < 0.5


def test_the_classes_are_about_equally_frequent():
    assert np.bincount(make_shapes(1000, 16).labels).min() > 200


def test_mean_colour_is_independent_of_the_label():
    dataset = make_shapes(1000, 16)
    means = [dataset.images[dataset.labels == label].mean(axis=(0, 2, 3)) for label in range(4)]
    assert np.ptp(means, axis=0).max() < 6.0  # of 255; the images themselves spread by about 25


@pytest.mark.parametrize("kind", range(4), ids=SHAPE_NAMES)
@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_all_kinds_have_the_same_area_at_any_angle_and_stay_in_reach(kind, angle):
    size, radius = 200, 0.28
    middles = (np.arange(size) + 0.5) / size
    grid_x, grid_y = middles[None, :], middles[:, None]
    u, v = shapes._local(grid_x, grid_y, np.array(0.5), np.array(0.47), np.array(angle))
    distance = shapes.SIGNED_DISTANCES[kind](u, v, np.array(radius))
    assert shapes._coverage(distance, size).mean() == pytest.approx(np.pi * radius**2, rel=5e-3)
    farthest = np.hypot(grid_x - 0.5, grid_y - 0.47)[distance < 0].max()
    assert 0.95 * radius < farthest < shapes.REACH * radius


def test_the_whole_shape_has_room_in_the_image():
    assert shapes.REACH * shapes.LARGEST < 1 / 2


@pytest.mark.parametrize("kind", range(4), ids=SHAPE_NAMES)
def test_pieces_are_cut_around_points_of_the_edge(kind):
    angle = np.linspace(0, 2 * np.pi, 100)
    u, v = shapes._edge_point(shapes.SIGNED_DISTANCES[kind], angle, np.array(0.25))
    np.testing.assert_allclose(shapes.SIGNED_DISTANCES[kind](u, v, np.array(0.25)), 0.0, atol=1e-3)
    np.testing.assert_allclose(np.hypot(u, v) * np.exp(1j * angle), u + 1j * v, atol=1e-12)


def test_every_image_has_equally_many_pieces_of_each_kind():
    assert shapes.PIECES_PER_IMAGE % len(SHAPE_NAMES) == 0


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


def test_a_size_that_no_memory_holds_is_refused():
    with pytest.raises(InputError, match="size must be at most 1024 pixels, got a int"):
        make_shapes(1, 10**40)


# Masks


def test_masks_and_background_weigh_the_colours_of_every_pixel(monkeypatch):
    """Painted white on black, the shape alone is its mask, the pieces alone theirs where the shape leaves them."""
    colours = iter([1.0] * shapes.PIECES_PER_IMAGE + [0.0] + [0.0] * shapes.PIECES_PER_IMAGE + [1.0])
    monkeypatch.setattr(shapes, "_vivid", lambda hue, paleness: np.full((len(hue), 3, 1, 1), next(colours)))
    monkeypatch.setattr(shapes, "_background", lambda scene, x, y: np.zeros((len(scene["label"]), 3, y.size, x.size)))
    clutter, shape = (make_shapes(9, 20, seed=2).images[:, 0] / 255 for _ in range(2))
    np.testing.assert_allclose(clutter_masks(9, 20, seed=2), clutter, atol=0.5 / 255 + 1e-12)
    np.testing.assert_allclose(shape_masks(9, 20, seed=2), shape, atol=0.5 / 255 + 1e-12)


def test_masks_cover_what_the_scene_says():
    shape, clutter = shape_masks(200, 48), clutter_masks(200, 48)
    assert shape.shape == clutter.shape == (200, 48, 48)
    assert (shape >= 0).all()
    assert (clutter >= 0).all()
    assert (shape + clutter).max() <= 1 + 1e-12
    areas = np.sqrt(shape.mean(axis=(1, 2)) / np.pi)  # all kinds have the area of their circle
    assert shapes.SMALLEST - 0.01 < areas.min() < areas.max() < shapes.LARGEST + 0.01
    largest = shapes.PIECES_PER_IMAGE * np.pi * (shapes.PIECE + 0.5 / 48) ** 2
    assert 0 < clutter.mean(axis=(1, 2)).min() < clutter.mean(axis=(1, 2)).max() < largest


def test_inside_the_shape_there_is_one_colour():
    images, masks = make_shapes(20, 40).images, shape_masks(20, 40)
    for image, mask in zip(images, masks, strict=True):
        assert np.ptp(image[:, mask == 1], axis=1).max() == 0


def test_images_and_masks_may_begin_anywhere():
    whole = make_shapes(7, 16, seed=3)
    part = make_shapes(3, 16, seed=3, start=4)
    np.testing.assert_array_equal(part.images, whole.images[4:])
    np.testing.assert_array_equal(part.labels, whole.labels[4:])
    for masks in (shape_masks, clutter_masks):
        np.testing.assert_array_equal(masks(3, 16, 3, start=4), masks(7, 16, 3)[4:])


def test_masks_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch):
    expected = shape_masks(5, 16), clutter_masks(5, 16)
    monkeypatch.setattr(shapes, "PIXELS_PER_CHUNK", 2 * 16**2)
    np.testing.assert_array_equal((shape_masks(5, 16), clutter_masks(5, 16)), expected)


@pytest.mark.parametrize("make", [make_shapes, shape_masks, clutter_masks])
def test_impossible_images_are_refused_in_every_form(make):
    for options, message in (
        ({"count": 0}, "count"),
        ({"size": 15}, "size"),
        ({"start": -1}, "start must be at least 0"),
    ):
        with pytest.raises(InputError, match=message):
            make(**{"count": 1, **options})
