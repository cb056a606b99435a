import gzip
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minifocal.data.idx import mnist_splits, read_idx
from minifocal.errors import InputError


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), compress=st.booleans())
def test_what_is_written_is_read(shape, compress, idx_bytes, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    path = tmp_path / "any name"
    path.write_bytes(gzip.compress(idx_bytes(values)) if compress else idx_bytes(values))
    result = read_idx(path)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, values)


@pytest.mark.parametrize("compress", [False, True])
def test_every_truncation_is_refused(compress, idx_bytes, tmp_path):
    data = idx_bytes(np.arange(6, dtype=np.uint8).reshape(1, 2, 3))
    data = gzip.compress(data) if compress else data
    path = tmp_path / "short"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match="short"):
            read_idx(path)


@pytest.mark.parametrize("compress", [False, True])
def test_one_byte_too_many_is_refused(compress, idx_bytes, tmp_path):
    data = idx_bytes(np.arange(6, dtype=np.uint8)) + b"x"
    (tmp_path / "long").write_bytes(gzip.compress(data) if compress else data)
    with pytest.raises(InputError, match="announces 6 bytes, but there are more; download it again"):
        read_idx(tmp_path / "long")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected an IDX file starting with bytes 00 00, got b''"),
        (b"\x89PNG\r\n", "expected an IDX file starting with bytes 00 00, got b'.x89PNG'"),
        (b"\0\0\x0d\x01\0\0\0\1" + b"1234", "got type 13 with 1; is this the right file"),
        (b"\0\0\x08\x00", "got type 8 with 0"),
        (b"\0\0\x08\x05" + b"\0\0\0\1" * 5 + b"1", "with 1 to 4 axes, got type 8 with 5"),
        (b"\0\0\x08\x02\0\0\0", "the IDX header is cut short"),
        (b"\0\0\x08\x03\0\0\0\2\0\0\0\2\0\0\0\2abc", "announces 8 bytes, but there are only 3"),
        (b"\0\0\x08\x04" + b"\xff" * 16, "the header claims the shape .4294967295, .*, more than 1073741824 bytes"),
        (b"\x1f\x8bno gzip at all", "the gzip data is damaged or cut short"),
    ],
)
def test_a_foreign_or_lying_file_is_refused(data, message, tmp_path):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_idx(tmp_path / "file")


def test_a_damaged_gzip_body_is_refused(idx_bytes, tmp_path):
    data = bytearray(gzip.compress(idx_bytes(np.arange(200, dtype=np.uint8))))
    data[-6] ^= 0xFF  # the checksum at the end
    (tmp_path / "file.gz").write_bytes(data)
    with pytest.raises(InputError, match="gzip data is damaged"):
        read_idx(tmp_path / "file.gz")


@pytest.mark.parametrize("target", ["missing", "."])
def test_a_file_that_cannot_be_read_is_refused(target, tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*; (check the path|give a file)"):
        read_idx(tmp_path / target)


def peak_bytes_of_refusal(path):
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read_idx(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_gzip_bomb_is_refused_without_unpacking_it(tmp_path):
    header = struct.pack(">BBBBI", 0, 0, 8, 1, 10)
    (tmp_path / "bomb").write_bytes(gzip.compress(header + bytes(2**26)))
    assert peak_bytes_of_refusal(tmp_path / "bomb") < 2**22


def test_a_large_claim_is_refused_without_making_room_for_it(tmp_path):
    (tmp_path / "claim").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 2**30) + b"few")
    assert peak_bytes_of_refusal(tmp_path / "claim") < 2**23


@pytest.fixture
def mnist(tmp_path, idx_bytes):
    """Write four small files and give them as arrays by name."""
    rng = np.random.default_rng(1)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (7, 28, 28)).astype(np.uint8),
        "train-labels-idx1-ubyte": np.array([0, 9, 1, 2, 3, 4, 5], dtype=np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (3, 28, 28)).astype(np.uint8),
        "t10k-labels-idx1-ubyte": np.array([5, 9, 0], dtype=np.uint8),
    }
    for index, (name, values) in enumerate(arrays.items()):
        if index % 2:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(values)))
        else:
            (tmp_path / name).write_bytes(idx_bytes(values))
    return arrays


@pytest.mark.parametrize(("name", "last"), [("mnist", "9"), ("fashion-mnist", "Ankle boot")])
def test_mnist_is_read_from_plain_and_compressed_files(name, last, mnist, tmp_path):
    splits = mnist_splits(tmp_path, name)
    np.testing.assert_array_equal(splits.train.images[:, 0], mnist["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(splits.test.images[:, 0], mnist["t10k-images-idx3-ubyte"])
    assert splits.train.labels.tolist() == [0, 9, 1, 2, 3, 4, 5]
    assert splits.test.labels.tolist() == [5, 9, 0]
    assert (splits.name, splits.train.class_names[-1]) == (name, last)
    assert splits.train.max_value == 255.0


def test_a_missing_file_says_how_to_fetch_it(mnist, tmp_path):
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(InputError, match=r"has no t10k-images-idx3-ubyte .*; run: minifocal data fetch fashion-mnist"):
        mnist_splits(tmp_path, "fashion-mnist")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("train-images-idx3-ubyte", np.zeros((7, 28), np.uint8), "images with 3 axes, got shape .7, 28."),
        ("train-images-idx3-ubyte", np.zeros((8, 28, 28), np.uint8), "expected 8 labels, .* got shape .7,."),
        ("t10k-images-idx3-ubyte", np.zeros((3, 28, 20), np.uint8), "the same image shape"),
        ("t10k-images-idx3-ubyte", np.zeros((3, 0, 28), np.uint8), "empty dataset"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(name, values, message, mnist, idx_bytes, tmp_path):
    (tmp_path / name).write_bytes(idx_bytes(values))
    with pytest.raises(InputError, match=message):
        mnist_splits(tmp_path, "mnist")


def test_a_label_out_of_range_names_file_and_image(mnist, idx_bytes, tmp_path):
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.array([5, 10, 0], dtype=np.uint8)))
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte: labels must be 0 to 9 .* got 10 for image 1"):
        mnist_splits(tmp_path, "mnist")


def test_another_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected one of mnist, fashion-mnist, got 'kmnist'"):
        mnist_splits(tmp_path, "kmnist")
