"""A disk that fails while a file is opened ends in one line that names the file, whatever was to be read."""

import errno
import os

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

import minifocal as mf
from minifocal import InputError
from minifocal.data.folder import read_image
from minifocal.data.idx import read_idx
from minifocal.files import read_bytes
from minifocal.interop.safetensors_file import read_safetensors
from minifocal.layers.initializers import LeCun
from minifocal.layers.linear import Linear

READERS = {
    "weights.safetensors": read_safetensors,
    "checkpoint.safetensors": mf.load_checkpoint,
    "digits.idx": read_idx,
    "cat.png": read_image,
    "config.json": lambda path: read_bytes(path, 100),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(save({"a": np.zeros(3)}))
    mf.save_checkpoint(tmp_path / "checkpoint.safetensors", Linear(3, 2, init=LeCun()))
    (tmp_path / "digits.idx").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 7]))
    Image.new("RGB", (4, 3)).save(tmp_path / "cat.png")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_the_disk_does_not_give_is_named(name, folder, monkeypatch):
    READERS[name](folder / name)  # in health

    def fail(path, *arguments, **options):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(type(folder), "open", fail)
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(InputError) as error:
        READERS[name](folder / name)
    expected = f"cannot read {folder / name}: {os.strerror(errno.EIO)}; check the path and its permissions"
    assert str(error.value) == expected
