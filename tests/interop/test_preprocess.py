"""From an image file to an array: the same as Pillow and the arithmetic of torchvision, step by step."""

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from minifocal import InputError
from minifocal.data.dataset import Standardize
from minifocal.interop import Preprocess
from minifocal.interop.preprocess import IMAGENET_MEAN, IMAGENET_STD


@pytest.fixture
def photo(tmp_path):
    """A JPEG of smooth colours, wider than high."""
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (6, 9, 3)), np.ones((11, 13, 1))).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    return tmp_path / "photo.jpg"


def by_hand(path, resize, crop, resample="bicubic", rounding=round):
    """Resize the shorter side, cut out the centre, divide by 255, standardise: as torchvision's transforms do."""
    with Image.open(path) as image:
        width, height = image.size
        size = (int(resize * width / height), resize) if height <= width else (resize, int(resize * height / width))
        image = image.convert("RGB").resize(size, Image.Resampling[resample.upper()])
        left, top = (rounding((side - crop) / 2.0) for side in image.size)
        pixels = np.asarray(image.crop((left, top, left + crop, top + crop)), dtype=np.float64) / 255
    return ((pixels - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("layout", "size", "resize"), [("official", 32, 36), ("hf", 28, 32), ("timm", 32, 35), ("timm", 224, 248)]
)
def test_an_image_is_prepared_as_usual(photo, layout, size, resize):
    prepared = Preprocess.usual(layout, size, 3)
    assert (prepared.resize, prepared.crop) == (resize, size)
    images = prepared.read(photo, "float64")
    assert images.shape == (1, 3, size, size)
    rounding = math.floor if layout == "hf" else round
    np.testing.assert_allclose(images, by_hand(photo, resize, size, rounding=rounding), rtol=0, atol=1e-12)
    assert prepared.read(photo, "float32").dtype == np.float32


def test_the_negative_is_taken_before_standardising(photo):
    prepared = Preprocess.usual("hf", 32, 3)
    sum_of_both = prepared.read(photo, "float64") + prepared.read(photo, "float64", invert=True)
    expected = (1 - 2 * np.array(IMAGENET_MEAN)) / IMAGENET_STD
    np.testing.assert_allclose(sum_of_both, np.broadcast_to(expected[:, None, None], sum_of_both.shape), atol=1e-12)


def test_grey_images_are_brought_to_minus_one_to_one(photo):
    images = Preprocess.usual("official", 16, 1).read(photo, "float64")
    assert images.shape == (1, 1, 16, 16)
    assert -1 <= images.min() < images.max() <= 1


def test_defaults():
    assert Preprocess.from_timm({}, "x") == Preprocess(248, 224, Standardize(IMAGENET_MEAN, IMAGENET_STD))
    assert Preprocess.from_hf({"do_rescale": False}, "x")[0].standardize.mean[0] == pytest.approx(0.485 / 255)
    assert Preprocess.from_hf({"do_normalize": False}, "x")[0].standardize == Standardize((0.0,) * 3, (1.0,) * 3)
    assert (IMAGENET_MEAN, IMAGENET_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    described = Preprocess(256, 224, Standardize((0.5,), (0.25,)), "bilinear").describe()
    assert described == "shorter side 256 (bilinear), centre 224, mean (0.5,), std (0.25,)"


def test_official_sizes():
    assert [Preprocess.usual("official", size, 3).resize for size in (224, 384, 32)] == [256, 438, 36]


@pytest.mark.parametrize("factor", [1 / 255, 1 / 127.5, 1.0])
def test_another_factor_of_hugging_face_is_taken_into_mean_and_deviation(photo, factor):
    values = {
        "size": 40,
        "crop_size": 24,
        "rescale_factor": factor,
        "image_mean": [0.5, 1.0, 2.0],
        "image_std": [0.5, 2, 4],
    }
    prepared, notes = Preprocess.from_hf(values, "x")
    assert notes == ()
    plain = Preprocess(40, 24, Standardize((0.0,) * 3, (1 / 255,) * 3)).read(photo, "float64")  # the bytes themselves
    mean, std = (np.array(values[name])[:, None, None] for name in ("image_mean", "image_std"))
    np.testing.assert_allclose(prepared.read(photo, "float64"), (plain * factor - mean) / std, atol=1e-10)


@pytest.mark.parametrize(
    ("values", "resize", "crop"),
    [
        ({}, 224, 224),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 256, 224),
        ({"size": 256, "crop_size": 224, "do_center_crop": False}, 256, 256),
        ({"size": {"shortest_edge": 256}, "crop_size": 192, "do_resize": False}, 192, 192),
        ({"size": {"height": 64, "width": 64}}, 64, 64),
    ],
)
def test_sizes_of_hugging_face_in_all_their_forms(values, resize, crop):
    prepared, _ = Preprocess.from_hf(values, "x")
    assert (prepared.resize, prepared.crop) == (resize, crop)


def test_what_is_done_otherwise_is_told():
    _, notes = Preprocess.from_hf({"size": {"height": 64, "width": 64}}, "x.json")
    assert notes == ("x.json resizes to height and width; here the shorter side is resized and the centre cut out",)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "nearest"])
def test_the_filter_is_that_of_the_source(photo, resample):
    """Hugging Face's own conversions of FocalNet resize bilinearly, the official code and timm bicubically."""
    number = {"nearest": 0, "bilinear": 2, "bicubic": 3}[resample]
    values = {"size": {"shortest_edge": 36}, "crop_size": 32, "resample": number}
    prepared, notes = Preprocess.from_hf(values, "x")
    assert (prepared.resample, notes) == (resample, ())
    assert prepared.to_hf()["resample"] == number
    assert Preprocess.from_timm({"interpolation": resample}, "x").resample == resample
    expected = by_hand(photo, 36, 32, resample, math.floor)
    np.testing.assert_allclose(prepared.read(photo, "float64"), expected, rtol=0, atol=1e-12)


def test_half_a_pixel_is_rounded_as_the_source_does(tmp_path):
    """A margin of three pixels: torchvision cuts at 2, Hugging Face at 1."""
    pixels = np.arange(11, dtype=np.uint8) * np.ones((8, 1), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    prepared = Preprocess(8, 8, Standardize((0.0,), (1.0,)))
    assert prepared.read_pixels(tmp_path / "a.png")[0, 0].tolist() == list(range(2, 10))
    assert replace(prepared, rounding="down").read_pixels(tmp_path / "a.png")[0, 0].tolist() == list(range(1, 9))
    assert Preprocess.from_hf({}, "x")[0].rounding == "down"
    assert {Preprocess.usual(layout, 8, 1).rounding for layout in ("official", "timm", "edifice")} == {"even"}


def test_what_is_written_for_hugging_face_reads_back():
    prepared = Preprocess(40, 24, Standardize((0.25, 0.5, 0.75), (0.1, 0.2, 0.3)), "bilinear", "down")
    assert Preprocess.from_hf(prepared.to_hf(), "x") == (prepared, ())
    assert Preprocess.from_dict(prepared.to_dict()) == prepared
    assert [Preprocess.usual("hf", 8, channels).to_hf()["do_convert_rgb"] for channels in (1, 3)] == [False, True]


def test_another_size_keeps_the_share_of_the_crop():
    assert Preprocess.usual("official", 224, 3).at_size(448).resize == 512
    prepared = Preprocess.usual("timm", 224, 3)
    assert prepared.at_size(224) is prepared


@pytest.mark.parametrize(("resize", "crop"), [(10, 11), (0, 0), (2**22, 8), (8, True), (8.5, 8)])
def test_sizes_that_are_none_are_refused(resize, crop):
    with pytest.raises(InputError):
        Preprocess(resize, crop, Standardize((0.5,), (0.5,)))


@pytest.mark.parametrize("values", [{}, 3, {"resize": 8, "crop": 8}, {"resize": 8, "crop": 8, "mean": [0], "std": 1}])
def test_a_description_that_is_none_is_refused(values):
    with pytest.raises(InputError):
        Preprocess.from_dict(values)
