"""Memory that is used again: only when nobody looks at it any more, never twice at once, and not without limit."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minifocal.fused import workspace
from minifocal.fused.workspace import LINE, SMALL, Workspace, empty, empty_like

FLOATS = np.dtype("float64")
LARGE = SMALL // FLOATS.itemsize  # float64 numbers of the smallest block that is kept


@pytest.fixture(autouse=True)
def home(monkeypatch):
    """A workspace of its own for each test."""
    home = Workspace()
    monkeypatch.setattr(workspace, "_workspace", home)
    return home


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_array_is_as_asked_for_and_can_be_written(dtype):
    array = empty((3, 64, 1031), np.dtype(dtype))
    array[...] = 7.0
    assert (array.shape, array.dtype) == ((3, 64, 1031), dtype)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    other = empty_like(np.asfortranarray(array)[:, ::2])
    assert (other.shape, other.dtype) == ((3, 32, 1031), dtype)
    assert other.flags.c_contiguous


def test_a_block_returns_with_the_last_view_of_its_array(home):
    array = empty((LARGE,), FLOATS)
    view = array.reshape(2, -1)[1, 3:9]
    part = view[::2]
    del array
    assert home.idle_bytes == 0
    del view
    assert home.idle_bytes == 0
    del part
    assert home.idle_bytes == SMALL


def test_a_block_that_returned_is_taken_by_the_next_of_its_size(home):
    array = empty((LARGE,), FLOATS)
    first = address(array)
    del array
    other = empty((LARGE + 1,), FLOATS)
    same = empty((2, LARGE), np.dtype("float32"))  # as many bytes
    assert address(other) != first == address(same)
    assert home.idle_bytes == 0


def test_a_block_held_in_a_cycle_returns_when_python_finds_it(home):
    cycle = [empty((LARGE,), FLOATS)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert home.idle_bytes == SMALL


def check_that_nothing_is_shared(seed):
    """Keep some arrays, each full of its own number, let go of others, and look for numbers of another."""
    rng = np.random.default_rng(seed)
    kept = {}
    for step in range(200):
        array = empty((LARGE + int(rng.integers(3)),), FLOATS)
        assert address(array) % LINE == 0
        array[...] = kept_number = 1000 * seed + step
        kept[kept_number] = array[:: int(rng.integers(1, 4))]  # a view keeps all of it
        if len(kept) > 8:
            number = list(kept)[rng.integers(len(kept))]
            np.testing.assert_array_equal(kept.pop(number), number)
    for number, array in kept.items():
        np.testing.assert_array_equal(array, number)


def test_two_live_arrays_never_share_memory():
    check_that_nothing_is_shared(seed=0)


def test_threads_may_take_and_return_at_once(home):
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(check_that_nothing_is_shared, seed) for seed in range(4)]:
            future.result()
    gc.collect()
    assert home.idle_bytes == sum(block.nbytes for blocks in home.idle.values() for block in blocks)
    assert home.idle_bytes > 0


def test_a_block_may_return_in_another_thread(home):
    array = [empty((LARGE,), FLOATS)]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(array.clear).result()
    assert home.idle_bytes == SMALL


def test_small_arrays_are_plain_ones(home):
    array = empty((LARGE - 1,), FLOATS)
    assert array.base is None
    assert array.flags.owndata
    del array
    assert home.idle_bytes == 0


def test_idle_memory_stays_below_its_limit_and_the_size_unused_for_longest_goes_first():
    home = Workspace(idle_limit=1000)
    blocks = {size: home.take(size) for size in (300, 400, 200)}
    for block in blocks.values():
        home.put_back(block)
    assert home.idle_bytes == 900
    home.put_back(home.take(300))  # used now: 400 is the oldest
    home.put_back(np.empty(350, np.uint8))
    assert {size: len(found) for size, found in home.idle.items() if found} == {200: 1, 300: 1, 350: 1}
    assert home.idle_bytes == 850


def test_a_block_beyond_the_limit_is_not_kept():
    home = Workspace(idle_limit=1000)
    home.put_back(np.empty(200, np.uint8))
    home.put_back(np.empty(1001, np.uint8))
    assert home.idle_bytes <= 1000
    assert 1001 not in home.idle


def test_blocks_begin_where_a_cache_line_does():
    home = Workspace()
    for size in (1, 63, 64, 65, 1000):
        fresh = home.take(size)
        assert (address(fresh) % LINE, fresh.nbytes) == (0, size)
        home.put_back(fresh)
        again = home.take(size)
        assert address(again) == address(fresh)


def test_of_several_blocks_of_a_size_only_as_many_go_as_must():
    home = Workspace(idle_limit=1000)
    for block in [home.take(300) for _ in range(3)]:
        home.put_back(block)
    home.put_back(home.take(200))
    assert {size: len(found) for size, found in home.idle.items()} == {300: 2, 200: 1}
    assert home.idle_bytes == 800


def test_a_size_whose_blocks_are_all_in_use_is_forgotten_when_room_is_made():
    home = Workspace(idle_limit=1000)
    for size in (300, 400):
        home.put_back(home.take(size))
    held = home.take(300)
    home.idle.move_to_end(300, last=False)  # the one unused for longest, with none to give
    home.put_back(np.empty(700, np.uint8))
    assert {size: len(found) for size, found in home.idle.items()} == {700: 1}
    assert (held.nbytes, home.idle_bytes) == (300, 700)
