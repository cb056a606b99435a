"""Files of weights and what stands beside them, found and opened, whatever wrote them.

What a file holds is recognised by its first bytes, not by its name; whose names its tensors have, by one of them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minifocal.errors import InputError, one_line, shown
from minifocal.files import cannot_read, check_regular
from minifocal.interop.descriptions import Description, read_folder, read_official
from minifocal.interop.layouts import LAYOUTS, TABLE
from minifocal.interop.preprocess import Preprocess
from minifocal.interop.safetensors_file import read_safetensors
from minifocal.interop.tensors import COUNTER_DTYPES, StoredTensor
from minifocal.interop.torch_file import TORCH_SUFFIXES, read_torch
from minifocal.models.config import FocalNetConfig
from minifocal.training.checkpoint import METADATA, MODEL, read_header
from minifocal.training.run_folder import BEST, LAST, PREVIOUS

HF_FILES = ("model.safetensors", "pytorch_model.bin")  # timm's folders have them too
RUN_FILES = (BEST, LAST, PREVIOUS)
SHARDS_SUFFIX = ".index.json"
OWN_LAYOUT = "minifocal"
DESCRIPTION = "minifocal.description"  # our own words in a file of another layout
ZIP_SIGN, OLD_TORCH_SIGN = b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
STATE_ENTRIES = ("model", "state_dict")
PARALLEL_PREFIX = "module."  # of a network that PyTorch trained on several devices
HF_PREFIX = "focalnet."
MAX_NAME = 200  # characters

STEMS = {
    layout: f"{TABLE[0].name(layout)}{'/kernel' if layout == 'edifice' else '.weight'}"
    for layout in LAYOUTS
    if layout != OWN_LAYOUT
}
"""The one weight by which each layout is known."""


class Source(NamedTuple):
    """A file of weights, opened but not read.

    Attributes:
        path: of the file.
        layout: whose names and shapes its tensors have.
        tensors: by the names of the layout.
        description: what the file or its folder says about them.
        header: of a checkpoint of this package; None for others.
    """

    path: Path
    layout: str
    tensors: dict[str, StoredTensor]
    description: Description
    header: dict[str, Any] | None


def open_source(path: Path) -> Source:
    """Open a file of weights, or the one in a folder.

    Raises:
        InputError: there is none, it cannot be read, it is damaged, or it holds no weights of a FocalNet.
    """
    path = find_weights(path)
    found, description, metadata = _read(path)
    header = read_header(metadata, found, path) if METADATA in metadata else None
    try:
        if header is not None:
            tensors = {name.removeprefix(MODEL): tensor for name, tensor in found.items() if name.startswith(MODEL)}
            _check_tensors(tensors)
            return Source(path, OWN_LAYOUT, tensors, description, header)
        tensors = _plain_names(found)
        return Source(path, _layout(tensors), tensors, description, None)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def find_weights(path: Path) -> Path:
    """Give the file of weights: of a folder the first of the usual names, of a run its best checkpoint.

    Raises:
        InputError: there is none, it is in several parts, or it is no regular file.
    """
    try:
        there = path.exists()
    except OSError as error:  # a name that is too long
        raise cannot_read(path, error) from error
    if not there:
        raise InputError(f"there is no checkpoint {path}; weights are not fetched here: give a file or a folder")
    if not path.is_dir():
        check_regular(path)
        return path
    found = [path / name for name in (*HF_FILES, *RUN_FILES) if (path / name).is_file()]
    if found:
        return found[0]
    if any(path.glob(f"*{SHARDS_SUFFIX}")):
        raise InputError(f'{path} holds weights in parts; save them whole: save_pretrained(max_shard_size="99GB")')
    raise InputError(f"{path} holds no weights; give a file, or a folder with one of {', '.join(HF_FILES + RUN_FILES)}")


def _read(path: Path) -> tuple[dict[str, Any], Description, dict[str, str]]:
    """Open a file: what it holds by name, what it or its folder says about that, and a safetensors file's metadata."""
    beside = read_folder(path.parent) if path.name in HF_FILES else None
    try:
        with path.open("rb") as file:
            sign = file.read(16)
    except OSError as error:
        raise cannot_read(path, error) from error
    if sign.startswith(OLD_TORCH_SIGN):
        raise InputError(f"{path} was written by PyTorch before 1.6; load it in PyTorch and save it again")
    if not sign.startswith(ZIP_SIGN):
        if path.suffix in TORCH_SUFFIXES:
            raise InputError(f"{path} is no file of PyTorch 1.6 or newer: it is no zip archive; is it complete?")
        tensors, metadata = read_safetensors(path)
        return tensors, beside or _own_description(metadata.get(DESCRIPTION), path), metadata
    saved = read_torch(path)
    if not isinstance(saved, dict):
        raise InputError(f"{path} must hold weights by name, got a {type(saved).__name__}")
    beside = beside or read_official(saved.get("config"), path)
    state = next((saved[entry] for entry in STATE_ENTRIES if isinstance(saved.get(entry), dict)), saved)
    return state, beside or _own_description(saved.get(DESCRIPTION), path), {}


def _own_description(text: Any, path: Path) -> Description:
    """Read what `save_pretrained` puts beside weights of another layout; without it there is nothing to say."""
    if text is None:
        return Description("nothing")
    try:
        values = json.loads(text)
        names, preprocess = values["class_names"], values["preprocess"]
        return Description(
            f"the description in {path.name}",
            FocalNetConfig.from_dict(values["config"]).to_dict(),
            None if names is None else tuple(map(str, names)),
            None if preprocess is None else Preprocess.from_dict(preprocess),
        )
    except (KeyError, TypeError, RecursionError, ValueError) as error:  # an InputError is a ValueError
        raise InputError(f"{path}: its {DESCRIPTION} is damaged: {one_line(str(error))}") from error


def _plain_names(found: Mapping[Any, Any]) -> dict[str, StoredTensor]:
    """Take the prefix of a parallel network away, and give Hugging Face's bare model the prefix that others have."""
    _check_tensors(found)
    if found and all(name.startswith(PARALLEL_PREFIX) for name in found):
        found = {name.removeprefix(PARALLEL_PREFIX): tensor for name, tensor in found.items()}
    if any(HF_PREFIX + name == STEMS["hf"] for name in found):
        found = {HF_PREFIX + name: tensor for name, tensor in found.items()}
    return dict(found)


def _check_tensors(found: Mapping[Any, Any]) -> None:
    """Refuse what is no tensor, and names that no weight has and no message should hold."""
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor) or value.kind in COUNTER_DTYPES:
            raise InputError(f"{shown(name)} is no tensor of floating-point numbers; is this a file of weights?")
        if not name.isprintable() or len(name) > MAX_NAME:
            raise InputError(f"{shown(name)} is no name of a weight; the file is damaged")


def _layout(tensors: Mapping[str, StoredTensor]) -> str:
    """Tell whose names these are."""
    for layout, stem in STEMS.items():
        if stem in tensors:
            return layout
    some = ", ".join(sorted(tensors)[:3]) or "no tensor"
    raise InputError(f"expected weights of a FocalNet, such as {', '.join(STEMS.values())}; found {some[:200]}")
