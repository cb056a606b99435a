"""What holds of every layer and of the whole network, whatever the numbers: on drawn networks, for every table.

The way back is linear; nothing that was given is written into, and nothing given away is used again; a batch is its
images, in any order and in any parts.
"""

import numpy as np
import pytest
from extreme_table import ROWS
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_checks import (
    check_linear,
    check_linear_operation,
    check_moved,
    check_order,
    check_parts,
    check_pure,
    check_rounded,
)
from whole_networks import DROPPING, KINDS, batch, build

from minifocal.ops import REFERENCE, Op, get_ops, list_ops

EXAMPLES = 3
every_table = pytest.mark.parametrize("table", list_ops())
few = settings(max_examples=EXAMPLES)
kinds, seeds, counts = st.sampled_from(sorted(KINDS)), st.integers(0, 99), st.integers(2, 5)
options = st.sampled_from([{}, DROPPING, {"recompute_levels": True}, {**DROPPING, "recompute_levels": True}])


@pytest.fixture(autouse=True)
def all_memory_is_used_again(monkeypatch):
    """Take even the smallest arrays of the fast tables from the memory that is used again."""
    monkeypatch.setattr("minifocal.fused.workspace.SMALL", 0)


# The way back is linear in what comes back


@every_table
@given(kind=kinds, option=options, seed=seeds, a=st.integers(-8, 8), b=st.integers(1, 8))
@few
def test_every_layers_way_back_is_linear(table, kind, option, seed, a, b):
    check_linear(build(kind, ops=table, seed=seed, **option), batch(count=2, seed=seed)[0], a, b)


LINEAR = [name for name in ROWS if isinstance(getattr(REFERENCE, name), Op) and name != "cross_entropy"]


@every_table
@pytest.mark.parametrize("name", LINEAR)
def test_every_operations_way_back_is_linear(table, name):
    check_linear_operation(name, get_ops(table))


@every_table
@given(seed=seeds, share=st.sampled_from([0.5, 2.0, 4096.0]))
@few
def test_the_losss_way_back_is_linear(table, seed, share):
    rng, op = np.random.default_rng(seed), get_ops(table).cross_entropy
    _, cache = op.forward(rng.standard_normal((4, 5)).astype("float32"), rng.integers(0, 5, 4), 0.1)
    np.testing.assert_array_equal(op.backward(cache, share), share * op.backward(cache, 1.0))


# What was given is left alone, and what was given away too


@every_table
@given(kind=kinds, option=options, seed=seeds)
@few
def test_every_layer_leaves_alone_what_it_was_given_and_what_it_gave(table, kind, option, seed):
    check_pure(build(kind, ops=table, seed=seed, **option), batch(count=2, seed=seed)[0])


# A batch is its images


@every_table
@given(kind=kinds, seed=seeds, count=counts, data=st.data())
@few
def test_two_parts_add_up_to_the_batch(table, kind, seed, count, data):
    """Halves, and parts of other sizes: each weighs as many images as it has."""
    cut = data.draw(st.integers(1, count - 1))
    check_parts(build(kind, "float64", table, seed), *batch("float64", count, seed), cut)


@every_table
@given(kind=kinds, seed=seeds, data=st.data())
@few
def test_images_in_another_order_give_the_same_in_that_order(table, kind, seed, data):
    order = np.array(data.draw(st.permutations(range(5))))
    check_order(build(kind, "float64", table, seed), *batch("float64", 5, seed), order)


@every_table
@given(kind=kinds, seed=seeds)
@few
def test_a_float32_network_is_the_float64_network_rounded(table, kind, seed):
    check_rounded(*(build(kind, dtype, table, seed) for dtype in ("float32", "float64")), *batch("float32", 3, seed))


# A map that is moved gives a moved context


@every_table
@given(seed=seeds, down=st.integers(-3, 3), right=st.integers(-3, 3))
@few
def test_a_moved_map_has_a_moved_context(table, seed, down, right):
    check_moved(get_ops(table), seed, down, right)
