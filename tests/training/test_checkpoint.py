"""Checkpoints: exact, whole or not at all, and clear about what does not fit."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

import minifocal as mf
from minifocal.errors import InputError


def network(**options):
    options = {"image_size": 8, "patch_size": 4, "hidden_size": 6, "num_layers": 1, "num_classes": 3, **options}
    return mf.FocalNet.build(in_channels=1, focal_levels=1, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_optimizer_and_meta_come_back_bit_for_bit(tmp_path, dtype):
    model = network(dtype=dtype, seed=3)
    optimizer = mf.SGD(model, 0.1)
    for parameter in model.parameters():
        parameter.grad += 0.1
    optimizer.step()
    mf.save_checkpoint(tmp_path / "a.safetensors", model, optimizer, note="x", numbers=[0.1, 2**70])

    checkpoint = mf.load_checkpoint(tmp_path / "a.safetensors")
    other = network(dtype=dtype, seed=4)
    other_optimizer = mf.SGD(other, 0.1)
    checkpoint.restore(other, other_optimizer)
    for name, array in model.state_dict().items():
        assert np.array_equal(other.state_dict()[name], array)
        assert other.state_dict()[name].dtype == dtype
    for name, array in optimizer.state_dict().items():
        assert np.array_equal(other_optimizer.state_dict()[name], array)
    assert other_optimizer.steps == 1
    assert checkpoint.meta == {"note": "x", "numbers": [0.1, 2**70]}


@pytest.mark.parametrize("modulation", ["sigmoid_gate", "focal", "box_mean"])
def test_a_network_is_built_again_from_its_checkpoint_alone(tmp_path, modulation):
    model = network(modulation=modulation, seed=3)
    mf.save_checkpoint(tmp_path / "a.safetensors", model)
    again = mf.FocalNet.from_checkpoint(mf.load_checkpoint(tmp_path / "a.safetensors"))
    images = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    assert again.config == model.config
    assert np.array_equal(again(images), model(images))


def test_saving_again_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    for seed in (1, 2):
        mf.save_checkpoint(tmp_path / "a.safetensors", network(seed=seed))
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert np.array_equal(
        mf.load_checkpoint(tmp_path / "a.safetensors").model["head.weight"], network(seed=2).head.weight.data
    )


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    mf.save_checkpoint(path, network(seed=1))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"cannot write .*No space left"):
        mf.save_checkpoint(path, network(seed=2))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_another_network_is_refused_by_names_and_shapes_and_nothing_changes(tmp_path):
    mf.save_checkpoint(tmp_path / "a.safetensors", network(hidden_size=5))
    model = network()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    with pytest.raises(InputError, match=r"another network: .*head\.weight is \(6, 3\) float32 here and \(5, 3\)"):
        mf.load_checkpoint(tmp_path / "a.safetensors").restore(model)
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())


def test_another_optimizer_is_refused_before_anything_changes(tmp_path):
    model = network(seed=1)
    mf.save_checkpoint(tmp_path / "a.safetensors", model, mf.SGD(model, 0.1))
    other = network(seed=2)
    before = other.head.weight.data.copy()
    with pytest.raises(InputError, match="not of AdamW"):
        mf.load_checkpoint(tmp_path / "a.safetensors").restore(other, mf.AdamW(other))
    assert np.array_equal(other.head.weight.data, before)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no checkpoint .*gone\.safetensors"):
        mf.load_checkpoint(tmp_path / "gone.safetensors")


def test_a_file_cut_anywhere_gives_a_clear_error(tmp_path):
    path = tmp_path / "a.safetensors"
    mf.save_checkpoint(path, network())
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="no checkpoint that minifocal wrote, or it is damaged"):
            mf.load_checkpoint(path)


@pytest.mark.parametrize("metadata", [None, {"minifocal": "{"}, {"minifocal": "[]"}, {"minifocal": "{}"}])
def test_a_foreign_safetensors_file_is_refused(tmp_path, metadata):
    save_file({"a": np.zeros(3)}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(InputError, match="no checkpoint that minifocal wrote"):
        mf.load_checkpoint(tmp_path / "a.safetensors")


def test_a_newer_format_is_named(tmp_path):
    header = {"format": "minifocal checkpoint 99"}
    save_file({"a": np.zeros(3)}, tmp_path / "a.safetensors", metadata={"minifocal": json.dumps(header)})
    with pytest.raises(InputError, match="'minifocal checkpoint 99'; this version reads"):
        mf.load_checkpoint(tmp_path / "a.safetensors")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*choose another folder"):
        mf.save_checkpoint(tmp_path / "file" / "a.safetensors", network())
