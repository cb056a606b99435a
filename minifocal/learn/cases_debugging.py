"""Calls of the debugging exercises: whole blocks with a bug on the way back, judged by their output and gradients."""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from minifocal.arrays import Array, erf
from minifocal.functional.activations import gelu_forward
from minifocal.functional.context import focal_level_forward
from minifocal.functional.depthwise_conv import depthwise_conv_backward, depthwise_conv_forward
from minifocal.functional.layer_norm import layer_norm_forward
from minifocal.functional.linear import linear_forward
from minifocal.learn.case import Case, Draws, Suspect, as_given, gradient_case

EPS = 1e-5
PLANTED = "the planted bug is still there: what is wrong and what is right stand on two sides of it"


def mlp_branch() -> Iterator[Case]:
    """y = x + fc2(GELU(fc1(x)))."""
    draw = Draws(18)
    for B, T, C, D in ((1, 1, 2, 3), (2, 5, 3, 4)):
        arrays = {
            "x": draw(B, T, C),
            "weight1": draw(C, D),
            "bias1": draw(D),
            "weight2": draw(D, C),
            "bias2": draw(C),
        }
        yield _block({"B": B, "T": T, "C": C, "D": D}, _mlp_branch, arrays, draw, _mlp_mistakes)


def _mlp_branch(x: Array, weight1: Array, bias1: Array, weight2: Array, bias2: Array) -> tuple[Array, None]:
    hidden, _ = gelu_forward(linear_forward(x, weight1, bias1)[0])
    return x + linear_forward(hidden, weight2, bias2)[0], None


def _mlp_mistakes(dy: Array, arrays: Mapping[str, Array]) -> tuple[Suspect, ...]:
    x, weight1, bias1, weight2, _ = arrays.values()
    z = x @ weight1 + bias1
    hidden, cache = gelu_forward(z)
    density_part = cache.slope - 0.5 * (1.0 + erf(z * math.sqrt(0.5)))

    def dx(slope: Array) -> Array:
        return dy + (dy @ weight2.T * slope) @ weight1.T

    dhidden = (dy @ weight2.T).reshape(-1, z.shape[-1])
    dweight1 = x.reshape(-1, x.shape[-1]).T @ dhidden
    dweight2 = z.reshape(-1, z.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])
    return (
        Suspect("dx", dx(gelu_forward(hidden)[1].slope), PLANTED),
        Suspect("dx", dx(np.ones_like(z)), "the slope of GELU is missing"),
        Suspect("dx", dx(cache.slope - density_part), "the term z φ(z) of GELU's slope is missing"),
        Suspect("dx", dx(cache.slope - 2.0 * density_part), "the term z φ(z) of GELU's slope has the wrong sign"),
        Suspect("dx", dx(gelu_forward(x @ weight1)[1].slope), "the slope of GELU is taken before bias1 is added"),
        Suspect("dx", dx(z > 0.0), "it is the slope of ReLU"),
        Suspect("dx", dx(hidden), "GELU itself stands where its slope belongs"),
        Suspect("dweight1", dweight1, "dweight1 takes dhidden, expected dz"),
        Suspect("dbias1", dhidden.sum(axis=0), "dbias1 takes dhidden, expected dz"),
        Suspect("dweight2", dweight2, "dweight2 takes z, expected hidden"),
    )


def gated_conv() -> Iterator[Case]:
    """y = gate * GELU(DWConv(x))."""
    draw = Draws(19)
    for B, H, W, C, k in ((1, 3, 4, 1, 3), (2, 5, 4, 6, 3)):
        arrays = {"x": draw(B, H, W, C), "weight": draw(k, k, C), "gate": draw(B, H, W, 1)}
        yield _block({"B": B, "H": H, "W": W, "C": C, "k": k}, _gated_conv, arrays, draw, _conv_mistakes)


def _gated_conv(x: Array, weight: Array, gate: Array) -> tuple[Array, None]:
    return focal_level_forward(x, weight, gate, 0.0)[1], None


def _conv_mistakes(dy: Array, arrays: Mapping[str, Array]) -> tuple[Suspect, ...]:
    x, weight, gate = arrays.values()
    z, conv = depthwise_conv_forward(x, weight)
    ctx, (slope,) = gelu_forward(z)
    one_axis = "the kernel is turned along one axis only: half a turn reverses both"
    turned, ungated = weight[::-1, ::-1], depthwise_conv_backward(dy * slope, conv)
    kernels = (
        (weight, "the kernel is not turned: x[h] reached z[h - i + k//2], so it comes back from there"),
        (weight[::-1], PLANTED),
        (weight[:, ::-1], one_axis),
        (weight.swapaxes(0, 1), "the kernel is transposed, not turned by half a turn"),
        (turned.swapaxes(0, 1), "the turned kernel is transposed as well"),
    )
    return (
        *(Suspect("dx", depthwise_conv_forward(dy * gate * slope, kernel)[0], cause) for kernel, cause in kernels),
        *(Suspect(name, ungated[at], "the gate is missing in dz") for at, name in enumerate(("dx", "dweight"))),
        *(
            Suspect(name, depthwise_conv_backward(dz, conv)[at], cause)
            for dz, cause in (
                (dy * gate, "the slope of GELU is missing in dz"),
                (dy * gate * ctx, "GELU itself stands where its slope belongs"),
                (
                    dy * gate * gelu_forward(ctx)[1].slope,
                    "the slope of GELU is taken at its output, expected its input z",
                ),
                (dy, "it takes dy, expected dz: the gate and the slope of GELU come first"),
            )
            for at, name in enumerate(("dx", "dweight"))
        ),
        Suspect("dgate", (dy * x).sum(axis=-1, keepdims=True), "dgate takes x, expected ctx"),
        Suspect("dgate", (dy * z).sum(axis=-1, keepdims=True), "dgate takes z, expected ctx, which is GELU(z)"),
    )


def post_ln() -> Iterator[Case]:
    """y = x + LayerNorm(q * m), q = x @ weight_q, m = x @ weight_m."""
    draw = Draws(20)
    for B, T, C in ((1, 1, 3), (2, 5, 4)):
        arrays = {
            "x": draw(B, T, C),
            "weight_q": draw(C, C),
            "weight_m": draw(C, C),
            "norm_weight": draw(C),
            "norm_bias": draw(C),
        }
        yield _block({"B": B, "T": T, "C": C}, _post_ln, arrays, draw, _post_ln_mistakes, {"eps": EPS})


def _post_ln(x: Array, weight_q: Array, weight_m: Array, norm_weight: Array, norm_bias: Array) -> tuple[Array, None]:
    zero = np.zeros_like(norm_bias)
    product = linear_forward(x, weight_q, zero)[0] * linear_forward(x, weight_m, zero)[0]
    return x + layer_norm_forward(product, norm_weight, norm_bias, EPS)[0], None


def _post_ln_mistakes(dy: Array, arrays: Mapping[str, Array]) -> tuple[Suspect, ...]:
    x, weight_q, weight_m, norm_weight, norm_bias = arrays.values()
    q, m = x @ weight_q, x @ weight_m
    _, (p_hat, rstd, _) = layer_norm_forward(q * m, norm_weight, norm_bias, EPS)
    right = dy * norm_weight

    def parts(direct: Array = right, mean: Array = right, variance: Array = right) -> tuple[Array, Array]:
        mean_part = mean.mean(axis=-1, keepdims=True)
        variance_part = p_hat * (variance * p_hat).mean(axis=-1, keepdims=True)
        dp = rstd * (direct - mean_part - variance_part)
        return dp * m, dp * q

    def back(dq: Array, dm: Array) -> Array:
        return dy + dq @ weight_q.T + dm @ weight_m.T

    def dx(direct: Array = right, mean: Array = right, variance: Array = right) -> Array:
        return back(*parts(direct, mean, variance))

    (dq, dm), nothing, C = parts(), 0.0 * dy, x.shape[-1]
    return (
        Suspect("dx", dx(variance=dy), PLANTED),
        Suspect("dx", dx(mean=dy), "the term through the mean takes dy, expected dp_hat = dy * norm_weight"),
        Suspect("dx", dx(dy, dy, dy), "the factor norm_weight is missing in dp_hat"),
        Suspect("dx", dx(mean=nothing), "the term through the mean is missing"),
        Suspect("dx", dx(variance=nothing), "the term through the variance is missing"),
        Suspect("dx", dx(mean=nothing, variance=nothing), "both hidden terms of LayerNorm are missing"),
        Suspect("dx", dx(variance=-right), "the term through the variance has the wrong sign"),
        Suspect("dx", dx(mean=-right), "the term through the mean has the wrong sign"),
        Suspect("dx", dx(mean=C * right), "the term through the mean is a sum over the channels, expected the mean"),
        Suspect(
            "dx", dx(variance=C * right), "the term through the variance is a sum over the channels, expected the mean"
        ),
        Suspect("dx", back(dq / rstd, dm / rstd), "the factor rstd is missing in dp"),
        Suspect(
            "dx",
            back(dm, dq),
            "q and m are exchanged: dq = dp * m goes back through weight_q, dm = dp * q through weight_m",
        ),
        Suspect("dx", dy + dq @ weight_q + dm @ weight_m, "the weights are not transposed on the way back"),
        Suspect("dx", dy + dq @ weight_q.T, "what comes back through m is missing"),
        Suspect("dx", dy + dm @ weight_m.T, "what comes back through q is missing"),
        Suspect("dnorm_weight", (dy * q * m).sum(axis=(0, 1)), "dnorm_weight takes p = q * m, expected p_hat"),
    )


def _block(
    sizes: Mapping[str, int],
    forward: Callable[..., tuple[Array, None]],
    arrays: Mapping[str, Array],
    draw: Draws,
    mistakes: Callable[[Array, Mapping[str, Array]], tuple[Suspect, ...]],
    options: Mapping[str, float] | None = None,
) -> Case:
    """A case whose function gives y, then the gradient of every array."""
    y, _ = forward(*arrays.values())
    return gradient_case(
        sizes,
        forward,
        arrays,
        {"dy": as_given, **arrays, **(options or {})},
        draw=draw,
        suspects=lambda dy: mistakes(dy, arrays),
        values={"y": y},
    )
