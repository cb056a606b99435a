"""The program for tools that watch a GPU launches every kernel, and says in one line that there is no GPU."""

import subprocess
import sys
from pathlib import Path

import gpu_kernels
from cuda_host import instantiations

from minifocal.arrays import check_device
from minifocal.errors import InputError


def test_every_kernel_is_launched(host_compiled, monkeypatch):
    host_compiled.take_the_place_of_cupy(monkeypatch)
    host_compiled.gpu.launched.clear()
    assert gpu_kernels.run_all(host_compiled) > 80
    launched = {name.partition("<")[0] for name in host_compiled.gpu.launched}
    assert launched == {name.partition("<")[0] for name in instantiations()}


def test_without_a_gpu_it_says_so():
    try:
        check_device("cuda")
    except InputError:
        script = Path(gpu_kernels.__file__)
        run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
        assert (run.returncode, run.stdout) == (2, "")
        assert run.stderr.startswith("gpu_kernels: ")
        assert run.stderr.count("\n") == 1
