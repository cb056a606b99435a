"""Weights at the corners of what they may be: a list, a folder of something else, names without a classifier."""

import json
import struct
import zipfile

import numpy as np
import pytest

from minifocal import FocalNet, FocalNetConfig, InputError
from minifocal.interop import open_pretrained, save_pretrained, tensors
from minifocal.interop.torch_file import MAX_DIRECTORY_BYTES, read_torch

TINY = FocalNetConfig(
    image_size=(16, 24), patch_size=4, in_chans=1, num_classes=0, embed_dim=6, depths=(1, 2), mlp_ratio=2.0,
    focal_levels=(2, 1), focal_windows=(3, 5),
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A network without a classifier, as Hugging Face lays it out."""
    save_pretrained(FocalNet(TINY, init="zeros"), tmp_path / "a")
    return tmp_path / "a"


def rewrite(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in {**config, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_file_that_holds_a_list_has_no_weights_by_name(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02].")
    with pytest.raises(InputError, match=r"a\.pth must hold weights by name, got a list"):
        open_pretrained(path)


def test_an_archive_of_a_version_that_nobody_knows_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02].")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99  # ten times the version that it takes to unpack the member
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pth is no archive that PyTorch writes: zip file version 9\.9"):
        read_torch(path)


def test_names_of_classes_without_a_classifier_are_left_out_in_silence(folder):
    rewrite(folder, id2label={"0": "cat", "1": "dog"})
    opened = open_pretrained(folder)
    assert (opened.class_names, opened.config.num_classes) == (None, 0)
    assert opened.warnings == ()


def test_a_configuration_of_something_else_beside_the_weights_says_nothing_of_them(folder):
    rewrite(folder, model_type=None)
    given = {"image_size": (16, 24), "use_postln": False, "normalize_modulator": False}
    opened = open_pretrained(folder / "model.safetensors", **given)
    assert opened.config.depths == (1, 2)
    assert not any("config.json" in line for line in opened.inferred)


def test_a_table_that_does_not_exist_is_no_fault_of_the_weights(folder):
    with pytest.raises(InputError, match=r"^ops must be one of"):
        open_pretrained(folder).build(ops="torch")


def test_preprocessing_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^preprocess must be a Preprocess, got dict"):
        save_pretrained(FocalNet(TINY, init="zeros"), tmp_path / "b", preprocess={"size": np.float32(3)})
    assert not (tmp_path / "b").exists()


def test_weights_that_stand_alone_say_for_themselves_what_they_are(folder):
    (folder / "config.json").unlink()
    given = {"image_size": (16, 24), "use_postln": False, "normalize_modulator": False}
    assert open_pretrained(folder / "model.safetensors", **given).config.depths == (1, 2)


def test_a_shape_of_thousands_of_axes_is_refused_before_anything_is_made_of_it(tmp_path, monkeypatch):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1] * 5000, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    monkeypatch.setattr(tensors, "_contiguous", None)
    with pytest.raises(InputError, match=r"a tensor has 5000 axes, expected at most 8; the file is damaged"):
        open_pretrained(tmp_path / "a.safetensors")


def test_an_archive_of_more_members_than_any_has_is_refused_by_its_directory(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as file:
        for number in range(MAX_DIRECTORY_BYTES // 50):
            file.writestr(f"a/data/{number}", b"")
    with pytest.raises(InputError, match=r"a\.pth: its directory has \d{7} bytes, expected at most 1048576"):
        read_torch(path)


@pytest.mark.parametrize("value", [-1e308, 0.0, -4.0])
def test_a_ratio_that_no_network_has_is_told_and_the_weights_one_taken(folder, value):
    rewrite(folder, mlp_ratio=value)
    (warning,) = open_pretrained(folder).warnings
    assert f"says mlp_ratio is {value}; the weights have 2.0, which is used" in warning


def test_a_factor_of_pixels_beyond_floating_point_is_refused(folder):
    values = {"do_rescale": True, "rescale_factor": 10**308, "crop_size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"preprocessor_config\.json: "):
        open_pretrained(folder)
