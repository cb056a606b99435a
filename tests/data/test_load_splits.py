import gzip

import numpy as np
import pytest
from PIL import Image

from minifocal.data import DATASETS, digits_splits, load_splits, shapes_splits
from minifocal.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIFOCAL_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_mnist(folder, idx_bytes, count=3):
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        images, labels = np.zeros((count, 28, 28), np.uint8), np.zeros(count, np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))


def test_digits_are_the_same_for_every_seed():
    splits = load_splits("digits", seed=5)
    np.testing.assert_array_equal(splits.test.images, digits_splits().test.images)


def test_shapes_follow_size_and_seed():
    splits = load_splits("shapes", image_size=16, seed=5)
    np.testing.assert_array_equal(splits.test.images, shapes_splits(size=16, seed=5).test.images)
    assert load_splits("shapes").train.images.shape == (2000, 3, 32, 32)


def test_public_data_comes_from_the_cache(cache, idx_bytes):
    write_mnist(cache / "fashion-mnist", idx_bytes)
    assert load_splits("fashion-mnist").name == "fashion-mnist"


@pytest.mark.parametrize("below", ["", "mnist"])
def test_public_data_comes_from_root_or_from_below_it(below, idx_bytes, tmp_path):
    write_mnist(tmp_path / "root" / below, idx_bytes, count=4)
    assert len(load_splits("mnist", tmp_path / "root").train) == 4


@pytest.mark.parametrize("name", DATASETS[2:])
def test_missing_data_says_how_to_fetch_it(name):
    with pytest.raises(InputError, match=f"run: minifocal data fetch {name}$"):
        load_splits(name)


def test_a_folder_of_images_is_read_by_its_path(tmp_path):
    for name in ("a", "b"):
        for index in range(5):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 8)).save(tmp_path / "images" / name / f"{index}.png")
    splits = load_splits(str(tmp_path / "images"), image_size=6)
    assert splits.train.images.shape == (8, 3, 6, 6)
    assert load_splits(str(tmp_path / "images")).test.image_size == (64, 64)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"expected one of digits, shapes, mnist, .*cifar100 or the path of a folder"):
        load_splits("imagenet")


def test_a_size_that_the_data_has_not_is_refused():
    assert load_splits("digits", image_size=8).train.image_size == (8, 8)
    with pytest.raises(InputError, match="digits has images of 8×8 pixels, got image size 16; leave it out"):
        load_splits("digits", image_size=16)
