"""The CUDA source compiles for the GPUs that are named, without a warning."""

import re

import nvrtc
import pytest
from cuda_host import instantiations

from minifocal.fused import gpu, gpu_calls, gpu_updates

ARCHITECTURES = ("sm_75", "sm_80", "sm_90")


@pytest.fixture(scope="module", autouse=True)
def _needs_nvrtc():
    try:
        nvrtc.load()
    except (ImportError, OSError) as error:
        pytest.skip(f"no NVRTC: {error}")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_without_a_warning(architecture):
    done, log, code = nvrtc.compile_source(
        gpu.read_source(), instantiations(), f"--gpu-architecture={architecture}", *gpu.OPTIONS
    )
    assert (done, log) == (True, "")
    assert code.startswith(b"\x7fELF")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_needs_no_memory_beside_registers(architecture):
    """Kernels hold strips of tokens in arrays: one that did not fit into registers would be many times as slow."""
    names = [name for name in instantiations() if "double" not in name]
    options = f"--gpu-architecture={architecture}", "--ptxas-options=-v", *gpu.OPTIONS
    _, log, _ = nvrtc.compile_source(gpu.read_source(), names, *options)
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(stacks) == len(names)
    assert set(stacks) == {("0", "0", "0")}


@pytest.mark.parametrize("k", [9, 11, 15, 31])
@pytest.mark.parametrize("c_type", ["float", "double"])
def test_a_block_of_a_large_kernel_has_registers_enough(c_type, k):
    """A block has 65536, given out by eights to a thread; with more the launch would be refused."""
    options = "--gpu-architecture=sm_90", "--ptxas-options=-v", *gpu.OPTIONS
    _, log, _ = nvrtc.compile_source(gpu.read_source(), [f"depthwise_conv_weight<{c_type}, 4, {k}>"], *options)
    (used,) = re.findall(r"depthwise_conv_weight.*?Used (\d+) registers", log, re.DOTALL)
    assert -(-int(used) // 8) * 8 * gpu_calls.LANES * k <= 65536


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("__global__ void extra() { int unused = 1; }", "never referenced|set but never used|declared but"),
        ("__global__ void extra() { unknown(); }", 'identifier "unknown" is undefined'),
    ],
)
def test_a_warning_and_an_error_are_seen(text, said):
    _, log, _ = nvrtc.compile_source(f"{gpu.read_source()}\n{text}\n", [], "--gpu-architecture=sm_80", *gpu.OPTIONS)
    assert re.search(said, log)


def test_every_kernel_of_the_source_is_compiled_and_tested():
    kernels = re.findall(r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", gpu.read_source())
    assert set(kernels) == {name.partition("<")[0] for name in instantiations()}


def test_numbers_that_stand_in_python_too_are_the_sources():
    source = gpu.read_source()
    for module, names in ((gpu_calls, ("LANES", "WALKERS", "STRIP")), (gpu_updates, ("CHUNK",))):
        for name in names:
            assert int(re.search(rf"const int {name} = (\d+);", source)[1]) == getattr(module, name), name
