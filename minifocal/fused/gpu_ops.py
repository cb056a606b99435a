"""The operations on a GPU: each launches kernels of `kernels*.cu`; matrix products are cuBLAS's.

What is missing here is one pass over memory in CuPy as it stands in `functional/`; box_mean alone is several.
"""

from typing import Any

import numpy as np

from minifocal.arrays import Array, get_array_module, is_on_host
from minifocal.errors import InputError
from minifocal.functional.add import check_same_shape
from minifocal.functional.cross_entropy import CrossEntropyCache, check_cross_entropy
from minifocal.functional.layer_norm import LayerNormCache, check_layer_norm
from minifocal.functional.layer_scale import LayerScaleCache, layer_scale_forward
from minifocal.functional.linear import LinearCache, check_linear
from minifocal.functional.mean_pool import MeanPoolCache, mean_pool_backward
from minifocal.functional.modulate import ModulateCache, modulate_forward
from minifocal.functional.patches import NO_PADDING, Padding, PatchesCache, count_patches
from minifocal.fused import gpu
from minifocal.fused.gpu_activations import (
    gelu_backward,
    gelu_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    sigmoid_backward,
    sigmoid_forward,
)
from minifocal.fused.gpu_calls import (
    THREADS,
    ceil_divide,
    check_shape,
    column_sums,
    empty,
    in_order,
    mean_over_map,
    over_numbers,
    over_rows,
    pitched,
    rows_of,
    sizes_of,
    vector_for,
)
from minifocal.fused.gpu_conv import (
    depthwise_conv_backward,
    depthwise_conv_forward,
    focal_level_backward,
    focal_level_forward,
    global_level_backward,
    global_level_forward,
)
from minifocal.fused.gpu_updates import adamw_update, clip, sgd_update, unscale


def linear_forward(x: Array, weight: Array, bias: Array) -> tuple[Array, LinearCache]:
    """As functional.linear.linear_forward."""
    return _linear_forward(x, weight, bias, "float32")


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array]:
    """As functional.linear.linear_backward."""
    return _linear_backward(dy, cache, "float32")


def _linear_forward(x: Array, weight: Array, bias: Array, precision: str) -> tuple[Array, LinearCache]:
    check_linear(x, weight, bias)
    rows, shift = rows_of(x), in_order(bias)
    y = empty((rows.shape[0], shift.size), x)
    a, b = _rounded(precision, rows, weight)
    gpu.multiply(a, b, y, tf32=precision == "tf32")
    over_numbers("add_bias", y, vector_for(shift.size, y, shift), y, shift, np.int32(shift.size))
    return y.reshape(*x.shape[:-1], shift.size), LinearCache(x, weight)


def _linear_backward(dy: Array, cache: LinearCache, precision: str) -> tuple[Array, Array, Array]:
    x, weight = cache
    get_array_module(x, dy)
    check_shape(dy, (*x.shape[:-1], weight.shape[1]))
    rows, drows = rows_of(x), rows_of(dy)
    dx, dweight = empty(rows.shape, dy), empty(weight.shape, dy)
    a, b, upstream = _rounded(precision, rows, weight, drows)
    gpu.multiply(upstream, b, dx, transpose_b=True, tf32=precision == "tf32")
    gpu.multiply(a, upstream, dweight, transpose_a=True, tf32=precision == "tf32")
    dbias, _ = column_sums(drows)
    return dx.reshape(x.shape), dweight, dbias


def linear_with(precision: str) -> tuple[Any, Any]:
    """Give linear_forward and linear_backward with products in a precision: "tf32", "bfloat16" or "float16"."""

    def forward(x: Array, weight: Array, bias: Array) -> tuple[Array, LinearCache]:
        """As functional.linear.linear_forward, with rounded operands."""
        return _linear_forward(x, weight, bias, precision)

    def backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array]:
        """As functional.linear.linear_backward, with rounded operands."""
        return _linear_backward(dy, cache, precision)

    return forward, backward


def _rounded(precision: str, *matrices: Array) -> list[Array]:
    """Give the operands of products, in order, in the type that holds a precision."""
    dtype = matrices[0].dtype
    if any(matrix.dtype != dtype for matrix in matrices):
        raise InputError(f"linear: expected arrays of one dtype, got {', '.join(str(m.dtype) for m in matrices)}")
    if precision != "float32" and dtype != "float32":
        raise InputError(f'precision "{precision}" rounds float32 arrays, got {dtype}: use precision "float32"')
    arrays = map(in_order, matrices)
    if precision == "float16":
        return [array.astype("float16") for array in arrays]
    return list(map(to_bfloat16, arrays) if precision == "bfloat16" else arrays)


def to_bfloat16(x: Array) -> Array:
    """Give the bits of the nearest bfloat16, uint16."""
    bits = get_array_module(x).empty(x.shape, dtype="uint16")
    gpu.launch("to_bfloat16", (ceil_divide(x.size, THREADS),), (THREADS,), x, bits, np.int64(x.size))
    return bits


def layer_norm_forward(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> tuple[Array, LayerNormCache]:
    """As functional.layer_norm.layer_norm_forward."""
    check_layer_norm(x, weight, bias)
    rows, scale, shift = rows_of(x), in_order(weight), in_order(bias)
    y, x_hat, rstd = empty(rows.shape, x), empty(rows.shape, x), empty((rows.shape[0],), x)
    V = vector_for(rows.shape[1], rows, scale, shift)
    over_rows("layer_norm", rows, V, rows, scale, shift, x.dtype.type(eps), y, x_hat, rstd, *sizes_of(rows))
    return y.reshape(x.shape), LayerNormCache(x_hat.reshape(x.shape), rstd.reshape(*x.shape[:-1], 1), weight)


def layer_norm_backward(dy: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    """As functional.layer_norm.layer_norm_backward."""
    check_same_shape(dy, cache.x_hat)
    drows, x_hat, weight = rows_of(dy), rows_of(cache.x_hat), in_order(cache.weight)
    dx = empty(drows.shape, dy)
    V = vector_for(drows.shape[1], drows, x_hat, weight)
    rstd = in_order(cache.rstd)
    over_rows("layer_norm_backward", drows, V, drows, x_hat, rstd, weight, dx, *sizes_of(drows))
    dbias, dweight = column_sums(drows, x_hat)
    return dx.reshape(dy.shape), dweight, dbias


def layer_scale_backward(dy: Array, cache: LayerScaleCache) -> tuple[Array, Array]:
    """As functional.layer_scale.layer_scale_backward."""
    check_same_shape(dy, cache.x)
    _, dgamma = column_sums(rows_of(dy), rows_of(cache.x))
    return dy * cache.gamma, dgamma


def mean_pool_forward(x: Array) -> tuple[Array, MeanPoolCache]:
    """As functional.mean_pool.mean_pool_forward."""
    return mean_over_map(x), MeanPoolCache(x.shape)


def modulate_backward(dy: Array, cache: ModulateCache) -> tuple[Array, Array]:
    """As functional.modulate.modulate_backward."""
    check_same_shape(dy, cache.x)
    upstream, (x, pitch), modulator = in_order(dy), pitched(cache.x), in_order(cache.modulator)
    dx, dmodulator = empty(dy.shape, dy), empty(dy.shape, dy)
    C = dy.shape[-1]
    V = vector_for(C, upstream, x, modulator, pitches=(pitch,))
    over_numbers("modulate_backward", dy, V, upstream, x, np.int64(pitch), modulator, dx, dmodulator, np.int32(C))
    return dx, dmodulator


def patches_forward(x: Array, size: int, stride: int, padding: Padding = NO_PADDING) -> tuple[Array, PatchesCache]:
    """As functional.patches.patches_forward."""
    rows, columns = count_patches(x.shape, size, stride, padding)
    cache = PatchesCache(x.shape, size, stride, padding)
    patches = empty((x.shape[0], rows, columns, x.shape[3] * size * size), x)
    pitches = (np.int64(stride_in_bytes // x.itemsize) for stride_in_bytes in x.strides)
    over_numbers("patches", patches, None, x, *pitches, patches, *_grid(cache, rows, columns))
    return patches, cache


def patches_backward(dpatches: Array, cache: PatchesCache) -> Array:
    """As functional.patches.patches_backward."""
    B, _, _, C = cache.x_shape
    rows, columns = count_patches(*cache)
    check_shape(dpatches, (B, rows, columns, C * cache.size * cache.size))
    dx = empty(cache.x_shape, dpatches)
    over_numbers("patches_backward", dx, None, in_order(dpatches), dx, *_grid(cache, rows, columns))
    return dx


def _grid(cache: PatchesCache, rows: int, columns: int) -> tuple[Any, ...]:
    """The sizes that kernels of patches take, but for the count of numbers."""
    (_, H, W, C), size, stride, ((above, _), (left, _)) = cache
    return tuple(map(np.int32, (H, W, C, rows, columns, size, stride, above, left)))


def cross_entropy_forward(
    logits: Array, labels: Array, label_smoothing: float = 0.0
) -> tuple[Array, CrossEntropyCache]:
    """As functional.cross_entropy.cross_entropy_forward."""
    check_cross_entropy(logits, labels, label_smoothing)
    rows, (B, N) = in_order(logits), logits.shape
    probabilities, targets, losses = empty((B, N), rows), empty((B, N), rows), empty((B,), rows)
    inputs = rows, in_order(labels.astype("int64")), rows.dtype.type(label_smoothing)
    over_rows("cross_entropy", rows, None, *inputs, probabilities, targets, losses, np.int32(B), np.int32(N))
    return losses.mean(), CrossEntropyCache(probabilities, targets)


def cross_entropy_backward(cache: CrossEntropyCache, dloss: Array | float = 1.0) -> Array:
    """As functional.cross_entropy.cross_entropy_backward."""
    probabilities, targets = map(in_order, cache)
    dlogits, dtype, share = empty(probabilities.shape, probabilities), probabilities.dtype, 1.0 / len(probabilities)
    if isinstance(dloss, float | int) or is_on_host(dloss):
        pointer, scalar = gpu.NULL, dtype.type(float(dloss) * share)
    else:
        pointer, scalar = dloss.astype(dtype), dtype.type(share)
    over_numbers("cross_entropy_backward", dlogits, None, probabilities, targets, pointer, scalar, dlogits)
    return dlogits


OVERRIDES = {
    "linear": (linear_forward, linear_backward),
    "gelu": (gelu_forward, gelu_backward),
    "gelu_tanh": (gelu_tanh_forward, gelu_tanh_backward),
    "sigmoid": (sigmoid_forward, sigmoid_backward),
    "layer_norm": (layer_norm_forward, layer_norm_backward),
    "layer_scale": (layer_scale_forward, layer_scale_backward),
    "depthwise_conv": (depthwise_conv_forward, depthwise_conv_backward),
    "focal_level": (focal_level_forward, focal_level_backward),
    "global_level": (global_level_forward, global_level_backward),
    "patches": (patches_forward, patches_backward),
    "mean_pool": (mean_pool_forward, mean_pool_backward),
    "modulate": (modulate_forward, modulate_backward),
    "cross_entropy": (cross_entropy_forward, cross_entropy_backward),
    "sgd_update": sgd_update,
    "adamw_update": adamw_update,
    "clip": clip,
    "unscale": unscale,
}
