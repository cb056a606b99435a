"""Which table is picked where, and what is said when one cannot be."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import fields
from types import SimpleNamespace

import pytest

from minifocal.errors import InputError
from minifocal.ops import REFERENCE, TABLES, Op, get_ops, list_ops

# Operations of which one way is as fast as it can be in the reference: views, or one pass over memory.
FAST_ONE_WAY = {"cpu": ("split",), "cuda": ("layer_scale", "mean_pool", "modulate")}
HAS_NUMBA = importlib.util.find_spec("numba") is not None


def python(code, **environment):
    """Run code in a process of its own; give what it printed, and what went to the error stream."""
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines(), run.stderr.splitlines()


def test_the_tables_are_listed_from_the_slowest_to_the_fastest():
    assert list_ops() == [name for name in TABLES if name != "cuda" and (name != "numba" or HAS_NUMBA)]
    assert list_ops("cuda") == ["reference", "cuda"]
    assert get_ops() == get_ops("auto") == get_ops(list_ops()[-1])
    assert [get_ops(name).name for name in list_ops()] == list_ops()
    assert [get_ops(name).threaded for name in list_ops()] == [False, True, True][: len(list_ops())]


@pytest.mark.parametrize(("table", "device"), [*((table, "cpu") for table in list_ops()[1:]), ("cuda", "cuda")])
def test_a_table_replaces_both_ways_of_an_operation_or_none(table, device):
    for field in fields(REFERENCE):
        fast, slow = (getattr(ops, field.name) for ops in (get_ops(table, device), REFERENCE))
        if isinstance(slow, Op):
            assert isinstance(fast, Op), field.name
            for mine, its in zip(fast, slow, strict=True):
                assert mine.__name__ == its.__name__
                assert (mine is its) == (fast == slow) or field.name in FAST_ONE_WAY[device], field.name


def test_an_unknown_table_is_refused():
    with pytest.raises(InputError, match="ops must be one of auto, reference, numpy, numba, cuda, got 'torch'"):
        get_ops("torch")


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_fast_table_is_for_the_cpu_or_for_a_gpu(device):
    assert get_ops("reference", device) is REFERENCE
    assert get_ops("auto", device) is get_ops("cuda", device)
    assert not get_ops("cuda", device).threaded
    with pytest.raises(
        InputError, match=r'^ops "cuda" computes on a GPU, but the device is cpu; use device "cuda", or ops "auto"$'
    ):
        get_ops("cuda")
    for name in ("numpy", "numba"):
        with pytest.raises(InputError, match=rf'^ops "{name}" computes on the CPU, but the device is {device};'):
            get_ops(name, device)


# Without Numba


WITHOUT_NUMBA = "import sys; sys.modules['numba'] = None\n"  # as if it were not installed


def test_without_numba_numpy_is_picked():
    code = "import minifocal as mf\nfrom minifocal.ops import *\nprint(get_ops('auto').name, list_ops())"
    assert python(WITHOUT_NUMBA + code) == (["numpy ['reference', 'numpy']"], [])


def test_without_numba_its_table_is_refused_in_one_line_that_says_what_to_install():
    code = """
from minifocal.errors import InputError
from minifocal.models.focalnet import FocalNet
try:
    FocalNet.build(init="zeros", ops="numba")
except InputError as error:
    print(error)
"""
    (line,), errors = python(WITHOUT_NUMBA + code)
    assert line.startswith('ops "numba" needs Numba: ')
    assert 'install "minifocal[fast]", or use ops "numpy"' in line
    assert errors == []


@pytest.mark.skipif(not HAS_NUMBA, reason="without Numba nothing else could load it")
def test_the_package_starts_without_loading_numba():
    assert python("import sys, minifocal; print('numba' in sys.modules)") == (["False"], [])


# The first call


GELU = """
import numpy as np
from minifocal.ops import get_ops
gelu, x = get_ops("numba").gelu, np.zeros(3, "float32")
gelu.forward(x)
gelu.forward(x)
gelu.forward(x[:2].astype("float64"))
"""


@pytest.mark.skipif(not HAS_NUMBA, reason="needs Numba")
def test_compiling_is_said_once_and_only_where_it_happens(tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    _, (line,) = python(GELU, **cache)
    assert line.startswith("minifocal: compiling kernels")
    assert python(GELU, **cache) == ([], [])


@pytest.mark.skipif(not HAS_NUMBA, reason="needs Numba")
def test_where_the_folder_cannot_be_locked_nothing_kept_is_read_or_written(tmp_path):
    """So that every process compiles for itself."""
    from minifocal.fused.numba_cache import KernelCache

    (tmp_path / "file").write_text("")
    cache = SimpleNamespace(cache_path=tmp_path / "file" / "folder")  # which nobody can make
    assert KernelCache.load_overload(cache, None, None) is None
    assert KernelCache.save_overload(cache, None, None) is None
