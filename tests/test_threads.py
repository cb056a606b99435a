"""Threads that share one computation: every part once and in order, failures told, BLAS held back, the user obeyed."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from minifocal import threads
from minifocal.threads import (
    LEAST_WORK,
    THREAD_VARIABLES,
    core_count,
    one_blas_thread,
    over_items,
    over_ranges,
    run_together,
    shards,
    thread_count,
)

COUNTS = [1, 2, 3, 7]


@pytest.fixture
def use(monkeypatch):
    """Set the number of threads."""
    pools = []

    def use(count):
        pools.append(ThreadPoolExecutor(max(1, count - 1)))
        monkeypatch.setattr(threads, "thread_count", lambda: count)
        monkeypatch.setattr(threads, "_pool", lambda: pools[-1])

    yield use
    for pool in pools:
        pool.shutdown()


# Ranges


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 8, 100])
def test_ranges_make_up_the_whole_once_and_in_order(use, count, size):
    use(count)
    ranges = over_ranges(lambda start, stop: (start, stop), size, work=10**9)
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(size))
    assert len(ranges) == min(count, size)
    lengths = [stop - start for start, stop in ranges]
    assert max(lengths) - min(lengths) <= 1


def test_each_range_has_its_own_thread(use):
    """All three wait for each other: they would for ever were they not side by side."""
    use(3)
    meeting = threading.Barrier(3, timeout=30)

    def body(start, stop):
        meeting.wait()
        return threading.get_ident()

    idents = over_ranges(body, 3, work=10**9)
    assert len(set(idents)) == 3
    assert idents[0] == threading.get_ident()


@pytest.mark.parametrize(("work", "parts"), [(0, 1), (2 * LEAST_WORK - 1, 1), (2 * LEAST_WORK, 2), (10**9, 3)])
def test_little_work_is_not_split(use, work, parts):
    use(3)
    assert len(over_ranges(lambda start, stop: None, 100, work)) == parts


def test_a_share_is_not_split_again(use):
    use(3)

    def inner(start, stop):
        return [over_ranges(lambda a, b: (a, b), 10, work=10**9) for _ in range(2)]

    assert over_ranges(inner, 3, work=10**9) == [[[(0, 10)]] * 2] * 3
    assert run_together([lambda: inner(0, 1)] * 2) == [[[(0, 10)]] * 2] * 2
    assert len(over_ranges(lambda a, b: None, 10, work=10**9)) == 3  # afterwards it is as before


# Items


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("sizes", [[], [5], [0, 0, 0], [1, 9, 1], [9, 1, 1, 1], [3] * 10], ids=str)
def test_every_item_is_handled_once_and_neighbours_together(use, monkeypatch, count, sizes):
    use(count)
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    handled = []  # appending is one step, whoever does it
    over_items(lambda item: handled.append((item, threading.get_ident())), range(len(sizes)), sizes)
    assert sorted(item for item, _ in handled) == list(range(len(sizes)))
    for ident in {ident for _, ident in handled}:
        mine = [item for item, handler in handled if handler == ident]
        assert mine == sorted(mine)


def test_items_of_one_size_are_shared_out_evenly(use, monkeypatch):
    use(3)
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    meeting = threading.Barrier(3, timeout=30)
    over_items(lambda item: meeting.wait(), "abc", [4, 4, 4])  # all three at once, or never


# Tasks


@pytest.mark.parametrize("tasks", [1, 2, 3, 8])
def test_results_come_in_order(use, tasks):
    use(3)
    assert run_together([lambda n=n: n * n for n in range(tasks)]) == [n * n for n in range(tasks)]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_tasks_failure_is_raised_when_the_others_have_ended(use, failing):
    use(3)
    failed, ended = threading.Event(), []

    def task(number):
        if number == failing:
            failed.set()
            raise KeyError(number)
        assert failed.wait(timeout=30)
        ended.append(number)

    with pytest.raises(KeyError) as caught:
        run_together([lambda n=n: task(n) for n in range(3)])
    assert caught.value.args == (failing,)
    assert sorted(ended) == [number for number in range(3) if number != failing]
    assert run_together([lambda: 1, lambda: 2]) == [1, 2]  # the threads are there for the next ones


def test_tasks_within_a_task_do_not_wait_for_each_other():
    """As a network does that asks another one in its forward pass. All threads would wait, and no one work."""
    code = """
from minifocal import threads
threads.thread_count = lambda: 3
print(threads.run_together([lambda: threads.run_together([lambda: 1] * 3)] * 3))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert run.stdout.strip() == str([[1] * 3] * 3)


@pytest.mark.parametrize("setting", ["ignore", "raise"])
def test_numpys_error_state_reaches_the_other_threads(use, setting):
    use(3)

    def body(start, stop):
        return np.geterr()["over"], np.float32(1e30) * np.float32(1e30) if setting == "ignore" else np.inf

    with np.errstate(over=setting):
        assert over_ranges(body, 3, work=10**9) == [(setting, np.inf)] * 3


def test_an_overflow_in_another_thread_is_raised_where_numpy_is_told_to(use):
    use(2)
    numbers = np.array([1.0, 1e30], dtype="float32")
    with np.errstate(over="raise"), pytest.raises(FloatingPointError, match="overflow"):
        over_ranges(lambda start, stop: numbers[start:stop] * numbers[start:stop], 2, work=10**9)


# BLAS


@pytest.fixture
def all_libraries():
    """Hold every BLAS that is loaded by now, not those of the first call alone."""
    threads._blas_controller.cache_clear()


def blas_threads():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_blas_has_one_thread_while_it_is_held_and_its_own_afterwards(all_libraries):
    with threadpool_limits(2, user_api="blas"):
        assert blas_threads() == {2}
        with one_blas_thread():
            assert blas_threads() == {1}
            with one_blas_thread():
                assert blas_threads() == {1}
            assert blas_threads() == {1}
        assert blas_threads() == {2}


def test_blas_is_held_in_tasks_and_given_back_after_a_failure(use, all_libraries):
    use(2)

    def fail():
        raise KeyError

    with threadpool_limits(2, user_api="blas"):
        assert run_together([blas_threads, blas_threads]) == [{1}, {1}]
        with pytest.raises(KeyError):
            run_together([fail, blas_threads])
        assert blas_threads() == {2}


def test_blas_stays_held_until_the_last_holder_lets_go(all_libraries):
    """Two that hold it, the first to come the first to go, as threads may."""
    first, second = one_blas_thread(), one_blas_thread()
    with threadpool_limits(2, user_api="blas"):
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert blas_threads() == {1}
        second.__exit__(None, None, None)
        assert blas_threads() == {2}


# Shards


@pytest.mark.parametrize("threads_used", COUNTS)
@pytest.mark.parametrize("size", [1, 2, 3, 8, 1000])
def test_shards_share_out_a_batch_exactly(use, threads_used, size):
    use(threads_used)
    for count in range(1, 40):
        shares = shards(count, size)
        slices = [part for share in shares for part in share]
        assert [i for part in slices for i in range(part.start, part.stop)] == list(range(count))
        lengths = [part.stop - part.start for part in slices]
        assert 1 <= min(lengths) <= max(lengths) <= size
        assert max(lengths) - min(lengths) <= 1
        loads = [sum(part.stop - part.start for part in share) for share in shares]
        assert len(loads) == min(threads_used, count)
        assert max(loads) == -(-count // threads_used)


def test_nothing_is_shared_out_as_nothing():
    assert shards(0, 3) == []


# How many


def test_threads_are_one_a_core_where_nothing_is_asked(monkeypatch):
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert thread_count.__wrapped__() == core_count() >= 1


@pytest.mark.parametrize(
    ("asked", "count"),
    [(["1"], 1), (["5", "3"], 3), (["", "4"], 4), (["0"], 1), (["many"], 6), (["-2"], 6), (["99"], 6)],
)
def test_the_smallest_number_asked_for_counts(monkeypatch, asked, count):
    monkeypatch.setattr(threads, "core_count", lambda: 6)
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in zip(THREAD_VARIABLES, asked, strict=False):
        monkeypatch.setenv(name, value)
    assert thread_count.__wrapped__() == count


@pytest.mark.parametrize("name", THREAD_VARIABLES)
def test_each_variable_of_the_environment_is_read(name):
    environment = {key: value for key, value in os.environ.items() if key not in THREAD_VARIABLES} | {name: "1"}
    code = "from minifocal import threads; print(threads.thread_count(), len(threads.over_ranges(print, 9, 10**9)))"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["0 9", "1 1"]
