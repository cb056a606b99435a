"""The same seed gives the same bits in any process, stopped and resumed or not; and what else the bits depend on."""

import os
import subprocess
import sys
from itertools import product

import pytest
import trained_bits as module

from minifocal.ops import list_ops
from minifocal.training.checkpoint import Checkpoint

TABLES, THREADS = list_ops(), (1, 2, 3)
RUN = "import sys; sys.argv[0] = 'trained_bits'; import trained_bits"


def trained_bits(*options, tables=TABLES, counts=THREADS, hash_seed="0", plant=""):
    """Train in a process of its own; give the digest and the losses by table and number of threads.

    Args:
        plant: a line that runs before the training.
    """
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": hash_seed}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    arguments = ["--tables", ",".join(tables), "--threads", ",".join(map(str, counts)), *options]
    command = [sys.executable, "-c", f"{RUN}\n{plant}\ntrained_bits.main()", *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    return {(table, int(count)): (digest, list(map(float, losses))) for table, count, digest, *losses in lines}


@pytest.fixture(scope="module")
def once():
    return trained_bits()


def test_another_process_gives_the_same_bits_after_a_stop_too(once, tmp_path):
    """In another order of tables and threads, with another seed of Python's hashes, and saved and loaded on the way."""
    assert once.keys() == set(product(TABLES, THREADS))
    again = trained_bits(
        "--folder", str(tmp_path), tables=TABLES[::-1], counts=THREADS[::-1], hash_seed="12345"
    )  # fmt: skip
    assert again == once
    assert len(list(tmp_path.iterdir())) == len(once)


def test_the_reference_gives_the_same_bits_with_any_number_of_threads(once):
    """It has none of its own, and BLAS has one here."""
    assert len({once["reference", count][0] for count in THREADS}) == 1


@pytest.mark.parametrize("table", TABLES[1:])
def test_a_fast_table_gives_other_bits_with_another_number_of_threads_and_the_same_to_rounding(once, table):
    """Each thread adds up its own images, and the sums of all are added then: another order of the same numbers."""
    digests = {once[table, count][0] for count in THREADS}
    assert len(digests) == len(THREADS)
    for count in THREADS:
        assert once[table, count][1] == pytest.approx(once["reference", 1][1], rel=1e-4)  # as the README promises
        assert once[table, count][0] != once["reference", 1][0]


# Wrong ones are seen


def number_names_by_hash(model):
    """Something that depends on the order of a set, which is another in each process."""
    for number, name in enumerate(set(model.state_dict())):
        model.state_dict()[name][...] += 1e-6 * number


PLANT = """
from test_determinism import number_names_by_hash
right = trained_bits.begin
def begin(*args, **options):
    started = right(*args, **options)
    number_names_by_hash(started[0])
    return started
trained_bits.begin = begin
"""


def test_a_training_that_depends_on_hashes_is_seen(once, monkeypatch):
    right = module.begin
    assert module.train("reference") == once["reference", 1]  # in this process, which has seeded its hashes somehow

    def begin(*args, **options):
        started = right(*args, **options)
        number_names_by_hash(started[0])
        return started

    monkeypatch.setattr(module, "begin", begin)
    other_seed = "54321" if os.environ.get("PYTHONHASHSEED") == "12345" else "12345"
    there = trained_bits(tables=["reference"], counts=(1,), hash_seed=other_seed, plant=PLANT)
    assert module.train("reference") != there["reference", 1]


def test_a_stop_that_forgets_something_is_seen(once, tmp_path, monkeypatch):
    """Of the optimizer, what it keeps between steps."""
    assert module.train("reference", tmp_path / "right") == once["reference", 1]
    right = Checkpoint.restore
    monkeypatch.setattr(Checkpoint, "restore", lambda checkpoint, model, optimizer: right(checkpoint, model))
    assert module.train("reference", tmp_path / "wrong") != once["reference", 1]
