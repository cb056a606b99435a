"""Images of one's own: a folder with one sub-folder of images for each class."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minifocal.data.dataset import Dataset, Splits, stratified_split
from minifocal.errors import InputError
from minifocal.files import cannot_read, check_regular

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats of images that are read, by Pillow's names. For some others it starts programs: for EPS, Ghostscript."""
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"})
PIL_MODES = {1: "L", 3: "RGB"}
ROUNDINGS: dict[str, Callable[[float], int]] = {"even": round, "down": math.floor}
"""How half a pixel is rounded where the centre does not lie on one: torchvision to even, Hugging Face down."""
THINNEST = 1000  # times as long as wide
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters for resizing, in the order of their numbers."""


def read_image(
    path: Path | str,
    size: int | None = None,
    channels: int = 3,
    resize: int | None = None,
    resample: str = "bicubic",
    rounding: str = "even",
) -> np.ndarray:
    """Read an image file, upright as its EXIF orientation says.

    With `size` the shorter side is resized and the centre cut out. Transparency is dropped.

    Args:
        path: a file of one of `FORMATS`, whatever it is called, with 8 bits per channel.
        size: height and width of the result in pixels; None keeps the image as it is.
        channels: 3 for RGB, 1 for grey.
        resize: what the shorter side is resized to, at least `size`; `size` where not given.
        resample: one of `FILTERS`.
        rounding: of the corner of the centre, one of `ROUNDINGS`.
    Returns:
        (channels, height, width) uint8.
    Raises:
        InputError: the file cannot be read, is no image of these formats, cut short, has more than 8 bits per channel,
            or has more pixels than Pillow's limit against decompression bombs.
    """
    from PIL import Image, ImageOps  # imported where used: most data sets need no Pillow

    path = Path(path)
    if channels not in PIL_MODES:
        raise InputError(f"channels must be 1 or 3, got {channels}")
    if size is not None and size < 1:
        raise InputError(f"size must be at least 1 pixel, got {size}")
    check_regular(path)
    try:
        with warnings.catch_warnings():
            # Of a damaged part that is not needed, such as a date, Pillow warns; the pixels are there or are not.
            warnings.simplefilter("ignore")
            # Up to twice its limit Pillow only warns; a warning is too little for memory that runs out.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                if file.mode.startswith(("I", "F")):
                    raise InputError(f"{path}: expected 8 bits per channel, got mode {file.mode}; convert it")
                image = ImageOps.exif_transpose(file)
                if "transparency" in image.info:
                    # Pillow warns where a palette loses its transparency in one step.
                    image = image.convert("RGBA")
                image = image.convert(PIL_MODES[channels])
    except InputError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise InputError(f"{path}: more than {limit} pixels; make it smaller first") from error
    except Exception as error:  # a damaged file can raise nearly anything
        if isinstance(error, OSError) and error.errno is not None:
            raise cannot_read(path, error) from error
        raise InputError(
            f"{path}: expected an image, but it is damaged, cut short or no image of these kinds: {', '.join(FORMATS)}"
        ) from error
    if size is not None:
        image = _resize_and_crop(image, size if resize is None else resize, size, resample, rounding, path)
    pixels = np.array(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resize_and_crop(
    image: "Image.Image", resize: int, size: int, resample: str, rounding: str, path: Path
) -> "Image.Image":
    from PIL import Image

    if resample not in FILTERS:
        raise InputError(f"resample must be one of {', '.join(FILTERS)}, got {resample!r}")
    if rounding not in ROUNDINGS:
        raise InputError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if resize < size:
        raise InputError(f"an image resized to {resize} pixels has no square of {size}; give a resize of at least that")
    short = min(image.size)
    width, height = (resize * side // short for side in image.size)
    # A thin strip grows with its longer side: the limit on pixels must hold here too, and so must one on the strip.
    too_many = Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS
    if too_many or max(image.size) > THINNEST * short:
        raise InputError(f"{path}: {image.width}×{image.height} is too thin a strip for size {resize}; crop it first")
    try:
        resized = image.resize((width, height), Image.Resampling[resample.upper()])
    except MemoryError as error:
        raise InputError(
            f"{path}: {image.width}×{image.height} pixels do not fit into memory; crop it first"
        ) from error
    left, top = (ROUNDINGS[rounding]((side - size) / 2) for side in (width, height))
    return resized.crop((left, top, left + size, top + size))


def folder_splits(root: Path | str, size: int, channels: int = 3, test_fraction: float = 0.2, seed: int = 0) -> Splits:
    """Read a folder of images into memory, to train and to test.

    Either root/train/CLASS/* with root/test/CLASS/* (or root/val/CLASS/*), or root/CLASS/*, which is split by
    class. Class names are the names of the folders, sorted. Hidden files and files without the suffix of an
    image are left out.

    Args:
        root: the folder.
        size: height and width to which all images are brought, in pixels.
        channels: 3 for RGB, 1 for grey.
        test_fraction: share of test images where the folder is not split already.
        seed: of that split.
    Raises:
        InputError: no such folder, fewer than two classes, a class without images, classes that differ
            between train and test, or a file that is no image.
    """
    root = _check_folder(root)
    read = partial(read_image, size=size, channels=channels)
    if (root / "train").is_dir():
        test_folder = _test_folder(root)
        if test_folder is None:
            raise InputError(f"{root} has train but neither test nor val; add one, or put the classes in {root} itself")
        train, test = (_read_classes(folder, read) for folder in (root / "train", test_folder))
        if train.class_names != test.class_names:
            different = sorted(set(train.class_names) ^ set(test.class_names))
            raise InputError(f"{root}: train and {test_folder.name} must have the same classes, but {different} differ")
        how = f"split as found in train and {test_folder.name}"
    else:
        whole = _read_classes(root, read)
        train, test = stratified_split(whole, round(test_fraction * len(whole)), seed)
        how = f"stratified split, {test_fraction:g} for testing, seed {seed}"
    return Splits(root.name, train, test, f"images in {root}; {how}")


def folder_dataset(root: Path | str, read: Callable[[Path], np.ndarray]) -> tuple[Dataset, Path]:
    """Read all images of a folder into memory, to test on them; give them and where they were found.

    They are those of root/test/CLASS/* or root/val/CLASS/* where there is one of these, else those of root/CLASS/*.

    Args:
        root: the folder.
        read: gives an image file's pixels, (channels, height, width) uint8; all of one shape.
    Raises:
        InputError: as folder_splits.
    """
    root = _check_folder(root)
    folder = _test_folder(root) or root
    return _read_classes(folder, read), folder


def _check_folder(root: Path | str) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"expected a folder of images, but {root} is none; check the path")
    return root


def _test_folder(root: Path) -> Path | None:
    return next((root / name for name in ("test", "val") if (root / name).is_dir()), None)


def _read_classes(folder: Path, read: Callable[[Path], np.ndarray]) -> Dataset:
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise InputError(f"{folder}: expected a sub-folder for each of at least two classes, got {len(classes)}")
    files = [_image_files(path) for path in classes]
    paths = [path for members in files for path in members]
    first = read(paths[0])
    images = np.empty((len(paths), *first.shape), dtype=np.uint8)
    images[0] = first
    for index, path in enumerate(paths[1:], start=1):
        images[index] = read(path)
    labels = np.repeat(np.arange(len(classes)), [len(members) for members in files])
    return Dataset(images, labels, tuple(path.name for path in classes))


def _image_files(folder: Path) -> list[Path]:
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not files:
        raise InputError(f"class {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); add some or remove it")
    return files
