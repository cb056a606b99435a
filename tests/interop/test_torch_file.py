"""PyTorch's files: read as PyTorch wrote them, refused where they are hostile, written so that they read back."""

import io
import math
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published import CKPT

from minifocal import InputError, interop
from minifocal.interop.tensors import StoredTensor
from minifocal.interop.torch_file import read_torch, write_torch

SHAPE = (2, 3, 4)
VALUES = np.arange(24, dtype=np.float32).reshape(SHAPE)


def unicode(text):
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integers(values):
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


# A pair of a pair with itself of a pair with itself, ...: forty pairs, but a million million brackets to print.
LAUGHS = b"N" + b"".join(b"q%ch%c\x86" % (number, number) for number in range(40))


def storage(kind=b"FloatStorage", key="0", count=24):
    key = unicode(key) if isinstance(key, str) else key
    count = b"\x8a\x0a" + count.to_bytes(10, "little", signed=True) if isinstance(count, int) else count
    return b"(" + unicode("storage") + b"ctorch\n" + kind + b"\n" + key + unicode("cpu") + count + b"tQ"


def tensor(where=None, start=0, shape=SHAPE, strides=(12, 4, 1)):
    numbers = b"J" + struct.pack("<i", start) + integers(shape) + integers(strides)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + (storage() if where is None else where) + numbers + hooks + b"tR"


def program(value):
    return b"\x80\x02}" + unicode("model") + b"}" + unicode("a") + value + b"ss."


@pytest.fixture
def make(tmp_path):
    """Write an archive as PyTorch lays it out, and give its path."""

    def archive(pickled, storages=None, compression=zipfile.ZIP_STORED, extra=()):
        path = tmp_path / "weights.pth"
        with zipfile.ZipFile(path, "w", compression) as file:
            file.writestr("weights/data.pkl", pickled)
            for name, content in extra:
                file.writestr(name, content)
            for key, content in enumerate([VALUES.tobytes()] if storages is None else storages):
                file.writestr(f"weights/data/{key}", content)
        return path

    return archive


def read(path):
    return read_torch(path)["model"]["a"].read()


def test_a_file_of_pytorch_gives_what_pytorch_saved():
    official = read_torch(CKPT / "official.pth")["model"]
    timm = interop.state_dict(
        interop.load_pretrained(CKPT / "timm.safetensors", normalize_modulator=False), layout="official"
    )
    assert official.keys() == timm.keys()
    for name, stored in official.items():
        np.testing.assert_array_equal(stored.read(), timm[name])


def test_a_training_checkpoint_gives_all_its_entries():
    saved = read_torch(CKPT / "training.pth")
    assert saved.keys() == {"model", "optimizer", "lr_scheduler", "max_accuracy", "epoch", "config"}
    assert (saved["max_accuracy"], saved["epoch"]) == (81.25, 3)
    assert saved["config"]["MODEL"]["FOCAL"]["FOCAL_LEVELS"] == [3, 2]
    assert saved["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert saved["optimizer"]["state"][0]["exp_avg"].shape == (10, 16)


@pytest.mark.parametrize(
    ("start", "shape", "strides"),
    [
        (0, (2, 3, 4), (12, 4, 1)),
        (5, (3, 2), (4, 1)),
        (1, (4, 3), (1, 5)),
        (2, (2, 2, 3), (9, 3, 1)),
        (7, (), ()),
        (23, (1,), (999,)),
        (0, (24,), (1,)),
    ],
)
def test_offsets_and_strides_are_respected(make, start, shape, strides):
    bytes_strides = [4 * stride for stride in strides]
    expected = np.lib.stride_tricks.as_strided(VALUES.ravel()[start:], shape, bytes_strides)
    np.testing.assert_array_equal(read(make(program(tensor(None, start, shape, strides)))), expected)


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [(b"DoubleStorage", "<f8", "float64"), (b"FloatStorage", "<f4", "float32"), (b"HalfStorage", "<f2", "float32")],
)
def test_floating_point_types_are_read_and_halves_widened(make, kind, dtype, expected):
    values = np.random.default_rng(3).standard_normal(24).astype(dtype)
    result = read(make(program(tensor(storage(kind))), [values.tobytes()]))
    assert result.dtype == expected
    np.testing.assert_array_equal(result, values.astype(expected).reshape(SHAPE))


def test_bfloat16_is_the_upper_half_of_float32(make):
    values = np.random.default_rng(4).standard_normal(24).astype("<f4")
    upper = (values.view("<u4") >> 16).astype("<u2")
    expected = (values.view("<u4") & 0xFFFF0000).view("<f4").reshape(SHAPE)
    np.testing.assert_array_equal(read(make(program(tensor(storage(b"BFloat16Storage"))), [upper.tobytes()])), expected)


def test_tensors_of_integers_are_none(make):
    path = make(program(tensor(storage(b"LongStorage"))), [bytes(24 * 8)])
    assert read_torch(path) == {"model": {"a": None}}


def test_options_in_a_training_checkpoint_are_left_out(make):
    namespace = unicode("args") + b"cargparse\nNamespace\n)\x81}" + unicode("lr") + b"K\x01sb"
    saved = read_torch(make(b"\x80\x02}(" + namespace + unicode("a") + tensor() + b"u."))
    assert saved["args"] == {}
    np.testing.assert_array_equal(saved["a"].read(), VALUES)


def test_a_shape_that_changes_after_it_was_checked_changes_nothing(make):
    """A list as shape or strides is remembered by the pickle, which can append to it later."""
    lists = b"]q\x01(K\x02K\x03e" + b"]q\x02(K\x03K\x01e"
    built = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + b"K\x00" + lists + b"\x89NtR"
    later = unicode("b") + b"h\x01(M\xff\xffe" + unicode("c") + b"h\x02(J\x00\x00\x00\x80e"
    saved = read_torch(make(b"\x80\x02}(" + unicode("a") + built + later + b"u."))
    assert saved["b"] == [2, 3, 65535]
    np.testing.assert_array_equal(saved["a"].read(), VALUES.ravel()[:6].reshape(2, 3))


def test_a_view_of_bfloat16_widens_what_it_shows_alone(make, tmp_path):
    upper = np.arange(2**20, dtype="<u2")
    path = make(program(tensor(storage(b"BFloat16Storage", count=2**20), 0, (2, 3), (2**19, 5))), [upper.tobytes()])
    stored = read_torch(path)["model"]["a"]
    tracemalloc.start()
    values = stored.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**16
    expected = (upper.astype("<u4") << 16).view("<f4")[np.add.outer([0, 2**19], [0, 5, 10])]
    np.testing.assert_array_equal(values, expected)


def test_two_tensors_may_share_a_storage(make):
    pair = b"\x80\x02]" + tensor() + b"a" + tensor(None, 12, (3, 4), (4, 1)) + b"a."
    whole, half = read_torch(make(pair))
    np.testing.assert_array_equal(whole.read()[1], half.read())


# Hostile files


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "name"), [(os.system, f"{os.system.__module__}.system"), (eval, "(__builtin__|builtins).eval")]
)
def test_code_is_refused_by_name_and_not_run(make, tmp_path, function, name, protocol):
    marker = tmp_path / "executed"
    text = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w')"
    for value in (Call(function, text), {"model": {"a": Call(function, text)}}, [Call(dict, Call(function, text))]):
        path = make(pickle.dumps(value, protocol))
        with pytest.raises(InputError, match=f"refused a pickle that names '({name}|__builtin__.dict|builtins.dict)'"):
            read_torch(path)
        with pytest.raises(InputError, match="refused a pickle that names"):
            interop.load_pretrained(path)
    assert not marker.exists()


def nested_reduce(path):
    inner = b"cposix\nsystem\n(" + unicode(f"touch {path}") + b"tR"
    return b"ccollections\nOrderedDict\n(" + inner + b"tR"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tensor(storage(count=25)), "claims 25 elements of 4 bytes and has 96 bytes"),
        (tensor(storage(count=10 * 2**40)), "claims 10995116277760 elements"),
        (tensor(storage(count=-24)), "claims -24 elements"),
        (tensor(storage(key="1")), "storage '1' is missing"),
        (tensor(storage(key="../../0")), "storage '../../0' is missing"),
        (tensor(storage(kind=b"QInt8Storage")), "names 'torch.QInt8Storage'"),
        (tensor(None, 1), "does not lie in its 23 elements"),
        (tensor(None, -1), "begins at element -1 of its storage"),
        (tensor(None, 0, (3, 3, 4)), "does not lie in its 24 elements"),
        (tensor(None, 0, (2, 0, 4)), None),
        (tensor(None, 0, (2, -3, 4)), r"has shape \(2, -3, 4\) and strides"),
        (tensor(None, 0, (2**31 - 1,), (0,)), "does not lie in its 24 elements"),
        (tensor(None, 0, (2, 3, 4), (12, 4, 2**31 - 1)), "does not lie in its 24 elements"),
        (tensor(None, 0, (2, 3), (12, 4, 1)), r"has shape \(2, 3\) and strides \(12, 4, 1\)"),
        (tensor(None, 0, (1,) * 9, (1,) * 9), "has 9 axes, expected at most 8"),
        (tensor(b"N"), None),
        (tensor(b"K\x05"), "arguments it does not take"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "arguments it does not take"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + b"K\x00NNNNtR", "arguments it does not take"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + b"NNNNNtR", "begins at element None"),
        (tensor(storage(count=LAUGHS)), r"claims \(a tuple, a tuple\) elements"),
        (tensor(storage(key=LAUGHS)), "does not say where its numbers lie"),
        (LAUGHS + unicode("x") + b"\x93", "names a tuple and a str"),
        (unicode("x") + LAUGHS + b"\x93", "names a str and a tuple"),
        (b"ctorch._utils\n_rebuild_parameter\n(" + tensor() + b"tR", "names 'torch._utils._rebuild_parameter'"),
        (b"ccollections\nOrderedDict\n(" + unicode("x") + b"tR", "calls collections.OrderedDict with arguments"),
        (nested_reduce("nowhere"), "names 'posix.system'"),
        (b"ctorch\nFloatStorage\n)R", "calls a StorageType"),
        (b"(" + unicode("storage") + b"tQ", "damaged"),
        (b"(" + unicode("module") + b"NNNNtQ", "does not say where its numbers lie"),
        (b"X\xff\xff\xff\xff", "damaged"),
    ],
)
def test_a_hostile_pickle_is_refused_in_one_line_and_takes_no_memory(make, value, message):
    path = make(program(value))
    tracemalloc.start()
    try:
        if message is None:
            assert read_torch(path)["model"]["a"] is None
        else:
            with pytest.raises(InputError, match=message) as error:
                read_torch(path)
            assert "\n" not in str(error.value)
            assert str(error.value).startswith(str(path))
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20


def test_values_that_take_for_ever_to_print_are_named_by_their_type(make):
    entries = unicode("model") + b"}" + unicode("patch_embed.proj.weight") + LAUGHS + b"s"
    with pytest.raises(InputError, match=r"'patch_embed.proj.weight' is no tensor"):
        interop.load_pretrained(make(b"\x80\x02}(" + entries + b"u."))
    focal = unicode("FOCAL") + b"}" + unicode("DEPTHS") + LAUGHS + b"s"
    config = unicode("config") + b"}" + unicode("MODEL") + b"}" + focal + b"ss"
    weights = unicode("model") + b"}" + unicode("patch_embed.proj.weight") + tensor() + b"s"
    with pytest.raises(InputError, match=r"patch_embed.proj.weight is \(2, 3, 4\), not of 4 axes"):
        interop.load_pretrained(make(b"\x80\x02}(" + weights + config + b"u."))
    huge = b"\x8b" + struct.pack("<i", 5000) + b"\x01" * 5000  # a number of twelve thousand digits
    with pytest.raises(InputError, match="a key that is a int"):
        interop.load_pretrained(make(b"\x80\x02}" + huge + b"K\x01s."))


def test_a_name_that_this_reader_does_not_know_comes_with_a_remedy(make):
    remedy = r"names 'numpy.float64'; where you trust the file, save its weights alone: torch.save\("
    with pytest.raises(InputError, match=remedy):
        read_torch(make(b"\x80\x02cnumpy\nfloat64\n)\x81."))


def test_deep_recursion_is_refused(make):
    depth = 2**18
    for nested in (b")" + b"\x85" * depth, b"(" * depth + b"t" * depth, b"]" * depth + b"a" * (depth - 1)):
        with pytest.raises(InputError):
            read_torch(make(b"\x80\x02}" + nested + b"K\x01s."))
        with pytest.raises(InputError, match="no tensor of floating-point numbers"):
            interop.load_pretrained(make(b"\x80\x02}" + unicode("a") + nested + b"s."))


def test_a_pickle_larger_than_any_of_weights_is_not_run(make):
    with pytest.raises(InputError, match=r"'weights/data.pkl' has 1048577 bytes, expected at most 1048576"):
        read_torch(make(bytes(2**20 + 1)))


def test_compressed_members_are_refused(make):
    with pytest.raises(InputError, match=r"'weights/data.pkl' is compressed, which PyTorch never does"):
        read_torch(make(program(tensor()), compression=zipfile.ZIP_DEFLATED))


def test_an_archive_of_something_else_is_refused(make, tmp_path):
    with pytest.raises(InputError, match=r"expected one data.pkl in one folder, found 2"):
        read_torch(make(program(tensor()), extra=[("other/data.pkl", b"")]))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("a/b/data.pkl", b"")
    with pytest.raises(InputError, match="found 0"):
        read_torch(tmp_path / "other.zip")


def test_big_endian_numbers_are_refused(make):
    with pytest.raises(InputError, match="big-endian"):
        read_torch(make(program(tensor()), extra=[("weights/byteorder", b"big")]))


def test_a_member_that_claims_more_than_the_file_has_is_refused(make):
    path = make(program(tensor()))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"weights/data/0") - 46  # its entry in the central directory; sizes stand at 20 and 24
    assert data[at : at + 4] == b"PK\x01\x02"
    data[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"claims 2147483648 bytes, more than the file has"):
        read_torch(path)


def test_a_file_of_old_pytorch_says_what_to_do(tmp_path):
    (tmp_path / "old.pth").write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)
    )
    with pytest.raises(InputError, match=r"written by PyTorch before 1.6; load it in PyTorch and save it again"):
        interop.load_pretrained(tmp_path / "old.pth")


def test_every_cut_is_refused(make):
    path = make(program(tensor()))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_torch(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_damage_anywhere_gives_tensors_or_an_input_error(data, make):
    damaged = bytearray(make(program(tensor())).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = make(b"")
    path.write_bytes(damaged)
    try:
        result = read(path)
    except (InputError, KeyError, TypeError, AttributeError):  # but for the first, of the lookups in this test
        return
    assert result.nbytes <= 24 * 8


# Writing


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_written_reads_back_bit_by_bit(tmp_path, dtype):
    rng = np.random.default_rng(1)
    arrays = {
        "a": rng.standard_normal((2, 3, 5)).astype(dtype),
        "turned": rng.standard_normal((4, 7)).astype(dtype).T,
        "b.c": rng.standard_normal(1).astype(dtype),
    }
    write_torch(tmp_path / "x" / "y.pth", arrays, {"note": "größer"})
    saved = read_torch(tmp_path / "x" / "y.pth")
    assert saved["note"] == "größer"
    assert list(saved["model"]) == list(arrays)
    for name, array in arrays.items():
        assert isinstance(saved["model"][name], StoredTensor)
        assert saved["model"][name].dtype == dtype
        np.testing.assert_array_equal(saved["model"][name].read(), array)


def test_the_pickle_that_is_written_is_one_that_python_reads(tmp_path):
    """Python's own reader, with PyTorch's names replaced, sees the same program as the restricted machine."""

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            assert (module, name) in [
                ("torch._utils", "_rebuild_tensor_v2"),
                ("torch", "FloatStorage"),
                ("collections", "OrderedDict"),
            ]
            return lambda *arguments: (name, *arguments)

        def persistent_load(self, identifier):
            return identifier[0], *identifier[2:]

    write_torch(tmp_path / "y.pth", {"a": VALUES}, {})
    with zipfile.ZipFile(tmp_path / "y.pth") as file:
        assert {name.partition("/")[0] for name in file.namelist()} == {"archive"}
        value = Reader(io.BytesIO(file.read("archive/data.pkl"))).load()
        assert file.read("archive/data/0") == VALUES.tobytes()
    where = ("storage", "0", "cpu", math.prod(SHAPE))
    hooks = ("OrderedDict",)
    assert value == {"model": {"a": ("_rebuild_tensor_v2", where, 0, SHAPE, (12, 4, 1), False, hooks)}}


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_torch(tmp_path / "file" / "a.pth", {"a": VALUES}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
