"""Which functions a model computes with: a frozen table of operations, forward and backward entered together.

A table is the reference (`minifocal/functional/`) with some operations replaced by faster twins of the same
signature and the same caches, from `minifocal/fused/`. A model carries its table; nothing is switched globally.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from minifocal.errors import InputError
from minifocal.functional import (
    activations,
    add,
    box_mean,
    context,
    cross_entropy,
    depthwise_conv,
    drop_path,
    layer_norm,
    layer_scale,
    linear,
    mean_pool,
    modulate,
    patches,
    split,
    updates,
)
from minifocal.functional.precision import check_precision, rounded_linear


class Op(NamedTuple):
    """An operation and its way back."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Ops:
    """What layers and models are made of; the functions of a field are `<field>_forward` and `<field>_backward`."""

    name: str
    linear: Op
    gelu: Op
    gelu_tanh: Op
    sigmoid: Op
    layer_norm: Op
    layer_scale: Op
    depthwise_conv: Op
    focal_level: Op
    global_level: Op
    box_mean: Op
    patches: Op
    drop_path: Op
    dropout: Op
    mean_pool: Op
    modulate: Op
    split: Op
    cross_entropy: Op
    add: Callable[[Any, Any], Any]
    sgd_update: Callable[..., None]
    adamw_update: Callable[..., None]
    clip: Callable[..., Any]
    unscale: Callable[..., Any]
    threaded: bool = False  # whether the parts of a batch may go through the layers in threads, side by side
    precision: str = "float32"  # what the operands of matrix products are rounded to


REFERENCE = Ops(
    name="reference",
    linear=Op(linear.linear_forward, linear.linear_backward),
    gelu=Op(activations.gelu_forward, activations.gelu_backward),
    gelu_tanh=Op(activations.gelu_tanh_forward, activations.gelu_tanh_backward),
    sigmoid=Op(activations.sigmoid_forward, activations.sigmoid_backward),
    layer_norm=Op(layer_norm.layer_norm_forward, layer_norm.layer_norm_backward),
    layer_scale=Op(layer_scale.layer_scale_forward, layer_scale.layer_scale_backward),
    depthwise_conv=Op(depthwise_conv.depthwise_conv_forward, depthwise_conv.depthwise_conv_backward),
    focal_level=Op(context.focal_level_forward, context.focal_level_backward),
    global_level=Op(context.global_level_forward, context.global_level_backward),
    box_mean=Op(box_mean.box_mean_forward, box_mean.box_mean_backward),
    patches=Op(patches.patches_forward, patches.patches_backward),
    drop_path=Op(drop_path.drop_path_forward, drop_path.drop_backward),
    dropout=Op(drop_path.dropout_forward, drop_path.drop_backward),
    mean_pool=Op(mean_pool.mean_pool_forward, mean_pool.mean_pool_backward),
    modulate=Op(modulate.modulate_forward, modulate.modulate_backward),
    split=Op(split.split_forward, split.split_backward),
    cross_entropy=Op(cross_entropy.cross_entropy_forward, cross_entropy.cross_entropy_backward),
    add=add.add,
    sgd_update=updates.sgd_update,
    adamw_update=updates.adamw_update,
    clip=updates.clip,
    unscale=updates.unscale,
)

GPU_TABLE = "cuda"
TABLES = (REFERENCE.name, "numpy", "numba", GPU_TABLE)
"""The names of all tables, from the slowest to the fastest."""

_MODULES = {"numpy": "numpy_ops", "numba": "numba_ops", GPU_TABLE: "gpu_ops"}  # in fused/


def get_ops(name: str = "auto", device: str = "cpu", precision: str = "float32") -> Ops:
    """Find a table by its name.

    Args:
        name: "reference"; "numpy", blocks and threads; "numba", compiled, with the extra [fast]; "cuda", kernels for a
            GPU; or "auto", the fastest that is present for the device.
        device: where it is to compute.
        precision: what the operands of matrix products are rounded to: "float32" (not at all), "tf32", "bfloat16" or
            "float16". The table then computes in float32 only.
    Raises:
        InputError: no table or precision of that name, it needs something that is missing, or it does not compute on
            the device.
    """
    check_precision(precision)
    if precision != "float32":
        return _rounding(get_ops(name, device), precision)
    if name == "auto":
        return get_ops(_fastest() if device == "cpu" else GPU_TABLE, device)
    if name not in TABLES:
        raise InputError(f"ops must be one of {', '.join(['auto', *TABLES])}, got {name!r}")
    if name == REFERENCE.name:
        return REFERENCE
    if (name == GPU_TABLE) != (device != "cpu"):
        place, instead = ("a GPU", 'device "cuda", or ') if name == GPU_TABLE else ("the CPU", "")
        raise InputError(f'ops "{name}" computes on {place}, but the device is {device}; use {instead}ops "auto"')
    return _load(name)


@cache
def _load(name: str) -> Ops:
    try:
        # Imported where asked for: Numba alone takes longer to start than all the rest.
        fused = _fused(name)
    except (ImportError, OSError) as error:  # missing, or its compiler cannot be loaded
        reason = str(error).partition("\n")[0]
        raise InputError(
            f'ops "{name}" needs Numba: {reason}; install "minifocal[fast]", or use ops "numpy"'
        ) from error
    fields: dict[str, Any] = {
        field: Op(*new) if isinstance(new, tuple) else new for field, new in fused.OVERRIDES.items()
    }
    return replace(REFERENCE, name=name, threaded=name != GPU_TABLE, **fields)


def _fused(name: str) -> ModuleType:
    return importlib.import_module(f"minifocal.fused.{_MODULES[name]}")


@cache
def _rounding(ops: Ops, precision: str) -> Ops:
    """Exchange the linear map for one that rounds: from the module's own `linear_with(precision)`, if it has one."""
    own = None if ops is REFERENCE else getattr(_fused(ops.name), "linear_with", None)
    pair = rounded_linear(*ops.linear, precision) if own is None else own(precision)
    return replace(ops, linear=Op(*pair), precision=precision)


@cache
def list_ops(device: str = "cpu") -> list[str]:
    """List the names of the tables that this machine can load for a device, from the slowest to the fastest."""
    return [name for name in TABLES if _is_present(name, device)]


@cache
def _fastest() -> str:
    *others, last = list_ops()
    if last == "numba" and not importlib.import_module("minifocal.fused.numba_vectors").are_fast_here():
        return others[-1]
    return last


def _is_present(name: str, device: str) -> bool:
    try:
        get_ops(name, device)
    except InputError:
        return False
    return True
