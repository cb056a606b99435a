"""Every operation with the error that its arithmetic allows it, element by element.

A bound counts roundings: a sum of n products is off by at most about n + 1 of them, each eps times the sum of the
products' sizes; what goes into a function is off already, and counts times the function's slope. Nothing here was
measured: eps is that of the dtype, all other numbers are counts and slopes. Arrays are in a wider dtype.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minifocal.functional.box_mean import box_mean_backward, box_mean_forward
from minifocal.functional.depthwise_conv import depthwise_conv_backward, depthwise_conv_forward
from minifocal.functional.patches import patches_backward, patches_forward
from minifocal.functional.updates import UpdateRow

Arrays = dict[str, Any]
LN_EPS, SMOOTHING, RATE, MAX_NORM, SCALE = 1e-5, 0.3, 0.4, 5.0, 2.0**10
SGD = {"lr": 0.1, "momentum": 0.9, "nesterov": True}
ADAMW = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "steps": 3}
DECAY = 0.01
GELU_BEND = 0.8  # the largest second derivative of GELU: 2 φ(0)
GELU_STEEP = 1.13  # its largest slope
PATCH, STRIDE, PADDING, WIDTH = 3, 2, ((1, 1), (1, 2)), 6


class Rounding(NamedTuple):
    """How a table rounds in a dtype."""

    eps: float
    smallest: float  # the smallest number above zero: where results underflow, errors are no part of them
    gelu: float  # what fast tables add to GELU and its slope


def named(names: str, *results: Any) -> Arrays:
    """Give results by names: one word for each."""
    return dict(zip(names.split(), results, strict=True))


def rows_of(x: Any) -> Any:
    return x.reshape(-1, x.shape[-1])


def token_count(x: Any) -> int:
    return x.size // x.shape[-1]


# Linear


def run_linear(ops: Any, a: Arrays) -> Arrays:
    y, cache = ops.linear.forward(a["x"], a["weight"], a["bias"])
    return named("y dx dweight dbias", y, *ops.linear.backward(a["dy"], cache))


def bound_linear(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    x, weight, dy = abs(a["x"]), abs(a["weight"]), abs(a["dy"])
    inputs, outputs = weight.shape
    sums = (token_count(x) + 1) * r.eps
    return {
        "y": (inputs + 2) * r.eps * (x @ weight + abs(a["bias"])),
        "dx": (outputs + 1) * r.eps * (dy @ weight.T),
        "dweight": sums * (rows_of(x).T @ rows_of(dy)),
        "dbias": sums * rows_of(dy).sum(axis=0),
    }


# Activations


def run_activation(name: str, ops: Any, a: Arrays) -> Arrays:
    op = getattr(ops, name)
    y, cache = op.forward(a["x"])
    return {"y": y, "dx": op.backward(a["dy"], cache)}


def gelu_error(x: Any, r: Rounding) -> tuple[Any, Any]:
    """Of GELU: Φ is off by some roundings of 1. Of its slope: the exponent x²/2 is rounded to eps of itself."""
    density = np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)
    return 4 * r.eps * abs(x) + r.gelu, r.eps * (4 + abs(x) * density * (x * x + 4)) + r.gelu


def bound_gelu(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    y, slope = gelu_error(a["x"], r)
    return {"y": y, "dx": abs(a["dy"]) * slope + r.eps * abs(out["dx"])}


def bound_gelu_tanh(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    """1 - tanh² cancels, and is multiplied by x u'; from some |u| on tanh is 1 exactly, and so is the slope."""
    x = abs(a["x"])
    u = 0.7979 * (x + 0.044715 * x**3)
    bend = np.where(u < 0.5 * np.log(16 / r.eps), x * 0.7979 * (1 + 0.134145 * x * x), 0.0)
    return {"y": 6 * r.eps * x, "dx": r.eps * (abs(a["dy"]) * (6 + 3 * bend) + abs(out["dx"]))}


def bound_sigmoid(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    return {"y": np.full_like(a["x"], 4 * r.eps), "dx": 8 * r.eps * abs(a["dy"])}


# Norm and scale


def run_layer_norm(ops: Any, a: Arrays) -> Arrays:
    y, cache = ops.layer_norm.forward(a["x"], a["weight"], a["bias"], LN_EPS)
    return named("y dx dweight dbias", y, *ops.layer_norm.backward(a["dy"], cache))


def bound_layer_norm(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    """The mean is rounded to eps of the numbers' size, and that is divided by their spread: their ratio is what a norm
    loses where the mean is large. The variance is of centred numbers, so it is only off by the square of that."""
    x, dy, weight = a["x"], abs(a["dy"]), abs(a["weight"])
    C = x.shape[-1]
    mean = partial(np.mean, axis=-1, keepdims=True)
    centred = x - mean(x)
    rstd = 1 / np.sqrt(mean(centred**2) + LN_EPS)
    x_hat = abs(centred) * rstd
    # Where numbers are denormal, each product may lose the smallest of them, which 1/sqrt(eps) makes larger again.
    shift = (C + 3) * (r.eps * mean(abs(x)) + r.smallest) * rstd
    relative = (C + 8) * r.eps + shift**2
    x_hat_error = shift * (1 + relative) + x_hat * relative
    g = dy * weight
    signed = a["dy"] * a["weight"]
    through = abs(mean(signed * centred * rstd))
    through_error = mean(g * x_hat_error) + (C + 2) * r.eps * mean(g * x_hat)
    inner = (C + 4) * r.eps * (g + mean(g)) + (x_hat + x_hat_error) * through_error + x_hat_error * through
    inner += 4 * r.eps * x_hat * through
    sums = (token_count(x) + 1) * r.eps
    return {
        "y": weight * (x_hat_error + 2 * r.eps * x_hat) + 2 * r.eps * abs(a["bias"]),
        "dx": rstd * (1 + relative) * inner + relative * abs(out["dx"]),
        "dweight": rows_of(dy * x_hat_error).sum(axis=0) + sums * rows_of(dy * (x_hat + x_hat_error)).sum(axis=0),
        "dbias": sums * rows_of(dy).sum(axis=0),
    }


def run_layer_scale(ops: Any, a: Arrays) -> Arrays:
    y, cache = ops.layer_scale.forward(a["x"], a["gamma"])
    return named("y dx dgamma", y, *ops.layer_scale.backward(a["dy"], cache))


def bound_layer_scale(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    sums = (token_count(a["x"]) + 1) * r.eps
    return {
        "y": r.eps * abs(out["y"]),
        "dx": r.eps * abs(out["dx"]),
        "dgamma": sums * rows_of(abs(a["dy"] * a["x"])).sum(axis=0),
    }


# Context


def run_conv(ops: Any, a: Arrays) -> Arrays:
    z, cache = ops.depthwise_conv.forward(a["x"], a["weight"])
    return named("z dx dweight", z, *ops.depthwise_conv.backward(a["dy"], cache))


def conv_of_sizes(x: Any, weight: Any, dz: Any) -> tuple[Any, Any, Any]:
    """The sums of a convolution and of its way back, of sizes alone."""
    z, cache = depthwise_conv_forward(abs(x), abs(weight))
    return z, *depthwise_conv_backward(abs(dz), cache)


def bound_conv(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    z, dx, dweight = conv_of_sizes(a["x"], a["weight"], a["dy"])
    taps = a["weight"].shape[0] ** 2 + 1
    return {"z": taps * r.eps * z, "dx": taps * r.eps * dx, "dweight": (token_count(z) + 1) * r.eps * dweight}


def run_level(ops: Any, a: Arrays) -> Arrays:
    ctx, aggregate, cache = ops.focal_level.forward(a["ctx"], a["weight"], a["gate"], a["aggregate"])
    gradients = ops.focal_level.backward(a["dctx"], a["daggregate"], cache)
    return named("y sum dx dweight dgate", ctx, aggregate, *gradients)


def bound_level(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    x, weight, gate, daggregate = a["ctx"], a["weight"], abs(a["gate"]), a["daggregate"]
    C, taps = x.shape[-1], weight.shape[0] ** 2 + 1
    z, _ = depthwise_conv_forward(x, weight)
    z_error = taps * r.eps * conv_of_sizes(x, weight, z)[0]
    gelu, slope = gelu_error(z, r)
    ctx_error = GELU_STEEP * z_error + gelu
    slope_error = np.minimum(GELU_BEND * z_error, 2 * GELU_STEEP) + slope
    back = abs(a["dctx"]) + gate * abs(daggregate)
    dz = GELU_STEEP * back
    dz_error = back * slope_error + 4 * r.eps * dz
    _, dx_error, dweight_error = conv_of_sizes(x, weight, dz_error)
    _, dx, dweight = conv_of_sizes(x, weight, dz)
    ctx = abs(out["y"])
    return {
        "y": ctx_error,
        "sum": gate * (ctx_error + 2 * r.eps * ctx) + r.eps * abs(out["sum"]),
        "dx": dx_error + taps * r.eps * dx,
        "dweight": dweight_error + (token_count(x) + 1) * r.eps * dweight,
        "dgate": (abs(daggregate) * (ctx_error + (C + 1) * r.eps * ctx)).sum(axis=-1, keepdims=True),
    }


def run_global(ops: Any, a: Arrays) -> Arrays:
    y, cache = ops.global_level.forward(a["ctx"], a["gate"], a["aggregate"])
    return named("sum dctx dgate", y, *ops.global_level.backward(a["daggregate"], cache))


def bound_global(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    x, gate, daggregate = a["ctx"], abs(a["gate"]), abs(a["daggregate"])
    _, H, W, C = x.shape
    mean = x.mean(axis=(1, 2), keepdims=True)
    mean_error = (H * W + 2) * r.eps * abs(x).mean(axis=(1, 2), keepdims=True)
    gelu, slope = gelu_error(mean, r)
    context, context_error = GELU_STEEP * abs(mean), GELU_STEEP * mean_error + gelu
    slope_error = np.minimum(GELU_BEND * mean_error, 2 * GELU_STEEP) + slope
    back = (daggregate * gate).sum(axis=(1, 2), keepdims=True)
    dmean_error = back * (slope_error + (H * W + 4) * r.eps * GELU_STEEP)
    return {
        "sum": gate * (context_error + 2 * r.eps * context) + r.eps * abs(out["sum"]),
        "dctx": np.broadcast_to(dmean_error / (H * W), x.shape),
        "dgate": (daggregate * (context_error + (C + 1) * r.eps * context)).sum(axis=-1, keepdims=True),
    }


# Means, patches, products, parts


def run_plain(name: str, options: tuple[Any, ...], ops: Any, a: Arrays) -> Arrays:
    op = getattr(ops, name)
    y, cache = op.forward(a["x"], *options)
    return {"y": y, "dx": op.backward(a["dy"], cache)}


def run_dropped(name: str, ops: Any, a: Arrays) -> Arrays:
    return run_plain(name, (RATE, np.random.default_rng(3)), ops, a)


def bound_box_mean(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    y, cache = box_mean_forward(abs(a["x"]), WIDTH)
    count = (WIDTH + 1) * r.eps
    return {"y": count * y, "dx": count * box_mean_backward(abs(a["dy"]), cache)}


def bound_patches(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    """Copies are exact; a pixel is in at most ceil(P / stride)² patches."""
    _, cache = patches_forward(a["x"], PATCH, STRIDE, PADDING)
    return {"y": 0.0 * out["y"], "dx": 4 * r.eps * patches_backward(abs(a["dy"]), cache)}


def bound_mean_pool(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    _, H, W, _ = a["x"].shape
    return {"y": (H * W + 1) * r.eps * abs(a["x"]).mean(axis=(1, 2)), "dx": 2 * r.eps * abs(out["dx"])}


def each_rounded(count: int, a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    """A few roundings of each result itself."""
    return {name: count * r.eps * abs(array) for name, array in out.items()}


def run_modulate(ops: Any, a: Arrays) -> Arrays:
    y, cache = ops.modulate.forward(a["x"], a["modulator"])
    return named("y dx dmodulator", y, *ops.modulate.backward(a["dy"], cache))


def run_split(ops: Any, a: Arrays) -> Arrays:
    C = a["x"].shape[-1]
    (first, second), cache = ops.split.forward(a["x"], (C - 2, 2))
    return {"first": first, "second": second, "dx": ops.split.backward((a["dfirst"], a["dsecond"]), cache)}


def run_add(ops: Any, a: Arrays) -> Arrays:
    return {"sum": ops.add(a["x"], a["y"])}


def run_cross_entropy(ops: Any, a: Arrays) -> Arrays:
    loss, cache = ops.cross_entropy.forward(a["logits"], a["labels"], SMOOTHING)
    return {"loss": loss, "dlogits": ops.cross_entropy.backward(cache, 0.7)}


def bound_cross_entropy(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    """log p = s - log sum exp(s) with s the logits below their largest; p log p, and so p s, is small."""
    logits, labels = a["logits"], a["labels"]
    B, N = logits.shape
    s = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(s).sum(axis=1, keepdims=True)
    p = np.exp(s) / total
    total_error = (p * (abs(s) + 2)).sum(axis=1, keepdims=True) + N
    log_error = r.eps * (2 * abs(s) + total_error + 2 * abs(np.log(total)) + 2)
    targets = (1 - SMOOTHING) * (labels[:, None] == np.arange(N)) + SMOOTHING / N
    loss_error = (targets * (log_error + (N + B + 2) * r.eps * abs(s - np.log(total)))).sum() / B
    p_error = p * np.minimum(log_error, 1) + 2 * r.eps * p
    return {"loss": loss_error, "dlogits": 0.7 / B * (p_error + 2 * r.eps * targets) + 3 * r.eps * abs(out["dlogits"])}


# Updates


def run_sgd(ops: Any, a: Arrays) -> Arrays:
    data, velocity = a["data"].copy(), a["velocity"].copy()
    ops.sgd_update([UpdateRow(data, a["grad"], (velocity,), DECAY)], **SGD)
    return {"data": data, "velocity": velocity}


def bound_sgd(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    data, velocity = abs(a["data"]), abs(a["velocity"])
    gradient = abs(a["grad"]) + DECAY * data
    sizes = 0.9 * velocity + gradient
    step = gradient + 0.9 * sizes
    return {"velocity": 4 * r.eps * sizes, "data": 0.1 * 8 * r.eps * step + r.eps * abs(out["data"]) + r.eps * data}


def run_adamw(ops: Any, a: Arrays) -> Arrays:
    data, mean, square = a["data"].copy(), a["mean"].copy(), abs(a["square"])
    ops.adamw_update([UpdateRow(data, a["grad"], (mean, square), DECAY)], **ADAMW)
    return {"data": data, "mean": mean, "square": square}


def bound_adamw(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    (beta1, beta2), lr, small = ADAMW["betas"], ADAMW["lr"], ADAMW["eps"]
    grad = abs(a["grad"])
    mean_error = 4 * r.eps * (abs(a["mean"]) + grad) + 4 * r.smallest
    square_error = 4 * r.eps * (abs(a["square"]) + grad**2) + 4 * r.smallest
    first, second = 1 - beta1 ** ADAMW["steps"], 1 - beta2 ** ADAMW["steps"]
    root = np.sqrt(out["square"] / second)
    # A root of what is nearly nothing: at most the root of the error.
    by_slope = square_error / (2 * np.sqrt(np.maximum(out["square"], r.smallest) * second))
    root_error = np.minimum(by_slope, np.sqrt(square_error / second)) + 3 * r.eps * root
    step = abs(out["mean"]) / first / (root + small)
    least = np.maximum(root + small - root_error, 0.5 * small)
    step_error = (mean_error / first + step * root_error) / least + 6 * r.eps * step
    return {"mean": mean_error, "square": square_error, "data": 3 * r.eps * abs(a["data"]) + lr * step_error}


def run_clip(ops: Any, a: Arrays) -> Arrays:
    first, second = a["first"].copy(), a["second"].copy()
    norm = ops.clip([first, second], MAX_NORM)
    return {"first": first, "second": second, "norm": norm}


def bound_clip(a: Arrays, out: Arrays, r: Rounding) -> Arrays:
    count = a["first"].size + a["second"].size
    relative = (count / 2 + 6) * r.eps
    norm = abs(out["norm"])
    return {
        "first": relative * abs(out["first"]),
        "second": relative * abs(out["second"]),
        "norm": relative * norm + np.sqrt(count * r.smallest),
    }


def run_unscale(ops: Any, a: Arrays) -> Arrays:
    first, second = a["first"].copy(), a["second"].copy()
    skip = ops.unscale([first, second], a["scale"])
    return {"first": first, "second": second, "skip": skip}
