"""Which functions a model computes with: a frozen table of operations, forward and backward entered together.

A table is the reference (`minifocal/functional/`) with some operations replaced by faster twins of the same
signature and the same caches. A model carries its table; nothing is switched globally.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from minifocal.errors import InputError
from minifocal.functional import (
    activations,
    box_mean,
    context,
    cross_entropy,
    depthwise_conv,
    drop_path,
    layer_norm,
    layer_scale,
    linear,
    mean_pool,
    patches,
)


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
    cross_entropy: Op


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
    cross_entropy=Op(cross_entropy.cross_entropy_forward, cross_entropy.cross_entropy_backward),
)

TABLES = {REFERENCE.name: REFERENCE}


def get_ops(name: str = "auto") -> Ops:
    """Find a table by its name; "auto" is the fastest that is present.

    Raises:
        InputError: no table of that name.
    """
    if name == "auto":
        return REFERENCE
    if name not in TABLES:
        raise InputError(f"ops must be one of {', '.join(['auto', *TABLES])}, got {name!r}")
    return TABLES[name]
