"""Safetensors files: mapped, widened, and refused where they are damaged."""

import contextlib
import json
import re
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save

from minifocal import InputError
from minifocal.files import write_safetensors
from minifocal.interop.safetensors_file import read_safetensors
from minifocal.interop.tensors import StoredTensor

RNG = np.random.default_rng(0)
ARRAYS = {
    "a": RNG.standard_normal((2, 3)).astype("float32"),
    "b": RNG.standard_normal((4,)),
    "c": RNG.standard_normal((3, 1, 2)).astype("float16"),
}


def raw_file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.fixture
def read(tmp_path):
    def write_and_read(data):
        (tmp_path / "x.safetensors").write_bytes(data)
        return read_safetensors(tmp_path / "x.safetensors")

    return write_and_read


def test_tensors_and_metadata_come_back(read):
    tensors, metadata = read(save(ARRAYS, metadata={"format": "pt"}))
    assert metadata == {"format": "pt"}
    assert tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert tensors[name].shape == array.shape
        assert tensors[name].dtype == ("float64" if name == "b" else "float32")
        np.testing.assert_array_equal(tensors[name].read(), array)
        assert np.asarray(tensors[name]).dtype == tensors[name].dtype
        assert np.asarray(tensors[name], dtype="float16").dtype == "float16"
        np.testing.assert_array_equal(np.asarray(tensors[name].astype("float64")), array.astype("float64"))


def test_bfloat16_is_widened_exactly(read):
    values = np.array([1.0, -2.5, 3.140625, 2.0**-130], "<f4")
    upper = (values.view("<u4") >> 16).astype("<u2")
    tensors, _ = read(raw_file({"x": entry(0, 8, (2, 2), "BF16")}, upper.tobytes()))
    result = tensors["x"].read()
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, (values.view("<u4") & 0xFFFF0000).view("<f4").reshape(2, 2))


def test_a_file_without_metadata_is_read(read):
    assert read(save(ARRAYS))[1] == {}


def test_values_are_mapped_not_read(tmp_path):
    large = np.zeros((2**20, 4), dtype="float32")
    write_safetensors(tmp_path / "x.safetensors", {"x": large}, {})
    tracemalloc.start()
    tensors, _ = read_safetensors(tmp_path / "x.safetensors")
    assert tensors["x"].nbytes == large.nbytes
    assert tensors["x"].read().sum() == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_every_cut_within_the_header_and_the_data_is_refused_in_one_line(read):
    whole = save(ARRAYS, metadata={"format": "pt"})
    for length in range(len(whole)):
        with pytest.raises(InputError, match=r"x\.safetensors is no safetensors file, or it is cut short") as error:
            read(whole[:length])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        raw_file({"x": entry(0, 4), "y": entry(0, 4)}, bytes(4)),  # both in the same place
        raw_file({"x": entry(0, 8, (2,)), "y": entry(4, 12, (2,))}, bytes(12)),  # overlapping
        raw_file({"x": entry(0, 4), "y": entry(8, 12)}, bytes(12)),  # a hole between
        raw_file({"x": entry(0, 8, (2,))}, bytes(4)),  # beyond the end
        raw_file({"x": entry(0, 2**60, (2**58,))}, bytes(4)),
        raw_file({"x": entry(0, 4)}, bytes(8)),  # bytes that belong to nobody
        raw_file({"x": entry(4, 0)}, bytes(4)),
        raw_file({"x": entry(-4, 0)}, bytes(4)),
        raw_file({"x": entry(0, 4, (2,))}, bytes(4)),  # another size than the shape
        raw_file({"x": entry(0, 4, (2**63, 2**63))}, bytes(4)),
        raw_file({"x": entry(0, 4, (-1,))}, bytes(4)),
        raw_file({"x": {"dtype": "F32", "shape": [1]}}, bytes(4)),
        raw_file({"x": entry(0, 4, dtype="F33")}, bytes(4)),
        raw_file({"x": 7}, bytes(4)),
        raw_file(b"[]"),
        raw_file(b"{"),
        raw_file(b"\xff\xfe"),
        raw_file(b'{"x": ' * 5000 + b"}" * 5000),
        struct.pack("<Q", 2**62) + b"{}",  # a header of exabytes
        b"",
        b"PK",
        b"no weights at all, but some text that is longer than a header's length",
    ],
)
def test_a_damaged_header_is_refused_in_one_line_and_takes_no_memory(read, data):
    tracemalloc.start()
    with pytest.raises(InputError, match=r"x\.safetensors") as error:
        read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert peak < 2**20


def test_a_name_given_twice_is_read_once_and_within_the_file(read):
    twice = (
        b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,36]},"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    try:
        tensors, _ = read(raw_file(twice, bytes(4)))
    except InputError:
        return
    assert tensors["x"].read().shape == (1,)


@pytest.mark.parametrize("dtype", ["I64", "U8", "BOOL"])
def test_other_than_floating_point_is_refused(read, dtype):
    size = {"I64": 8, "U8": 1, "BOOL": 1}[dtype]
    with pytest.raises(InputError, match=re.escape(f"refused a tensor of type {dtype!r}; weights are F64, F32, F16")):
        read(raw_file({"x": entry(0, size, dtype=dtype)}, bytes(size)))


def test_a_file_that_shrinks_after_it_was_opened_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": ARRAYS["a"]}, {})
    tensors, _ = read_safetensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="has changed while it was read"):
        tensors["a"].read()
    path.unlink()
    with pytest.raises(InputError, match="cannot read"):
        tensors["a"].read()


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_safetensors(tmp_path / "file" / "x.safetensors", ARRAYS, {})
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_safetensors(tmp_path / "x.safetensors", ARRAYS, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "x.safetensors"]


def test_a_stored_tensor_of_another_type_is_refused(tmp_path):
    with pytest.raises(InputError, match="refused a tensor of type 'Q4'"):
        StoredTensor.locate(tmp_path / "x", "Q4", (1,), offset=0, available=4)


@pytest.mark.parametrize(
    ("shape", "strides", "available"),
    [
        ((2, 3), (3, 1), 24),
        ((2, 3), None, 24),
        ((), (), 4),
        ((2, 3), (1, 2), 24),
        ((1,) * 8, None, 4),
    ],
)
def test_a_tensor_that_lies_within_its_bytes_is_located(tmp_path, shape, strides, available):
    tensor = StoredTensor.locate(tmp_path / "x", "F32", shape, strides, offset=5, available=available)
    assert (tensor.shape, tensor.offset, tensor.dtype) == (shape, 5, "float32")


@pytest.mark.parametrize(
    ("shape", "strides", "available"),
    [
        ((2, 3), (3, 1), 23),
        ((2, 3), (4, 1), 24),
        ((2, 3), (1, 1), 20),  # elements shown twice
        ((7,), (0,), 24),
        ((2, 0), None, 24),
        ((2, -3), None, 24),
        ((2, 3), (3,), 24),
        ((2.0, 3), None, 24),
        ((True, 3), None, 24),
        ((1,) * 9, None, 4),
        ((2**70,), None, 24),
    ],
)
def test_a_tensor_that_does_not_is_refused(tmp_path, shape, strides, available):
    with pytest.raises(InputError, match="the file is damaged"):
        StoredTensor.locate(tmp_path / "x", "F32", shape, strides, offset=0, available=available)


def test_a_header_that_the_library_has_not_seen_is_held_to_the_file_too(read, monkeypatch):
    """The file may become another one between its look and ours."""
    monkeypatch.setattr(safetensors, "safe_open", lambda path, framework: contextlib.nullcontext())
    tensors, _ = read(raw_file({"x": entry(4, 8)}, bytes(8)))
    assert tensors["x"].shape == (1,)
    for begin, end in ((8, 12), (-4, 0), (4, 0)):
        with pytest.raises(InputError, match=r"x\.safetensors: a tensor lies outside of the file"):
            read(raw_file({"x": entry(begin, end)}, bytes(8)))
