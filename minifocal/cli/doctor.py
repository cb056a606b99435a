"""`minifocal doctor`: what this machine has and lacks, and what to do."""

import argparse
import importlib
import importlib.metadata
import os
import platform

import numpy as np

from minifocal import __version__
from minifocal.arrays import describe_gpus
from minifocal.data.download import cache_folder
from minifocal.errors import InputError
from minifocal.ops import TABLES, get_ops

HELP = "show what this machine has and lacks, and what to do about it"
EXAMPLE = "minifocal doctor"

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print a line for each thing."""
    print(f"minifocal {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in ("numpy", "scipy", "matplotlib", "safetensors", "pillow", "tqdm"):
        print(f"{name} {importlib.metadata.version(name)}")
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    print(f"BLAS: {blas.get('name')} {blas.get('version')}, {_threads()}")
    print(f"numba: {_version('numba') or 'not installed'} (optional; no table of operations needs it yet)")
    print(f"GPU: {_gpu()}")
    print(f"data: fetched into {cache_folder()}; MINIFOCAL_DATA names another folder")
    print(f"ops: {', '.join(TABLES)}; auto is {get_ops('auto').name}")
    return 0


def _threads() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    set_by = [f"{name}={os.environ[name]}" for name in THREAD_VARIABLES if name in os.environ]
    if set_by:
        return f"{', '.join(set_by)} on {cores} cores"
    return f"a thread for each of {cores} cores; OMP_NUM_THREADS=1 is faster while other programs use them"


def _version(name: str) -> str:
    try:
        importlib.import_module(name)
        return importlib.metadata.version(name)
    except ImportError:
        return ""


def _gpu() -> str:
    try:
        return describe_gpus()
    except InputError as error:
        return f"none in use: {error}"
