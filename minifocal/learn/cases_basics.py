"""Calls and usual mistakes of the exercises on single operations: linear maps, activations, the loss, LayerNorm."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from minifocal.arrays import Array, erf
from minifocal.functional.activations import gelu_forward, gelu_tanh_forward
from minifocal.functional.cross_entropy import cross_entropy_forward
from minifocal.functional.layer_norm import layer_norm_forward
from minifocal.functional.linear import linear_forward
from minifocal.learn.case import Case, Draws, Suspect, as_given, gradient_case


def linear() -> Iterator[Case]:
    """y = x @ weight + bias."""
    draw = Draws()
    for B, T, I, O in ((1, 1, 2, 3), (2, 5, 4, 3)):  # noqa: E741
        x, weight, bias = draw(B, T, I), draw(I, O), draw(O)

        def suspects(dy: Array, x: Array = x) -> tuple[Suspect, ...]:
            cause = "it is a product of sums, expected a sum of products: multiply at each position, then add up"
            sums = [np.outer(x.sum(axis=(0, 1)), dy.sum(axis=(0, 1)))]
            sums += [x.sum(axis=axis).T @ dy.sum(axis=axis) for axis in (0, 1)]
            first = Suspect("dweight", x[0].T @ dy[0], "only the first of the batch is there: add up over the batch")
            return (*(Suspect("dweight", value, cause) for value in sums), first)

        yield gradient_case(
            {"B": B, "T": T, "I": I, "O": O},
            linear_forward,
            {"x": x, "weight": weight, "bias": bias},
            {"dy": as_given, "x": x, "weight": weight},
            draw=draw,
            suspects=suspects,
        )


def broadcast() -> Iterator[Case]:
    """y = x, repeated to a larger shape."""
    draw = Draws(1)
    # The last one: an axis of length 1 in front of all others.
    shapes = ((3,), (2, 1, 1, 3), (4, 1), (), (1, 4, 1))
    targets = ((4, 3), (2, 5, 4, 3), (2, 5, 4, 3), (2, 3), (2, 4, 3))
    for shape, target in zip(shapes, targets, strict=True):

        def forward(x: Array, target: tuple[int, ...] = target) -> tuple[Array, None]:
            return np.broadcast_to(x, target), None

        def suspects(dy: Array, shape: tuple[int, ...] = shape) -> tuple[Suspect, ...]:
            lengths = (1,) * (dy.ndim - len(shape)) + shape
            first = dy[tuple(slice(0, length) for length in lengths)].reshape(shape)
            total = np.full(shape, dy.sum())
            return (
                Suspect("dx", first, "it is the first of the elements that belong together: add all of them up"),
                Suspect("dx", total, "everything is added up: an axis that was not repeated keeps its elements apart"),
            )

        yield gradient_case(
            {f"axis{axis}": length for axis, length in enumerate(target)},
            forward,
            {"x": draw(*shape)},
            {"dy": as_given, "shape": shape},
            draw=draw,
            suspects=suspects,
        )


def _normal(x: Array) -> tuple[Array, Array]:
    """The cumulative distribution and the density of the standard normal distribution."""
    return 0.5 * (1.0 + erf(x * math.sqrt(0.5))), np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def gelu() -> Iterator[Case]:
    """y = x Φ(x)."""
    draw = Draws(2)
    for B, C in ((1, 3), (4, 5)):
        x = draw(B, C)

        def suspects(dy: Array, x: Array = x) -> tuple[Suspect, ...]:
            cdf, density = _normal(x)
            wide = 0.5 * (1.0 + erf(x))
            tanh = gelu_tanh_forward(x)[1].slope
            return tuple(
                Suspect("dx", value, cause)
                for value, cause in (
                    (dy * cdf, "the term x φ(x) is missing: y = x Φ(x) is a product, and both factors depend on x"),
                    (
                        dy * x * density,
                        "the term Φ(x) is missing: y = x Φ(x) is a product, and both factors depend on x",
                    ),
                    (dy * (cdf + density), "φ(x) stands without its factor x"),
                    (dy * (cdf - x * density), "the term x φ(x) has the wrong sign"),
                    (dy * (cdf - x * x * density), "φ(x) itself is differentiated: the slope of Φ is φ"),
                    (dy * (wide + x * density), "Φ(x) = (1 + erf(x/√2)) / 2: erf is taken of x, not of x/√2"),
                    (
                        dy * (cdf + x * density * math.sqrt(2.0 * math.pi)),
                        "φ(x) is not normalised: exp(-x²/2) / √(2π)",
                    ),
                    (
                        dy * (cdf + x * np.exp(-x * x) / math.sqrt(2.0 * math.pi)),
                        "φ(x) has exp(-x²/2): the exponent is not halved",
                    ),
                    (dy * x * cdf, "it is the forward pass again: the slope is asked for"),
                    *(
                        (dy * (value + x * density), "Φ(x) = (1 + erf(x/√2)) / 2: the 1 or the half is missing")
                        for value in (2.0 * cdf - 1.0, 2.0 * cdf, cdf - 0.5)
                    ),
                    (dy * (x > 0.0), "it is the slope of ReLU"),
                    (dy * tanh, "it is the slope of the GELU by tanh, which is another function"),
                )
            )

        yield gradient_case(
            {"B": B, "C": C},
            gelu_forward,
            {"x": x},
            {"dy": as_given, "x": x},
            draw=draw,
            suspects=suspects,
        )


def gelu_tanh() -> Iterator[Case]:
    """y = x (1 + tanh u) / 2."""
    draw = Draws(3)
    for B, C in ((1, 3), (4, 5)):
        x = draw(B, C)

        def suspects(dy: Array, x: Array = x) -> tuple[Suspect, ...]:
            root, cubic = math.sqrt(2.0 / math.pi), 0.044715
            tanh, du = np.tanh(root * (x + cubic * x**3)), root * (1.0 + 3.0 * cubic * x**2)
            first, sech2 = 0.5 * (1.0 + tanh), 1.0 - tanh**2
            return tuple(
                Suspect("dx", value, cause)
                for value, cause in (
                    (dy * first, "the second term is missing: tanh u depends on x too"),
                    (
                        dy * (first + 0.5 * x * sech2),
                        "the slope of u itself, du/dx, is missing: the chain rule goes on",
                    ),
                    (dy * (first + 0.5 * x * du), "the slope of tanh, 1 - tanh² u, is missing"),
                    (dy * (first + 0.5 * sech2 * du), "the second term stands without its factor x"),
                    (dy * (first + x * sech2 * du), "the second term lacks its factor 1/2"),
                    (dy * (2.0 * first + 0.5 * x * sech2 * du), "the first term lacks its factor 1/2"),
                    (dy * (first - 0.5 + 0.5 * x * sech2 * du), "the first term is (1 + tanh u) / 2: the 1 is missing"),
                    (
                        dy * 0.5 * x * sech2 * du,
                        "the first term is missing: y is a product, and both factors depend on x",
                    ),
                    (dy * (first - 0.5 * x * sech2 * du), "the second term has the wrong sign"),
                    (dy * (first + 0.5 * x * sech2 * du / root), "du/dx lacks the factor √(2/π)"),
                    (
                        dy * (first + 0.5 * x * sech2 * root * (1.0 + cubic * x**2)),
                        "du/dx lacks the factor 3 that x³ brings down",
                    ),
                    (
                        dy * (first + 0.5 * x * (1.0 - tanh) ** 2 * du),
                        "the slope of tanh is 1 - tanh² u, not (1 - tanh u)²",
                    ),
                    (dy * 0.5 * x * (1.0 + tanh), "it is the forward pass again: the slope is asked for"),
                    (dy * gelu_forward(x)[1].slope, "it is the slope of the exact GELU, which is another function"),
                )
            )

        yield gradient_case(
            {"B": B, "C": C},
            gelu_tanh_forward,
            {"x": x},
            {"dy": as_given, "x": x},
            draw=draw,
            suspects=suspects,
        )


def cross_entropy() -> Iterator[Case]:
    """loss = mean over the batch of -log softmax(logits)[label]."""
    draw = Draws(4)
    for B, N, scale in ((1, 3, 1.0), (4, 5, 1.0), (2, 3, 2000.0)):
        logits = scale * draw(B, N)
        labels = np.arange(B) % N

        def suspects(dloss: Array, logits: Array = logits, labels: Array = labels) -> tuple[Suspect, ...]:
            B = len(logits)
            cause_rows = "the softmax runs over the batch: it belongs over the classes, axis 1"
            total = _softmax(logits.reshape(1, -1), labels[:1])[0].reshape(logits.shape)
            (p, one_hot), columns = _softmax(logits, labels), _softmax(logits.T, labels)[0].T
            return tuple(
                Suspect("dlogits", dloss * value, cause)
                for value, cause in (
                    (p / B, "it is the softmax alone: one has to be taken off at the label"),
                    (
                        -one_hot / B,
                        "only the label's own term is there: the logarithm of the sum depends on every logit",
                    ),
                    (
                        (p - one_hot) * one_hot / B,
                        "only the label's own logit has a gradient: the sum holds all of them",
                    ),
                    ((p + one_hot) / B, "one is added at the label: take it off"),
                    (
                        (p - one_hot.max(axis=0)) / B,
                        "every row loses one at the labels of all: each has its own label, labels[b]",
                    ),
                    (
                        -one_hot / np.maximum(p, 1e-300) / B,
                        "it is the slope of -log p with respect to p: softmax follows",
                    ),
                    ((total - one_hot) / B, "the softmax runs over the whole batch: each row has a sum of its own"),
                    (p * (1.0 - p) / B, "it is the diagonal of the softmax's derivative: off it there is -p_i p_j"),
                    ((columns - one_hot) / B, cause_rows),
                    ((p - one_hot) * p / B, "there is a factor p too much: log and softmax together cancel it"),
                )
            )

        # The loss is a scalar, so its upstream gradient is one too.
        yield gradient_case(
            {"B": B, "N": N},
            partial(_cross_entropy, labels=labels),
            {"logits": logits},
            {"dloss": float, "logits": logits, "labels": labels},
            draw=draw,
            upstream=("dloss",),
            suspects=suspects,
        )


def _cross_entropy(logits: Array, labels: Array) -> tuple[Array, Any]:
    return cross_entropy_forward(logits, labels)


def _softmax(logits: Array, labels: Array) -> tuple[Array, Array]:
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True), (labels[:, None] == np.arange(logits.shape[1])).astype("float64")


def layer_norm() -> Iterator[Case]:
    """y = weight * x_hat + bias."""
    draw = Draws(5)
    eps = 1e-2  # so large that forgetting it shows
    for B, T, C in ((1, 1, 3), (2, 4, 5)):
        x, weight, bias = 0.5 * draw(B, T, C) + 1.0, draw(C), draw(C)

        def suspects(dy: Array, x: Array = x, weight: Array = weight, C: int = C) -> tuple[Suspect, ...]:
            centred = x - x.mean(axis=-1, keepdims=True)
            variance = (centred**2).mean(axis=-1, keepdims=True)
            rstd = 1.0 / np.sqrt(variance + eps)

            def dx(
                rstd: Array = rstd,
                weight: Array = weight,
                mean: float | Array = 1.0,
                var: float | Array = 1.0,
                direct: Array = dy * weight,
            ) -> Array:
                x_hat, dx_hat = centred * rstd, dy * weight
                through_mean = dx_hat.mean(axis=-1, keepdims=True)
                through_variance = x_hat * (dx_hat * x_hat).mean(axis=-1, keepdims=True)
                return rstd * (direct - mean * through_mean - var * through_variance)

            def of_rstd(rstd: Array, cause: str) -> tuple[Suspect, Suspect]:
                dweight = (dy * centred * rstd).sum(axis=(0, 1))
                return Suspect("dx", dx(rstd), cause), Suspect("dweight", dweight, cause)

            unbiased, ones, x_hat = variance * C / (C - 1), np.ones(C), centred * rstd
            mean_of_dy = dy.mean(axis=-1, keepdims=True) / (dy * weight).mean(axis=-1, keepdims=True)
            variance_of_dy = (dy * x_hat).mean(axis=-1, keepdims=True) / (dy * weight * x_hat).mean(
                axis=-1, keepdims=True
            )
            positions = (0, 1)
            return (
                Suspect("dx", dx(mean=0.0), "the term through the mean is missing: every x[j] moves the mean"),
                Suspect("dx", dx(var=0.0), "the term through the variance is missing: every x[j] moves the variance"),
                Suspect(
                    "dx", dx(mean=0.0, var=0.0), "both hidden terms are missing: through the mean and the variance"
                ),
                Suspect(
                    "dx", dx(weight=ones, direct=dy), "the factor weight is missing: dx_hat = dy * weight comes first"
                ),
                Suspect("dx", dx(var=-1.0), "the term through the variance has the wrong sign"),
                Suspect("dx", dx(mean=-1.0), "the term through the mean has the wrong sign"),
                Suspect("dx", dx(mean=C, var=C), "the hidden terms are sums over the channels, expected means: 1/C"),
                Suspect("dx", dx(mean=C), "the term through the mean is a sum over the channels, expected the mean"),
                Suspect("dx", dx(var=C), "the term through the variance is a sum over the channels, expected the mean"),
                Suspect("dx", dx(mean=mean_of_dy), "the term through the mean takes dy, expected dx_hat = dy * weight"),
                Suspect(
                    "dx",
                    dx(var=variance_of_dy),
                    "the term through the variance takes dy, expected dx_hat = dy * weight",
                ),
                Suspect(
                    "dx", weight * dx(weight=ones, direct=dy), "weight comes last, but belongs inside: dx_hat first"
                ),
                Suspect("dx", dx(var=1.0 / rstd), "the term through the variance takes x - mean, expected x_hat twice"),
                Suspect("dx", dx(var=1.0 / x_hat), "the term through the variance lacks its factor x_hat"),
                Suspect("dx", rstd * dx(), "the factor 1/sqrt(variance + eps) is there twice"),
                Suspect("dx", dx() / rstd, "the factor 1/sqrt(variance + eps) in front is missing"),
                *of_rstd(1.0 / np.sqrt(variance), "eps is forgotten: the root is of variance + eps"),
                *of_rstd(1.0 / np.sqrt(variance + 1e-5), "eps is 1e-5 whatever is given: take the argument"),
                *of_rstd(1.0 / (np.sqrt(variance) + eps), "eps belongs under the root: sqrt(variance + eps)"),
                *of_rstd(1.0 / np.sqrt(unbiased + eps), "the variance is divided by C - 1, expected C"),
                *of_rstd(
                    1.0 / np.sqrt(C * variance + eps), "the variance is a sum over the channels, expected the mean"
                ),
                *of_rstd(rstd * rstd, "the root of variance + eps is missing"),
                *of_rstd(1.0 / rstd, "it is multiplied by sqrt(variance + eps), expected divided"),
                Suspect("dweight", dy.sum(axis=positions), "the factor x_hat is missing: that is a bias's gradient"),
                Suspect("dweight", (dy * x).sum(axis=positions), "dweight takes x, expected the normalised x_hat"),
                Suspect(
                    "dweight", (dy * centred).sum(axis=positions), "dweight takes x - mean: not divided by the root"
                ),
                Suspect(
                    "dweight",
                    (dy * weight * centred * rstd).sum(axis=positions),
                    "dweight has a factor weight too much",
                ),
            )

        yield gradient_case(
            {"B": B, "T": T, "C": C},
            partial(layer_norm_forward, eps=eps),
            {"x": x, "weight": weight, "bias": bias},
            {"dy": as_given, "x": x, "weight": weight, "eps": eps},
            draw=draw,
            suspects=suspects,
        )
