"""Values of a file in an error message: one short line, whatever they are."""

import numpy as np
import pytest

from minifocal.errors import shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (True, "True"),
        (None, "None"),
        (0.5, "0.5"),
        (np.int64(-3), "-3"),
        (np.float32(0.5), "0.5"),
        ("a\nb", "'a\\nb'"),
        (b"a", "b'a'"),
        ([1, "b"], "[1, 'b']"),
        ((1, 2), "(1, 2)"),
        ({}, "a dict"),
        (10**40, "a int"),
        ([10**40, {}], "[a int, a dict]"),
        (list(range(9)), "a list"),
    ],
)
def test_a_value_is_shown_in_short(value, text):
    assert shown(value) == text


def test_what_refers_to_itself_is_not_followed():
    value = ()
    for _ in range(60):
        value = (value, value)
    text = shown(value)
    assert shown(10**5000) == "a int"
    del value  # nothing that fails here should print it
    assert text == "(a tuple, a tuple)"


def test_long_text_is_cut():
    assert shown("x" * 10**6) == repr("x" * 60)
    assert len(shown(["y" * 10**6] * 8)) <= 80
