"""Data sets: made, packed with the package, fetched, or a folder of one's own images."""

from pathlib import Path

from minifocal.data.cifar import LAYOUTS, cifar_splits
from minifocal.data.dataset import Dataset, Splits, Standardize, batch_indices, stratified_split
from minifocal.data.digits import digits_splits, load_digits, nearest_neighbour_accuracy
from minifocal.data.download import cache_folder, fetch
from minifocal.data.folder import folder_dataset, folder_splits, read_image
from minifocal.data.idx import mnist_splits, read_idx
from minifocal.data.shapes import make_shapes, shapes_splits
from minifocal.errors import InputError
from minifocal.files import cannot_read

__all__ = [
    "DATASETS",
    "FIXED_SIZE",
    "Dataset",
    "Splits",
    "Standardize",
    "batch_indices",
    "cache_folder",
    "cifar_splits",
    "digits_splits",
    "fetch",
    "folder_dataset",
    "folder_splits",
    "load_digits",
    "load_splits",
    "make_shapes",
    "mnist_splits",
    "nearest_neighbour_accuracy",
    "read_idx",
    "read_image",
    "shapes_splits",
    "stratified_split",
]

DATASETS = ("digits", "shapes", "mnist", "fashion-mnist", "cifar10", "cifar100")
FIXED_SIZE = tuple(name for name in DATASETS if name != "shapes")
"""The datasets whose image size cannot be chosen."""

SHAPES_SIZE = 32
FOLDER_SIZE = 64


def load_splits(data: str, root: Path | str | None = None, image_size: int | None = None, seed: int = 0) -> Splits:
    """Load data by name, or a folder of images by its path.

    Args:
        data: one of `DATASETS`, or the path of a folder as `folder_splits` reads it. A name goes before a
            path: write ./digits for a folder called digits.
        root: for the public data sets, the folder that holds the files, or holds them in a sub-folder `data`;
            None for the cache folder, where `fetch` puts them.
        image_size: height and width in pixels of "shapes" (32 if not given) and of a folder's images (64);
            the other data has the size it has.
        seed: of the made shapes and of the split of a folder; the other data is split for good.
    Raises:
        InputError: an unknown name, missing or damaged files, or another image size than the data has.
    """
    if data == "shapes":
        return shapes_splits(SHAPES_SIZE if image_size is None else image_size, seed=seed)
    if data not in DATASETS:
        if _is_folder(Path(data)):
            return folder_splits(data, FOLDER_SIZE if image_size is None else image_size, seed=seed)
        raise InputError(f"expected one of {', '.join(DATASETS)} or the path of a folder of images, got {data!r}")

    splits = digits_splits() if data == "digits" else _load_public(data, None if root is None else Path(root))
    height, width = splits.train.image_size
    if image_size not in (None, height):
        raise InputError(f"{data} has images of {height}×{width} pixels, got image size {image_size}; leave it out")
    return splits


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name that is too long
        raise cannot_read(path, error) from error


def _load_public(data: str, root: Path | None) -> Splits:
    folder = cache_folder() / data if root is None else root
    if root is not None and (root / data).is_dir():
        folder = root / data
    return cifar_splits(folder, data) if data in LAYOUTS else mnist_splits(folder, data)
