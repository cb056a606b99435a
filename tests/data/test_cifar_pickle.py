import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minifocal.data import cifar_pickle
from minifocal.data.cifar_pickle import read_pickle
from minifocal.errors import InputError


@pytest.fixture
def read(tmp_path):
    def write_and_read(data):
        (tmp_path / "file").write_bytes(data)
        return read_pickle(tmp_path / "file")

    return write_and_read


ARRAYS = {
    "bytes": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "column-major": np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(3, 2)),
    "big-endian": np.arange(5, dtype=">i4"),
    "floats": np.linspace(0, 1, 4).reshape(2, 1, 2),
    "scalar": np.array(7, dtype=np.int64),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_as_they_were(name, python2_pickle, read):
    result = read(python2_pickle({"data": ARRAYS[name]}))["data"]
    assert result.dtype == ARRAYS[name].dtype
    np.testing.assert_array_equal(result, ARRAYS[name])


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_both_names_of_numpy_are_known(module, python2_pickle, read):
    data = python2_pickle({"data": ARRAYS["bytes"]}).replace(b"numpy.core.multiarray", module)
    np.testing.assert_array_equal(read(data)["data"], ARRAYS["bytes"])


def test_keys_become_text_and_strings_in_values_stay_bytes(python2_pickle, read):
    assert read(python2_pickle({"labels": [3, 1], "names": ["a" * 300]})) == {
        "labels": [3, 1],
        "names": [b"a" * 300],
    }


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"cos\nsystem\n(S'mkdir {marker}'\ntR.", "os.system"),
        (b"cposix\nsystem\n(S'mkdir {marker}'\ntR.", "posix.system"),
        (b"c__builtin__\nopen\n(S'{marker}'\nS'w'\ntR.", "__builtin__.open"),
        (b'c__builtin__\neval\n(S\'open("{marker}", "w")\'\ntR.', "__builtin__.eval"),
        (b"(S'mkdir {marker}'\nios\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c{length}mkdir {marker}\x85R.", "os.system"),
        (b"cnumpy\nsave\n(S'{marker}'\nK\x01tR.", "numpy.save"),
        (b"cnumpy.core.multiarray\nscalar\n)R.", "numpy.core.multiarray.scalar"),
        (b"cnumpy\nndarray.tofile\n(S'{marker}'\ntR.", "numpy.ndarray.tofile"),
        (b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", "_codecs.encode"),
        (b"ccopy_reg\n_reconstructor\n)R.", "copy_reg._reconstructor"),
        (b"\x80\x04\x8c\x02a\n\x8c\x02\x1b[\x93.", r"a\\n\.\\x1b\["),  # the message stays one harmless line
    ],
)
def test_every_other_name_is_refused_and_nothing_is_executed(data, name, read, tmp_path):
    marker = tmp_path / "executed"
    path = str(marker).encode()
    data = data.replace(b"{length}", bytes([len(b"mkdir " + path)])).replace(b"{marker}", path)
    with pytest.raises(InputError, match=f"refused a pickle that names '{name}'; is this the right file"):
        read(data)
    assert not marker.exists()


def test_the_attack_would_have_worked_on_the_plain_reader(tmp_path):
    marker = tmp_path / "executed"
    pickle.loads(b"cos\nsystem\n(S'mkdir " + str(marker).encode() + b"'\ntR.")
    assert marker.exists()


def test_an_array_of_objects_is_refused(python2_pickle, read):
    with pytest.raises(InputError, match="refused an array of dtype 'O8'; only plain numbers are read"):
        read(python2_pickle({"data": np.array([None, "x"], dtype=object)}))


def test_a_structured_array_is_refused(python2_pickle, read):
    with pytest.raises(InputError, match="refused an array of dtype 'V"):
        read(python2_pickle({"data": np.zeros(2, dtype=[("a", "u1"), ("b", "u1")])}))


def array_pickle(kind=b"cnumpy\nndarray\n", order=b"|", shape=b"K\x02K\x03\x86", values=b"U\x06abcdef"):
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U" + bytes([len(order)]) + order + b"NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    rebuilt = b"cnumpy.core.multiarray\n_reconstruct\n" + kind + b"K\x00\x85U\x01b\x87R"
    return b"\x80\x02}U\x04data" + rebuilt + b"(K\x01" + shape + dtype + b"\x89" + values + b"tbs."


def test_a_hand_made_array_is_read(read):
    np.testing.assert_array_equal(read(array_pickle())["data"], np.frombuffer(b"abcdef", np.uint8).reshape(2, 3))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"shape": b"K\x02K\x04\x86"}, r"an array of shape \(2, 4\) and dtype uint8 comes with 6 bytes"),
        ({"shape": b"J\xfe\xff\xff\xffJ\xfd\xff\xff\xff\x86"}, r"refused an array of shape \(-2, -3\)"),
        ({"shape": b"\x8a\x08" + b"\xff" * 7 + b"\x7f" + b"K\x02\x86"}, r"of shape \(9223372036854775807, 2\)"),
        ({"order": b"O,"}, "refused an array of byte order 'O,'"),
        ({"kind": b"cnumpy\ndtype\n"}, "refused an array that is no plain numpy.ndarray"),
        ({"values": b"]"}, "comes with 0 bytes"),
    ],
)
def test_a_lying_array_is_refused(parts, message, read):
    with pytest.raises(InputError, match=message):
        read(array_pickle(**parts))


@pytest.mark.parametrize(
    "attack",
    [
        b"cnumpy\nndarray\n(K\x05tR.",  # call ndarray itself
        b"cnumpy\ndtype\n}U\x01xK\x01sb.",  # set the state of the stand-in's class
        b"cnumpy.core.multiarray\n_reconstruct\nN}U\x09set_stateNs\x86b.",  # and an attribute of it
    ],
)
def test_the_stand_ins_cannot_be_misused(attack, read, python2_pickle):
    before = dict(vars(cifar_pickle._PickledArray)), dict(vars(cifar_pickle._PickledDtype))
    with pytest.raises(InputError):
        read(b"\x80\x02" + attack)
    assert before == (dict(vars(cifar_pickle._PickledArray)), dict(vars(cifar_pickle._PickledDtype)))


def test_a_memo_numbered_beyond_the_file_makes_no_room_for_lower_numbers(read):
    assert read(b"\x80\x02}r\xff\xff\xff\x7f.") == {}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a pickle, but it is damaged, cut short or another format"),
        (b"\x89PNG\r\n\x1a\n", "refused a pickle with the instruction PERSID"),
        (b"\x7fELF", "expected a pickle, but it is damaged"),
        (pickle.dumps([1, 2], protocol=2), "expected a pickled dict, got list"),
    ],
)
def test_a_foreign_file_is_refused(data, message, read):
    with pytest.raises(InputError, match=message):
        read(data)


def test_every_truncation_is_refused(python2_pickle, read):
    data = python2_pickle({"data": ARRAYS["bytes"], "labels": [1, 2]})
    for length in range(len(data)):
        with pytest.raises(InputError):
            read(data[:length])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_anywhere_raises_nothing_but_input_error(data, python2_pickle, read):
    damaged = bytearray(python2_pickle({"data": ARRAYS["big-endian"], "labels": [1, 2]}))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        values = read(bytes(damaged))
    except InputError:
        return
    assert isinstance(values, dict)


def test_a_file_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_pickle, "MAX_PICKLE_BYTES", 10)
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(InputError, match="large has 11 bytes, expected at most 10"):
        read_pickle(tmp_path / "large")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nowhere: No such file"):
        read_pickle(tmp_path / "nowhere")
