import numpy as np
import pytest
from PIL import Image

from minifocal.data.folder import folder_dataset, folder_splits, read_image
from minifocal.errors import InputError


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_an_image_is_read_channels_first(tmp_path):
    pixels = noise(5, 7)
    image = read_image(save(tmp_path / "a.png", pixels))
    assert (image.dtype, image.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_array_equal(image, pixels.transpose(2, 0, 1))


def test_colours_and_greys_are_converted(tmp_path):
    grey = noise(4, 6, channels=1)
    path = save(tmp_path / "grey.png", grey)
    np.testing.assert_array_equal(read_image(path, channels=1), grey[None])
    np.testing.assert_array_equal(read_image(path, channels=3), np.stack([grey] * 3))
    path = save(tmp_path / "red.png", np.full((2, 3, 3), [255, 0, 0], dtype=np.uint8))
    assert (read_image(path, channels=1) == 76).all()  # ITU-R 601: 0.299 of 255


def test_transparency_is_dropped(tmp_path):
    pixels = noise(4, 5, channels=4)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", pixels)), pixels[..., :3].transpose(2, 0, 1))


def test_a_palette_with_transparency_is_read_without_warning(tmp_path):
    image = Image.fromarray(noise(4, 5)).quantize(16)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    expected = np.array(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


def test_an_image_on_its_side_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    pixels = noise(4, 6)
    image = read_image(save(tmp_path / "a.png", pixels, exif=exif))
    np.testing.assert_array_equal(image, np.rot90(pixels, -1).transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(9, 20), (20, 9), (13, 13), (3, 4)])
def test_the_shorter_side_is_resized_and_the_centre_cut_out(height, width, tmp_path):
    pixels = noise(height, width)
    size, short = 6, min(height, width)
    resized_size = (size * width // short, size * height // short)
    resized = np.array(Image.fromarray(pixels).resize(resized_size, Image.Resampling.BICUBIC))
    top, left = round((resized.shape[0] - size) / 2), round((resized.shape[1] - size) / 2)
    expected = resized[top : top + size, left : left + size].transpose(2, 0, 1)
    result = read_image(save(tmp_path / "a.png", pixels), size)
    assert result.shape == (3, 6, 6)
    np.testing.assert_array_equal(result, expected)


def test_an_image_of_the_right_size_is_untouched(tmp_path):
    pixels = noise(8, 8)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", pixels), 8), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a_foreign_file_is_refused(data, tmp_path):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match=r"a.png: expected an image, but it is damaged, cut short or no image"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tif", "webp"])
def test_a_truncated_image_is_refused(suffix, tmp_path):
    path = save(tmp_path / f"a.{suffix}", noise(40, 50))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=f"a.{suffix}: expected an image"):
        read_image(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nowhere.png: No such file"):
        read_image(tmp_path / "nowhere.png")


@pytest.mark.parametrize("side", [10_000, 60_000])  # where Pillow warns, and where it refuses
def test_a_decompression_bomb_is_refused(side, tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6\n%d %d\n255\n" % (side, side))
    with pytest.raises(InputError, match=r"a.ppm: more than 89478485 pixels; make it smaller first"):
        read_image(tmp_path / "a.ppm")


def test_a_strip_that_would_grow_without_bound_is_refused(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((1, 2000, 3), np.uint8))
    with pytest.raises(InputError, match="2000×1 is too thin a strip for size 224; crop it first"):
        read_image(path, size=224)


@pytest.mark.parametrize("pixels", [np.zeros((3, 4), np.uint16), np.zeros((3, 4), np.int32), np.zeros((3, 4), "f4")])
def test_more_than_8_bits_are_refused(pixels, tmp_path):
    with pytest.raises(InputError, match=r"a.tif: expected 8 bits per channel, got mode [IF]"):
        read_image(save(tmp_path / "a.tif", pixels))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"channels": 4}, "channels must be 1 or 3, got 4"), ({"size": 0}, "size must be at least 1 pixel, got 0")],
)
def test_impossible_options_are_refused(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_image(tmp_path / "a.png", **options)


def fill(folder, counts, value=0):
    """Write `counts[name]` one-coloured images for each class; each has a colour of its own."""
    for name, count in counts.items():
        for index in range(count):
            value += 1
            save(folder / name / f"{index:03}.png", np.full((4, 5, 3), value, np.uint8))


def test_a_folder_that_is_split_is_read_as_it_is(tmp_path):
    fill(tmp_path / "train", {"dog": 3, "cat": 2})
    fill(tmp_path / "test", {"cat": 1, "dog": 2}, value=100)
    splits = folder_splits(tmp_path, size=4)
    assert splits.train.class_names == ("cat", "dog")
    assert splits.train.images.shape == (5, 3, 4, 4)
    assert splits.train.images[:, 0, 0, 0].tolist() == [4, 5, 1, 2, 3]
    assert splits.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert splits.test.images[:, 0, 0, 0].tolist() == [101, 102, 103]
    assert splits.test.labels.tolist() == [0, 1, 1]
    assert (splits.name, splits.note.endswith("split as found in train and test")) == (tmp_path.name, True)


def test_val_serves_where_there_is_no_test(tmp_path):
    fill(tmp_path / "train", {"a": 1, "b": 1})
    fill(tmp_path / "val", {"a": 1, "b": 2})
    assert len(folder_splits(tmp_path, size=3, channels=1).test) == 3


def test_a_folder_that_is_not_split_is_split_by_class(tmp_path):
    fill(tmp_path, {"a": 10, "b": 5})
    splits = folder_splits(tmp_path, size=4, test_fraction=0.4, seed=1)
    assert np.bincount(splits.train.labels).tolist() == [6, 3]
    assert np.bincount(splits.test.labels).tolist() == [4, 2]
    pixels = [*splits.train.images[:, 0, 0, 0], *splits.test.images[:, 0, 0, 0]]
    assert sorted(pixels) == list(range(1, 16))
    other = folder_splits(tmp_path, size=4, test_fraction=0.4, seed=2)
    assert (other.test.images != splits.test.images).any()


def test_hidden_and_foreign_files_are_left_out(tmp_path):
    fill(tmp_path, {"a": 2, "b": 2})
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "README.txt").write_text("about")
    (tmp_path / "a" / ".000.png").write_text("a hidden file")
    (tmp_path / "a" / "notes.txt").write_text("notes")
    (tmp_path / "a" / "folder.png").mkdir()
    save(tmp_path / "b" / "LOUD.PNG", noise(4, 4))
    splits = folder_splits(tmp_path, size=4)
    assert splits.train.class_names == ("a", "b")
    assert len(splits.train) + len(splits.test) == 5


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "expected a sub-folder for each of at least two classes, got 0"),
        ({"a": 4}, "expected a sub-folder for each of at least two classes, got 1"),
        ({"train/a": 1, "train/b": 1}, "has train but neither test nor val; add one"),
        ({"train/a": 1, "train/b": 1, "test/a": 1, "test/c": 1}, r"same classes, but \['b', 'c'\] differ"),
        ({"a": 1, "b": 1}, "test_size must be 1 to 1 for 2 images, got 0"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(counts, message, tmp_path):
    fill(tmp_path, counts)
    with pytest.raises(InputError, match=message):
        folder_splits(tmp_path, size=4)


def test_a_class_without_images_is_refused(tmp_path):
    fill(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("notes")
    with pytest.raises(InputError, match=r"class .*c holds no images \(.bmp, .gif.*\); add some or remove it"):
        folder_splits(tmp_path, size=4)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    fill(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "b" / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"bad.jpg: expected an image"):
        folder_splits(tmp_path, size=4)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"expected a folder of images, but .*nowhere is none; check the path"):
        folder_splits(tmp_path / "nowhere", size=4)


def test_the_shorter_side_may_be_resized_to_more_than_is_cut_out(tmp_path):
    pixels = np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3).astype(np.uint8)
    path = save(tmp_path / "a.png", pixels)
    whole = read_image(path, 20)
    np.testing.assert_array_equal(whole, pixels[:, 5:25].transpose(2, 0, 1))
    np.testing.assert_array_equal(read_image(path, 8, resize=20), pixels[6:14, 11:19].transpose(2, 0, 1))
    bilinear, bicubic = (read_image(path, 8, resize=13, resample=name) for name in ("bilinear", "bicubic"))
    assert (bilinear != bicubic).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 7}, "an image resized to 7 pixels has no square of 8"),
        ({"resample": "cubic"}, "resample must be one of nearest, lanczos, bilinear"),
        ({"rounding": "up"}, "rounding must be one of even, down"),
    ],
)
def test_a_resizing_that_is_none_is_refused(tmp_path, options, message):
    path = save(tmp_path / "a.png", np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(InputError, match=message):
        read_image(path, 8, **options)


def test_all_images_of_a_folder_are_read_to_test_on(tmp_path):
    for part in ("", "val/"):
        for name, count in (("a", 2), ("b", 3)):
            for index in range(count + bool(part)):
                path = tmp_path / f"{part}{name}" / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                save(path, np.full((9, 12, 3), index, np.uint8))
        dataset, folder = folder_dataset(tmp_path, lambda path: read_image(path, 4, resize=6, resample="nearest"))
        assert folder == (tmp_path / "val" if part else tmp_path)
        assert dataset.images.shape == (7 if part else 5, 3, 4, 4)
        assert dataset.class_names == ("a", "b")
    with pytest.raises(InputError, match="expected a folder of images"):
        folder_dataset(tmp_path / "nowhere", read_image)


def test_an_image_that_cannot_be_resized_in_memory_is_named(tmp_path, monkeypatch):
    def fail(image, *arguments):
        raise MemoryError

    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "resize", fail)
    with pytest.raises(InputError, match=r"a\.png: 6×5 pixels do not fit into memory; crop it first"):
        read_image(tmp_path / "a.png", size=4)
