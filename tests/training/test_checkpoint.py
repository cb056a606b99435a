"""Checkpoints: exact, whole or not at all, and clear about what does not fit."""

import json
import os
import stat
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import minifocal as mf
from minifocal.errors import InputError
from minifocal.files import write_safetensors
from minifocal.interop import open_pretrained, save_pretrained
from minifocal.layers.initializers import LeCun
from minifocal.layers.linear import Linear
from minifocal.training.checkpoint import DamagedCheckpointError
from minifocal.training.loss_scale import LossScaler


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


def parts(path):
    """All that a file gives, as values that can be compared."""
    checkpoint = mf.load_checkpoint(path)
    arrays = {**checkpoint.model, **{f"optimizer {name}": array for name, array in checkpoint.optimizer.items()}}
    bits = {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}
    return bits, checkpoint.description, checkpoint.steps, checkpoint.meta


@pytest.mark.parametrize("read", [parts, lambda path: open_pretrained(path).build().state_dict()], ids=["own", "any"])
def test_a_byte_that_is_changed_anywhere_is_seen(tmp_path, read):
    path = tmp_path / "a.safetensors"
    model = network(hidden_size=2)
    mf.save_checkpoint(path, model, mf.SGD(model, 0.1), note="x")
    whole = path.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    padding = len(whole[: 8 + header].rstrip(b" "))  # blanks, which may be changed for other white space
    rng = np.random.default_rng(0)
    for place in {
        *range(8),
        *rng.integers(8, padding, 40).tolist(),
        *rng.integers(8 + header, len(whole), 40).tolist(),
    }:
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with pytest.raises(InputError) as error:
            read(path)
        assert str(error.value).isprintable()
        assert "a.safetensors" in str(error.value)


def test_numbers_that_were_exchanged_are_damage(tmp_path):
    path = tmp_path / "a.safetensors"
    mf.save_checkpoint(path, network())
    with safe_open(path, framework="numpy") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    arrays["model.norm.weight"], arrays["model.norm.bias"] = arrays["model.norm.bias"], arrays["model.norm.weight"]
    save_file(arrays, path, metadata)
    with pytest.raises(DamagedCheckpointError, match="its checksum is of other numbers"):
        mf.load_checkpoint(path)


def test_a_checkpoint_of_the_format_before_the_checksum_is_read(tmp_path):
    model = network(seed=3)
    header = {"format": "minifocal checkpoint 1", "description": model.describe(), "steps": 7, "meta": {"note": "x"}}
    arrays = {f"model.{name}": array for name, array in model.state_dict().items()}
    save_file(arrays, tmp_path / "a.safetensors", metadata={"minifocal": json.dumps(header)})
    checkpoint = mf.load_checkpoint(tmp_path / "a.safetensors")
    assert (checkpoint.steps, checkpoint.meta) == (7, {"note": "x"})
    assert all(np.array_equal(checkpoint.model[name], array) for name, array in model.state_dict().items())
    header["format"] = "minifocal checkpoint 2"
    save_file(arrays, tmp_path / "a.safetensors", metadata={"minifocal": json.dumps(header)})
    with pytest.raises(DamagedCheckpointError, match="it has no checksum"):
        mf.load_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "uint8", "bool"])
def test_what_is_written_the_library_reads(tmp_path, dtype):
    rng = np.random.default_rng(0)
    arrays = {
        "turned": rng.integers(0, 2, (3, 4)).astype(dtype).T,
        "scalar": np.array(1, dtype),
        "empty": np.zeros((0, 5), dtype),
        "narrow": np.arange(3, dtype="uint8"),  # would put what follows off its alignment
        "big-endian": np.arange(6, dtype=">f4"),
    }
    write_safetensors(tmp_path / "a.safetensors", arrays, {"k": "Φ"})
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        assert file.metadata() == {"k": "Φ"}
        assert set(file.keys()) == arrays.keys()
        for name, array in arrays.items():
            found = file.get_tensor(name)
            assert (found.shape, found.dtype.name) == (array.shape, array.dtype.name)
            np.testing.assert_array_equal(found, array)


def test_the_metadata_may_be_empty_and_others_may_read_the_file_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_safetensors(tmp_path / "a.safetensors", {"a": np.zeros(3)}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_checkpoint_of_a_run_in_float16_is_opened_beside_the_count_of_its_loss_scaler(tmp_path):
    path = tmp_path / "a.safetensors"
    model = network(precision="float16", ops="reference")
    mf.save_checkpoint(path, model, mf.SGD(model, 0.1), LossScaler(model))
    opened = open_pretrained(path).build()
    assert all(np.array_equal(opened.state_dict()[name], array) for name, array in model.state_dict().items())


def test_weights_that_are_counts_are_refused(tmp_path):
    save_file({"patch_embed.proj.weight": np.zeros((2, 3), "int32")}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="is no tensor of floating-point numbers"):
        open_pretrained(tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_that_another_takes_the_place_of_while_it_is_read_is_not_read_as_the_first(tmp_path, suffix):
    """As the checkpoint of a run that goes on: its header, and so where its numbers lie, changes with every save."""
    path = tmp_path / f"a{suffix}"
    model = network(seed=1, modulation="focal", patch_size=2, hidden_size=4)
    layout = {".safetensors": "minifocal", ".pth": "official"}[suffix]
    save_pretrained(model, path, layout=layout)
    opened = open_pretrained(path)
    save_pretrained(model, path, layout=layout, class_names=["a" * 17, "b", "c"])
    with pytest.raises(InputError, match="has changed while it was read; read it again"):
        opened.build()
    assert np.array_equal(open_pretrained(path).build().head.weight.data, model.head.weight.data)


@pytest.mark.parametrize("steps", [-1, True, 2**63])
def test_a_number_of_steps_that_is_none_is_refused(tmp_path, steps):
    header = {"format": "minifocal checkpoint 1", "description": {}, "steps": steps, "meta": {}}
    save_file({"a": np.zeros(3)}, tmp_path / "a.safetensors", metadata={"minifocal": json.dumps(header)})
    with pytest.raises(InputError, match=f"no checkpoint that minifocal wrote, or it is damaged.*steps is {steps}"):
        mf.load_checkpoint(tmp_path / "a.safetensors")


def test_a_layer_by_itself_is_kept_without_a_description(tmp_path):
    mf.save_checkpoint(tmp_path / "a.safetensors", Linear(3, 2, init=LeCun()))
    checkpoint = mf.load_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.description == {}
    assert checkpoint.model.keys() == {"weight", "bias"}
    with pytest.raises(InputError, match="does not describe a FocalNet"):
        mf.FocalNet.from_checkpoint(checkpoint)
