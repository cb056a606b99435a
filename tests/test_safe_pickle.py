"""The restricted machine for pickles: the values that Python's own reader gives, and nothing that it should not do."""

import io
import os
import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifocal.errors import InputError
from minifocal.safe_pickle import StandIn, run_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers(-1000, 1000), inner)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.tuples(inner, inner, inner, inner)
    ),
    max_leaves=12,
)


@given(value=PLAIN, protocol=st.integers(0, 5))
def test_plain_values_come_back_as_python_reads_them(value, protocol):
    data = pickle.dumps(value, protocol)
    if b"_codecs" in data:  # how protocols below 3 write bytes: by a call
        with pytest.raises(InputError, match=r"names '_codecs.encode'|names '__builtin__.bytes'"):
            run_pickle(data, {})
    elif b"__builtin__\nbytes" not in data:
        result = run_pickle(data, {})
        assert result == value
        assert type(result) is type(value)


class Kept(StandIn):
    def __init__(self, *arguments):
        self.arguments, self.state = arguments, None

    def set_state(self, state):
        self.state = state


class Thing:
    """Pickled by its class, its arguments and its attributes."""

    def __reduce__(self):
        return Thing, (1, "two"), {"three": 4}


class Made:
    """Pickled by NEWOBJ."""

    def __init__(self):
        self.five = 6


@pytest.mark.parametrize("protocol", range(6))
def test_a_stand_in_takes_arguments_and_state(protocol):
    result = run_pickle(pickle.dumps([Thing(), Thing()], protocol), {f"{__name__}.Thing": Kept})
    assert [(one.arguments, one.state) for one in result] == [((1, "two"), {"three": 4})] * 2


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_class_is_made_by_its_stand_in(protocol):
    result = run_pickle(pickle.dumps(Made(), protocol), {f"{__name__}.Made": Kept})
    assert (result.arguments, result.state) == ((), {"five": 6})


def test_attributes_of_a_dict_are_left_out():
    assert run_pickle(b"cA\nB\n)R}U\x01aK\x01sb.", {"A.B": dict}) == {}


def test_persistent_objects_come_from_the_reader_alone():
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("stored", value.real) if isinstance(value, complex) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump([3 + 1j])
    assert run_pickle(stream.getvalue(), {}, lambda identifier: identifier) == [("stored", 3.0)]
    with pytest.raises(InputError, match="objects outside of it"):
        run_pickle(stream.getvalue(), {})


class Attack:
    def __init__(self, path, inner=None):
        self.path, self.inner = path, inner

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Nested:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Kept, (Attack(self.path),), {"again": Attack(self.path)}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("attack", [Attack, Nested])
def test_nothing_named_in_a_pickle_is_called(attack, protocol, tmp_path):
    data = pickle.dumps({"weights": attack(tmp_path / "made")}, protocol)
    with pytest.raises(InputError, match=f"refused a pickle that names '{os.mkdir.__module__}.mkdir'"):
        run_pickle(data, {f"{__name__}.Kept": Kept})
    assert not (tmp_path / "made").exists()


def keeps(value):
    return value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ckeeps\nit\n)R.", "calls keeps.it with arguments it does not take"),
        (b"ckeeps\nit\nK\x01K\x02\x86R.", "calls keeps.it with arguments it does not take"),
        (b"ckeeps\nit\n]R0.", "calls keeps.it with arguments it does not take"),
        (b"ckeeps\nit\nK\x05R.", "calls a function"),
        (b"K\x05)R.", "calls a int"),
        (b"cA\nword\n)R.", "calls a str"),
        (b"ckeeps\nit\n}b.", "sets attributes of a function"),
        (b"cA\nmade\n)R}b.", "sets attributes where there are none"),
        (b"K\x01K\x02a.", "appends to a int"),
        (b"]K\x01K\x02s.", "sets items of a list"),
        (b"}(K\x01K\x02K\x03u.", "damaged"),
        (b"}K\x01\x85K\x02s.", "a key that is a tuple"),
        (b"}NK\x02s.", "a key that is a NoneType"),
        (b"}\x8a\x05\x00\x00\x00\x80\x00K\x02s.", "a key that is a int"),
        (b"K\x01.K\x02", None),
        (b"0.", "instruction POP"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"h\x07.", "damaged"),
        (b"t.", "damaged"),
        (b"K\x01", "damaged"),
        (b".", "damaged"),
        (b"I" + b"9" * 5000 + b"\n.", "damaged"),
    ],
)
def test_hostile_programs_are_refused_in_one_line(data, message):
    names = {"keeps.it": keeps, "A.word": "numpy.ndarray", "A.made": StandIn}
    if message is None:  # what follows the end is no part of the pickle
        assert run_pickle(data, names) == 1
        return
    with pytest.raises(InputError, match=message) as error:
        run_pickle(data, names)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrap", [b"\x85", b"]\x86", b"l"], ids=["tuples", "pairs", "lists"])
def test_deep_nesting_neither_recurses_nor_crashes(wrap):
    depth = 200_000
    nested = b"(" * depth + wrap * depth if wrap == b"l" else b")" + wrap * depth
    with pytest.raises(InputError, match=r"a key that is a (tuple|list)"):
        run_pickle(b"}" + nested + b"K\x01s.", {})
    assert run_pickle(b"}K\x01" + nested + b"s.", {}).keys() == {1}


@pytest.mark.parametrize(
    "data",
    [
        b"r\xff\xff\xff\xff.",
        b"B\xff\xff\xff\x7fabc.",
        b"\x8e" + b"\xff" * 7 + b"\x7fabc.",
        b"\x8b\xff\xff\xff\x7fabc.",
        b"]r\xff\xff\xff\x7f.",
    ],
)
def test_a_length_that_the_file_does_not_have_takes_no_memory(data):
    tracemalloc.start()
    try:
        run_pickle(data, {})
    except InputError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20


@given(data=st.binary(max_size=60))
def test_any_bytes_give_a_value_or_an_input_error(data):
    message = ""
    try:
        run_pickle(data, {"A.B": Kept}, lambda identifier: identifier)
    except InputError as error:  # anything else fails the test
        message = str(error)
    assert message.isprintable()
