"""NVRTC, CUDA's compiler as a library, from NVIDIA's wheel: it compiles for GPUs that are not there."""

import ctypes
import importlib.metadata
import re
from functools import cache
from typing import Any

WHEEL = "nvidia-cuda-nvrtc"


@cache
def load() -> ctypes.CDLL:
    """Load the library. Raises PackageNotFoundError without the wheel."""
    for file in importlib.metadata.files(WHEEL) or ():
        if re.fullmatch(r"libnvrtc\.so[.\d]*|nvrtc64_[_\d]+\.dll", file.name):
            return ctypes.CDLL(str(file.locate()))
    raise importlib.metadata.PackageNotFoundError(WHEEL)


def compile_source(source: str, names: list[str], *options: str) -> tuple[bool, str, bytes]:
    """Compile a source with these instantiations.

    Returns:
        whether it went well, what the compiler said, and the machine code.
    """
    nvrtc = load()
    program = ctypes.c_void_p()
    text = source.encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, b"kernels.cu", 0, None, None) == 0
    try:
        for name in names:
            assert nvrtc.nvrtcAddNameExpression(program, name.encode()) == 0
        listed = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = nvrtc.nvrtcCompileProgram(program, len(options), listed)
        log = _take(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        code = b"" if status else _take(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
        return status == 0, log.rstrip(b"\0").decode().strip(), code
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _take(size_of: Any, fill: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    assert size_of(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert fill(program, buffer) == 0
    return buffer.raw
