"""`minifocal doctor`: what this machine has and lacks, and what to do."""

import argparse
import importlib
import importlib.metadata
import os
import platform

import numpy as np

from minifocal import __version__
from minifocal.arrays import check_device
from minifocal.errors import InputError
from minifocal.ops import TABLES, get_ops

HELP = "show what this machine has and lacks, and what to do about it"
EXAMPLE = "minifocal doctor"

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
OPTIONAL = {
    "numba": 'speed on a CPU: pip install "minifocal[fast]"',
    "mpi4py": 'training on several machines: pip install "minifocal[mpi]"',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print a line for each thing."""
    print(f"minifocal {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in ("numpy", "scipy", "matplotlib", "safetensors", "pillow", "tqdm"):
        print(f"{name} {importlib.metadata.version(name)}")
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    print(f"BLAS: {blas.get('name')} {blas.get('version')}, {_threads()}")
    for name, advice in OPTIONAL.items():
        print(f"{name}: {_version(name) or f'not installed; {advice}'}")
    print(f"GPU: {_gpu()}")
    print(f"ops: {', '.join(TABLES)}; auto is {get_ops('auto').name}")
    return 0


def _threads() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    set_by = [f"{name}={os.environ[name]}" for name in THREAD_VARIABLES if name in os.environ]
    if set_by:
        return f"{', '.join(set_by)} on {cores} cores"
    return f"a thread for each of {cores} cores; OMP_NUM_THREADS sets fewer"


def _version(name: str) -> str:
    try:
        importlib.import_module(name)
        return importlib.metadata.version(name)
    except ImportError:
        return ""


def _gpu() -> str:
    try:
        check_device("cuda")
    except InputError as error:
        return f"none in use: {error}"
    import_name = "cupy"
    cupy = importlib.import_module(import_name)
    runtime = cupy.cuda.runtime
    names = [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]
    driver = runtime.driverGetVersion()
    return f"{', '.join(names)}; CuPy {cupy.__version__}, driver for CUDA {driver // 1000}.{driver % 1000 // 10}"
