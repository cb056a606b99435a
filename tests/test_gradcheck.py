"""The gradient checker itself: wrong backward functions, planted, are caught and named; the right ones pass.

Each plant is a mistake that people make. It differs from the right function, which is checked beside it on the same
arrays, by that mistake alone.
"""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.special import erf

from minifocal.arrays import random_generator
from minifocal.errors import InputError
from minifocal.functional.activations import (
    gelu_backward,
    gelu_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    sigmoid_backward,
    sigmoid_forward,
)
from minifocal.functional.box_mean import box_mean_backward, box_mean_forward
from minifocal.functional.context import (
    focal_level_backward,
    focal_level_forward,
    global_level_backward,
    global_level_forward,
)
from minifocal.functional.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minifocal.functional.depthwise_conv import depthwise_conv_backward, depthwise_conv_forward
from minifocal.functional.drop_path import drop_backward, drop_path_forward
from minifocal.functional.layer_norm import layer_norm_backward, layer_norm_forward
from minifocal.functional.layer_scale import layer_scale_backward, layer_scale_forward
from minifocal.functional.linear import linear_backward, linear_forward
from minifocal.functional.mean_pool import mean_pool_backward, mean_pool_forward
from minifocal.functional.modulate import modulate_backward, modulate_forward
from minifocal.functional.patches import patches_backward, patches_forward
from minifocal.functional.split import split_backward, split_forward
from minifocal.gradcheck import check_gradients, check_layer, compare_arrays, numeric_gradients
from minifocal.layers.initializers import get_initializer
from minifocal.layers.layer_norm import LayerNorm
from minifocal.layers.linear import Linear
from minifocal.layers.mlp import MLP
from minifocal.models.block import FocalNetBlock
from minifocal.models.config import FocalNetConfig
from minifocal.models.modulation import FocalModulation, SigmoidGateModulation
from minifocal.ops import REFERENCE, Op

B, H, W, C = 2, 5, 3, 3  # W = C: some mistakes keep every shape only where two sizes agree, and must still be caught
MAP, GATE = (B, H, W, C), (B, H, W, 1)


class Subject(NamedTuple):
    """A function of arrays and its right way back."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    shapes: dict[str, tuple[int, ...]]


def level(ctx, weight, gate, aggregate):
    """Both outputs of a focal level joined along the channels."""
    ctx, aggregate, cache = focal_level_forward(ctx, weight, gate, aggregate)
    return np.concatenate([ctx, aggregate], axis=-1), cache


def level_back(dy, cache):
    return *focal_level_backward(dy[..., :C], dy[..., C:], cache), dy[..., C:]


def smoothed(logits):
    return cross_entropy_forward(logits, np.array([4, 0, 2]), 0.3)


def dropped(x):
    return drop_path_forward(x, 0.4, random_generator(2))


def halves(x):
    """Two parts of a split, exchanged and joined again."""
    (first, second), cache = split_forward(x, (1, 2))
    return np.concatenate([second, first], axis=-1), cache


def halves_back(dy, cache):
    return split_backward((dy[..., 2:], dy[..., :2]), cache)


OVERLAP = partial(patches_forward, size=3, stride=2, padding=((1, 1), (0, 2)))
SUBJECTS = {
    "linear": Subject(linear_forward, linear_backward, {"x": MAP, "weight": (C, 4), "bias": (4,)}),
    "square linear": Subject(linear_forward, linear_backward, {"x": (C, C), "weight": (C, C), "bias": (C,)}),
    "gelu": Subject(gelu_forward, gelu_backward, {"x": MAP}),
    "gelu_tanh": Subject(gelu_tanh_forward, gelu_tanh_backward, {"x": MAP}),
    "modulate": Subject(modulate_forward, modulate_backward, {"x": MAP, "modulator": MAP}),
    "split": Subject(halves, halves_back, {"x": MAP}),
    "sigmoid": Subject(sigmoid_forward, sigmoid_backward, {"x": MAP}),
    "layer_norm": Subject(
        partial(layer_norm_forward, eps=0.1), layer_norm_backward, {"x": MAP, "weight": (C,), "bias": (C,)}
    ),
    "layer_scale": Subject(layer_scale_forward, layer_scale_backward, {"x": MAP, "gamma": (C,)}),
    "depthwise_conv": Subject(depthwise_conv_forward, depthwise_conv_backward, {"x": MAP, "weight": (3, 3, C)}),
    "focal_level": Subject(level, level_back, {"ctx": MAP, "weight": (3, 3, C), "gate": GATE, "aggregate": MAP}),
    "global_level": Subject(
        partial(global_level_forward, aggregate=0.0), global_level_backward, {"ctx": MAP, "gate": GATE}
    ),
    "tiled patches": Subject(partial(patches_forward, size=2, stride=2), patches_backward, {"x": MAP}),
    "patches": Subject(OVERLAP, patches_backward, {"x": MAP}),
    "box_mean": Subject(partial(box_mean_forward, width=4), box_mean_backward, {"x": MAP}),
    "mean_pool": Subject(mean_pool_forward, mean_pool_backward, {"x": MAP}),
    "drop_path": Subject(dropped, drop_backward, {"x": (6, H, C)}),
    "cross_entropy": Subject(smoothed, lambda dy, cache: cross_entropy_backward(cache, dy), {"logits": (3, 5)}),
}


def change(position, wrong):
    """Wrap a way back: one gradient is replaced by wrong(gradient, dy, cache)."""

    def wrap(backward):
        def changed(dy, cache):
            gradients = backward(dy, cache)
            if not isinstance(gradients, tuple):
                return wrong(gradients, dy, cache)
            return tuple(wrong(g, dy, cache) if i == position else g for i, g in enumerate(gradients))

        return changed

    return wrap


def instead(wrong):
    """Replace a way back."""
    return lambda backward: wrong


def rows(array):
    return array.reshape(-1, array.shape[-1])


def layer_norm_dx(dy, cache, mean=1.0, variance=1.0):
    """dx with its two hidden terms weighed; 1 and 1 is right."""
    dx_hat = dy * cache.weight
    through_mean = dx_hat.mean(axis=-1, keepdims=True)
    through_variance = cache.x_hat * (dx_hat * cache.x_hat).mean(axis=-1, keepdims=True)
    return cache.rstd * (dx_hat - mean * through_mean - variance * through_variance)


def correlate(dz, kernel):
    """Depthwise convolution of dz with a kernel as it stands."""
    return depthwise_conv_forward(dz, kernel)[0]


def level_through(change_dctx):
    """A focal level's way back with the gradient that reaches ctx_l replaced."""

    def wrong(dy, cache):
        dctx, daggregate = change_dctx(dy[..., :C], dy[..., C:], cache)
        # focal_level_backward adds gate * daggregate to what it is given.
        dbefore, dweight, _ = focal_level_backward(dctx - cache.gate * daggregate, daggregate, cache)
        return dbefore, dweight, level_back(dy, cache)[2], dy[..., C:]

    return wrong


def overwriting_patches(dpatches, cache):
    """The last patch that saw a pixel wins."""
    (_, H, W, C), size, stride, ((above, below), (left, right)) = cache
    dx = np.zeros((B, above + H + below, left + W + right, C))
    for row in range(dpatches.shape[1]):
        for column in range(dpatches.shape[2]):
            patch = dpatches[:, row, column].reshape(B, C, size, size).transpose(0, 2, 3, 1)
            dx[:, row * stride : row * stride + size, column * stride : column * stride + size] = patch
    return dx[:, above : above + H, left : left + W]


def channel_last_patches(dpatches, cache):
    """Read each patch as (i, j, c)."""
    *leading, _ = dpatches.shape
    turned = dpatches.reshape(*leading, cache.size, cache.size, C)
    return patches_backward(np.moveaxis(turned, -1, 3).reshape(dpatches.shape), cache)


def writes_into_dy(backward):
    def wrong(dy, cache):
        gradients = backward(dy.copy(), cache)
        dy *= 2.0
        return gradients

    return wrong


def writes_into_x(backward):
    def wrong(dy, cache):
        gradients = backward(dy, cache)
        cache.x[...] = 0.0
        return gradients

    return wrong


def swapped(backward):
    def wrong(dy, cache):
        first, second, *rest = backward(dy, cache)
        return second, first, *rest

    return wrong


def draw(subject):
    rng = np.random.default_rng(7)
    return {name: rng.standard_normal(shape) for name, shape in SUBJECTS[subject].shapes.items()}


X = draw("gelu")["x"]  # GELU's caches hold the slope in place of what it is made of
CDF = 0.5 * (1.0 + erf(X * math.sqrt(0.5)))
TANH = np.tanh(math.sqrt(2.0 / math.pi) * (X + 0.044715 * X**3))

PLANTS = [  # subject, mistake, how the way back is changed, the arrays whose gradients become wrong
    ("linear", "dbias of one position only", change(2, lambda g, dy, c: rows(dy)[0]), "bias"),
    ("linear", "dbias averaged, not summed", change(2, lambda g, dy, c: rows(dy).mean(axis=0)), "bias"),
    ("linear", "dbias forgotten", change(2, lambda g, dy, c: 0.0 * g), "bias"),
    ("linear", "dweight of the first image only", change(1, lambda g, dy, c: rows(c.x[0]).T @ rows(dy[0])), "weight"),
    ("linear", "dweight transposed, shapes differ", change(1, lambda g, dy, c: g.T), "weight"),
    ("square linear", "dweight transposed", change(1, lambda g, dy, c: g.T), "weight"),
    ("square linear", "dx by the weight as it stands", change(0, lambda g, dy, c: dy @ c.weight), "x"),
    ("square linear", "dx and dweight swapped", swapped, "x weight"),
    ("gelu", "the term x φ(x) forgotten", instead(lambda dy, c: dy * CDF), "x"),
    ("gelu", "the density without 1/√(2π)", instead(lambda dy, c: dy * (CDF + X * np.exp(-0.5 * X**2))), "x"),
    ("gelu", "the derivative of the tanh form",
     instead(lambda dy, c: gelu_tanh_backward(dy, gelu_tanh_forward(X)[1])), "x"),
    ("gelu", "the value for the slope", instead(lambda dy, c: dy * X * CDF), "x"),
    ("gelu", "sign", change(0, lambda g, dy, c: -g), "x"),
    ("gelu", "zeros", change(0, lambda g, dy, c: 0.0 * g), "x"),
    ("gelu", "dy ignored", change(0, lambda g, dy, c: g / dy), "x"),
    ("gelu", "one of 90 elements is off by 1e-4", change(0, lambda g, dy, c: g * (1 + 1e-4 * (g == g.max()))), "x"),
    ("gelu_tanh", "the derivative of the erf form",
     instead(lambda dy, c: gelu_backward(dy, gelu_forward(X)[1])), "x"),
    ("gelu_tanh", "u' without its cubic term",
     instead(lambda dy, c: dy * 0.5 * (1 + TANH + X * (1 - TANH**2) * math.sqrt(2 / math.pi))), "x"),
    ("modulate", "dx by x", change(0, lambda g, dy, c: dy * c.x), "x"),
    ("modulate", "dmodulator summed over channels",
     change(1, lambda g, dy, c: 0.0 * g + g.sum(axis=-1, keepdims=True)), "modulator"),
    ("split", "the parts in another order", instead(lambda dy, c: dy), "x"),
    ("sigmoid", "y (1 + y)", instead(lambda dy, c: dy * c.y * (1 + c.y)), "x"),
    ("layer_norm", "the mean forgotten", change(0, lambda g, dy, c: layer_norm_dx(dy, c, mean=0.0)), "x"),
    ("layer_norm", "the variance forgotten", change(0, lambda g, dy, c: layer_norm_dx(dy, c, variance=0.0)), "x"),
    ("layer_norm", "seven times too large", change(0, lambda g, dy, c: 7.0 * g), "x"),
    ("layer_norm", "the weight forgotten in dx",
     change(0, lambda g, dy, c: layer_norm_dx(dy, c._replace(weight=1.0))), "x"),
    ("layer_norm", "divided by C - 1", change(0, lambda g, dy, c: layer_norm_dx(dy, c, variance=C / (C - 1))), "x"),
    ("layer_norm", "dweight from dy alone", change(1, lambda g, dy, c: rows(dy).sum(axis=0)), "weight"),
    ("layer_norm", "dbias times the weight", change(2, lambda g, dy, c: g * c.weight), "bias"),
    ("layer_norm", "dweight of the last image only",
     change(1, lambda g, dy, c: (dy * c.x_hat)[-1].sum(axis=(0, 1))), "weight"),
    ("layer_scale", "dgamma of the first image only",
     change(1, lambda g, dy, c: rows(dy[0] * c.x[0]).sum(axis=0)), "gamma"),
    ("layer_scale", "dx without gamma", change(0, lambda g, dy, c: dy), "x"),
    ("depthwise_conv", "dx with the kernel not turned", change(0, lambda g, dy, c: correlate(dy, c.weight)), "x"),
    ("depthwise_conv", "dx with the kernel turned in one axis",
     change(0, lambda g, dy, c: correlate(dy, c.weight[::-1])), "x"),
    ("depthwise_conv", "dx with the kernel transposed",
     change(0, lambda g, dy, c: correlate(dy, c.weight[::-1, ::-1].transpose(1, 0, 2))), "x"),
    ("depthwise_conv", "dx padded off by one", change(0, lambda g, dy, c: np.roll(g, 1, axis=2)), "x"),
    ("depthwise_conv", "dweight turned", change(1, lambda g, dy, c: g[::-1, ::-1]), "weight"),
    ("depthwise_conv", "dweight summed over channels too",
     change(1, lambda g, dy, c: np.broadcast_to(g.sum(axis=-1, keepdims=True), g.shape)), "weight"),
    ("depthwise_conv", "both wrong",
     lambda backward: lambda dy, c: (correlate(dy, c.weight), backward(dy, c)[1][::-1, ::-1]), "x weight"),
    ("focal_level", "the gate's share of dctx forgotten",
     instead(level_through(lambda d, da, c: (d, da))), "ctx weight"),
    ("focal_level", "the gate forgotten in dctx", instead(level_through(lambda d, da, c: (d + da, da))), "ctx weight"),
    ("focal_level", "dctx of the next level dropped",
     instead(level_through(lambda d, da, c: (c.gate * da, da))), "ctx weight"),
    ("focal_level", "dgate summed over the width",
     change(2, lambda g, dy, c: (dy[..., C:] * c.ctx).sum(axis=2)[..., None]), "gate"),
    ("focal_level", "dgate summed over nothing, one channel kept",
     change(2, lambda g, dy, c: (dy[..., C:] * c.ctx)[..., :1]), "gate"),
    ("focal_level", "dgate from the context before",
     change(2, lambda g, dy, c: (dy[..., C:] * c.conv.x).sum(-1, keepdims=True)), "gate"),
    ("focal_level", "the sum's gradient not passed on", change(3, lambda g, dy, c: 0.0 * g), "aggregate"),
    ("focal_level", "GELU's derivative at its output",
     lambda backward: lambda dy, c: backward(dy, c._replace(gelu=gelu_forward(c.ctx)[1])), "ctx weight"),
    ("global_level", "without 1/(HW)", change(0, lambda g, dy, c: g * (H * W)), "ctx"),
    ("global_level", "without the derivative of its GELU",
     change(0, lambda g, dy, c: 0 * g + (dy * c.gate).sum(axis=(1, 2), keepdims=True) / (H * W)), "ctx"),
    ("global_level", "the gate forgotten in dctx",
     change(0, lambda g, dy, c: 0 * g + gelu_backward(dy.sum(axis=(1, 2), keepdims=True), c.gelu) / (H * W)), "ctx"),
    ("global_level", "dgate averaged over channels", change(1, lambda g, dy, c: g / C), "gate"),
    ("patches", "overlaps overwritten, not added", instead(overwriting_patches), "x"),
    ("patches", "the padding cut at the wrong side", change(0, lambda g, dy, c: np.roll(g, 1, axis=1)), "x"),
    ("patches", "the padding not cut",
     lambda backward: lambda dy, c: np.pad(backward(dy, c), ((0, 0), (1, 1), (0, 2), (0, 0))), "x"),
    ("tiled patches", "read in (i, j, c) order", instead(channel_last_patches), "x"),
    ("tiled patches", "rows and columns swapped in a patch",
     lambda backward: lambda dy, c: backward(
         dy.reshape(*dy.shape[:3], C, 2, 2).swapaxes(-1, -2).reshape(dy.shape), c), "x"),
    ("box_mean", "the window not turned", instead(lambda dy, c: box_mean_forward(dy, c.width)[0]), "x"),
    ("box_mean", "without 1/width", change(0, lambda g, dy, c: g * c.width), "x"),
    ("mean_pool", "without 1/(HW)", change(0, lambda g, dy, c: g * (H * W)), "x"),
    ("drop_path", "without the scale", instead(lambda dy, c: dy * (c.scale > 0)), "x"),
    ("drop_path", "nothing dropped on the way back", instead(lambda dy, c: dy), "x"),
    ("drop_path", "drawn anew",
     instead(lambda dy, c: dy * drop_path_forward(dy, 0.4, random_generator(9))[1].scale), "x"),
    ("cross_entropy", "without 1/B", change(0, lambda g, dy, c: 3.0 * g), "logits"),
    ("cross_entropy", "the smoothing forgotten",
     change(0, lambda g, dy, c: (c.probabilities - np.eye(5)[[4, 0, 2]]) * (dy / 3)), "logits"),
    ("cross_entropy", "dloss forgotten", instead(lambda dy, c: cross_entropy_backward(c)), "logits"),
    ("cross_entropy", "the targets forgotten", change(0, lambda g, dy, c: c.probabilities * (dy / 3)), "logits"),
    ("linear", "writes into dy", writes_into_dy, "x weight bias"),
    ("linear", "writes into its input", writes_into_x, "x"),
    ("linear", "float32", change(1, lambda g, dy, c: g.astype("float32")), "weight"),
    ("linear", "integers", change(1, lambda g, dy, c: g.astype("int64")), "weight"),
    ("linear", "flattened", change(1, lambda g, dy, c: g.ravel()), "weight"),
    ("linear", "an axis of one too many, which would broadcast", change(2, lambda g, dy, c: g[None]), "bias"),
    ("linear", "a number where an array belongs", change(2, lambda g, dy, c: 0.0), "bias"),
    ("linear", "None", change(0, lambda g, dy, c: None), "x"),
    ("linear", "NaN in one element", change(0, lambda g, dy, c: np.where(g == g.max(), np.nan, g)), "x"),
    ("linear", "infinity", change(1, lambda g, dy, c: g + np.inf), "weight"),
    ("linear", "dweight and dx swapped, shapes differ", swapped, "x weight"),
]  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"method": "complex", "elementwise": True}], ids=["central", "complex"])
@pytest.mark.parametrize(("subject", "mistake", "plant", "wrong"), PLANTS, ids=[f"{p[0]}: {p[1]}" for p in PLANTS])
def test_a_planted_mistake_is_caught_and_named(subject, mistake, plant, wrong, options):
    forward, backward, _ = SUBJECTS[subject]
    right = check_gradients(forward, backward, draw(subject), **options)
    assert right.passed, str(right)
    report = check_gradients(forward, plant(backward), draw(subject), **options)
    assert report.failed == tuple(wrong.split())
    assert not report.passed


def test_enough_mistakes_are_planted_over_every_operation():
    planted = {subject.split()[-1] for subject, *_ in PLANTS}
    operations = {field.name for field in fields(REFERENCE) if isinstance(getattr(REFERENCE, field.name), Op)}
    assert planted >= operations - {"dropout"}  # it shares drop_path's way back
    assert len(PLANTS) >= 25


# Mistakes planted in layers: a wrong operation in their table, or a wrong way back of their own


def build(layer_class, *arguments, ops=REFERENCE):
    """A layer with no parameter at one or zero."""
    layer = layer_class(*arguments, init=get_initializer("lecun", 0, "float64"), ops=ops)
    rng = np.random.default_rng(1)
    for parameter in layer.parameters():
        parameter.data += rng.uniform(-0.5, 0.5, parameter.data.shape)
    return layer


CONFIG = FocalNetConfig(
    image_size=16, patch_size=2, embed_dim=C, depths=(1,), mlp_ratio=2.0, focal_levels=(2,), focal_windows=(3,),
    use_layerscale=True,
)  # fmt: skip
BLOCK = [name for name, _ in build(FocalNetBlock, CONFIG, 0, 0.0).named_parameters()]


def with_op(name, plant):
    """The table of operations with one way back changed."""
    right = getattr(REFERENCE, name)
    return replace(REFERENCE, **{name: Op(right.forward, plant(right.backward))})


def check(layer, shape=MAP, **options):
    return check_layer(layer, np.random.default_rng(3).standard_normal(shape), **options)


def test_the_layers_to_plant_in_are_right():
    for layer in (build(FocalNetBlock, CONFIG, 0, 0.0), build(SigmoidGateModulation, CONFIG, 0), build(MLP, C, 4)):
        report = check(layer)
        assert report.passed, str(report)


def test_a_layer_scale_without_the_batch_is_named_by_both_gammas():
    ops = with_op("layer_scale", change(1, lambda g, dy, c: (dy[0] * c.x[0]).sum(axis=(0, 1))))
    assert check(build(FocalNetBlock, CONFIG, 0, 0.0, ops=ops)).failed == ("gamma_1", "gamma_2")


def test_a_dropped_gradient_of_the_next_level_shows_in_the_first_kernel_and_what_feeds_it():
    ops = with_op("focal_level", lambda backward: lambda dctx, daggregate, cache: backward(0.0, daggregate, cache))
    report = check(build(FocalModulation, CONFIG, 0, ops=ops))
    # The last level loses what comes from the global level; the gates, h and proj are untouched.
    assert report.failed == ("x", "f.weight", "f.bias", "focal_layers.0.0.weight", "focal_layers.1.0.weight")


def test_an_activation_skipped_on_the_way_back_spares_what_lies_behind_it():
    ops = with_op("gelu", instead(lambda dy, cache: dy))
    assert check(build(MLP, C, 4, ops=ops)).failed == ("x", "fc1.weight", "fc1.bias")


class ForgetsTheResidual(FocalNetBlock):
    def _residual_backward(self, dy, *rest):
        return super()._residual_backward(dy, *rest) - dy


def test_a_forgotten_residual_gradient_spares_the_last_branch():
    report = check(build(ForgetsTheResidual, CONFIG, 0, 0.0))
    second = BLOCK[BLOCK.index("gamma_1") + 1 :]
    assert report.failed == ("x", *[name for name in BLOCK if name not in second])


class ForgetsTheGate(SigmoidGateModulation):
    def backward(self, dy, cache):
        before = self.gate.weight.grad.copy(), self.gate.bias.grad.copy()
        dx = super().backward(dy, cache)
        self.gate.weight.grad, self.gate.bias.grad = before
        return dx


def test_a_parameter_without_a_gradient_is_named():
    assert check(build(ForgetsTheGate, CONFIG, 0)).failed == ("gate.weight", "gate.bias")


class OverwritesGradients(Linear):
    def backward(self, dy, cache):
        dx, self.weight.grad[...], self.bias.grad[...] = linear_backward(dy, cache)
        return dx


class ReplacesGradients(Linear):
    def backward(self, dy, cache):
        dx, self.weight.grad, self.bias.grad = linear_backward(dy, cache)
        return dx


@pytest.mark.parametrize("kind", [OverwritesGradients, ReplacesGradients])
def test_a_layer_that_overwrites_what_it_should_add_to_is_caught(kind):
    assert check(build(kind, C, 4)).failed == ("weight", "bias")


class AddsInBackwardTwice(Linear):
    def backward(self, dy, cache):
        dx = super().backward(dy, cache)
        self.bias.grad += dy.reshape(-1, dy.shape[-1]).sum(axis=0)
        return dx


def test_a_gradient_added_twice_is_caught():
    assert check(build(AddsInBackwardTwice, C, 4)).failed == ("bias",)


class ChangesItsWeight(Linear):
    def backward(self, dy, cache):
        dx = super().backward(dy, cache)
        self.weight.data *= 0.5
        return dx


def test_a_layer_that_changes_a_parameter_is_caught():
    report = check(build(ChangesItsWeight, C, 4))
    assert report.failed == ("weight",)
    assert report["weight"].fault == "forward or backward changed it in place"


# Why the upstream gradient is random


def test_an_upstream_gradient_of_ones_cannot_see_a_wrong_layer_norm():
    """The normalised channels of a token sum to zero. Summing the outputs sums them: it sees nothing of dx."""
    x = np.random.default_rng(4).standard_normal(MAP)
    y, cache = layer_norm_forward(x, np.ones(C), np.zeros(C))
    wrong = [
        lambda dy: layer_norm_dx(dy, cache, variance=0.0),
        lambda dy: 7.0 * layer_norm_dx(dy, cache),
    ]
    ones, random = np.ones(y.shape), np.random.default_rng(5).standard_normal(y.shape)
    rounding = 64 * np.finfo(np.float64).eps * cache.rstd.max()
    for backward in wrong:
        np.testing.assert_allclose(backward(ones), layer_norm_backward(ones, cache)[0], rtol=0, atol=rounding)
        difference = np.abs(backward(random) - layer_norm_backward(random, cache)[0]).max()
        assert difference > 0.1


# What the checker refuses, and what it reports


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "complex128", "bool"])
def test_other_types_than_float64_are_refused_with_the_reason(dtype):
    with pytest.raises(InputError, match=rf"checked in float64, but x is {dtype}: .* three good digits.*astype"):
        check_gradients(gelu_forward, gelu_backward, {"x": np.ones(3, dtype=dtype)})


def test_a_float32_layer_or_input_is_refused_by_name():
    init = get_initializer("lecun", 0, "float32")
    with pytest.raises(InputError, match=r"but fc1\.weight is float32"):
        check_layer(MLP(C, 4, init=init), np.ones(MAP))
    with pytest.raises(InputError, match="but x is float32"):
        check_layer(build(MLP, C, 4), np.ones(MAP, dtype="float32"))


def test_lists_of_numbers_are_no_arrays():
    with pytest.raises(TypeError, match="expected a NumPy or CuPy array, got list"):
        check_gradients(gelu_forward, gelu_backward, {"x": [1.0, 2.0]})


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match=r"method must be one of central, complex, got 'forward'"):
        check_gradients(gelu_forward, gelu_backward, [np.ones(3)], method="forward")


@pytest.mark.parametrize("count", [1, 4])
def test_a_wrong_number_of_gradients_is_refused(count):
    def backward(dy, cache):
        return (*linear_backward(dy, cache), dy)[:count]

    with pytest.raises(InputError, match=rf"must give 3 gradients \(x, weight, bias\), got {count}"):
        check_gradients(linear_forward, backward, draw("linear"))


def test_arrays_without_names_are_numbered():
    report = check_gradients(linear_forward, linear_backward, list(draw("linear").values()))
    assert [check.name for check in report.checks] == ["x0", "x1", "x2"]


def test_the_table_lists_index_analytic_numeric_and_relative_error_worst_first():
    def backward(dy, cache):
        dx = gelu_backward(dy, cache)
        dx[1, 2] += 3.0
        dx[0, 1] *= 1.01
        return dx

    x = np.random.default_rng(6).standard_normal((2, 4))
    report = check_gradients(gelu_forward, backward, {"x": x}, elementwise=True)
    entries = report["x"].entries
    assert len(entries) == x.size
    assert [entry.index for entry in entries[:2]] == [(1, 2), (0, 1)]
    assert [entry.relative_error for entry in entries] == sorted((e.relative_error for e in entries), reverse=True)
    assert entries[0].analytic - entries[0].numeric == pytest.approx(3.0, rel=1e-9)
    assert report.relative_error == entries[0].relative_error
    _, head, *lines = report["x"].table().splitlines()
    assert head.split() == ["index", "analytic", "numeric", "relative", "error"]
    assert len(lines) == x.size
    assert lines[0].split() == [
        "(1,", "2)", f"{entries[0].analytic:.10e}", f"{entries[0].numeric:.10e}", f"{entries[0].relative_error:.1e}",
    ]  # fmt: skip
    assert len(report["x"].table(rows=3).splitlines()) == 2 + 3


def test_the_report_says_pass_or_fail_for_each_array_and_shows_the_failures():
    forward, backward, _ = SUBJECTS["linear"]
    text = str(check_gradients(forward, change(1, lambda g, dy, c: 2 * g)(backward), draw("linear")))
    verdicts = [line.split()[-1] for line in text.splitlines()[:3]]
    assert verdicts == ["pass", "FAIL", "pass"]
    assert text.splitlines()[3] == "weight"
    assert "direction" in text.splitlines()[5]


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (change(2, lambda g, dy, c: g[None]), r"must have shape (4,), got (1, 4)"),
        (change(2, lambda g, dy, c: None), r"must have shape (4,), got None"),
        (change(2, lambda g, dy, c: g.astype("float32")), "must be float64, got float32"),
        (change(2, lambda g, dy, c: g * np.nan), "is not finite"),
        (writes_into_dy, "backward changed dy in place"),
    ],
)
def test_a_gradient_that_cannot_be_compared_says_why(plant, fault):
    forward, backward, _ = SUBJECTS["linear"]
    report = check_gradients(forward, plant(backward), draw("linear"))
    assert fault in report["bias"].fault
    assert fault in str(report)
    assert report["bias"].relative_error == math.inf
    assert report.relative_error == math.inf


def test_a_forward_function_that_gives_nan_fails_a_finite_gradient():
    report = check_gradients(lambda x: (x * math.nan, None), lambda dy, cache: dy, draw("gelu"))
    assert report.failed == ("x",)
    assert report.relative_error == math.inf


def test_a_forward_function_that_writes_into_its_input_is_caught():
    def forward(x):
        y, cache = gelu_forward(x.copy())
        x += 1.0
        return y, cache

    assert check_gradients(forward, gelu_backward, draw("gelu")).failed == ("x",)


def test_the_arrays_given_are_left_as_they_were():
    arrays = draw("layer_norm")
    kept = {name: array.copy() for name, array in arrays.items()}
    for array in arrays.values():
        array.flags.writeable = False
    forward, backward, _ = SUBJECTS["layer_norm"]
    assert check_gradients(forward, backward, arrays, elementwise=True).passed
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, kept[name])


def test_every_direction_asked_for_is_compared():
    forward, backward, _ = SUBJECTS["layer_norm"]
    report = check_gradients(forward, backward, draw("layer_norm"), directions=5)
    assert [len(check.entries) for check in report.checks] == [5, 5, 5]
    assert len({entry.numeric for entry in report["x"].entries}) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": 0}, "directions must be an integer of at least 1"),
        ({"step": 0.0}, "step must be above 0"),
        ({"step": math.nan}, "step must be above 0"),
        ({"tolerance": math.inf}, "tolerance must be above 0 and finite"),
    ],
)
def test_a_check_that_could_not_fail_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        check_gradients(lambda x: (x * x, x), lambda dy, x: 0 * dy + 7, {"x": np.ones(3)}, **options)


def test_arrays_of_seed_0_do_not_meet_themselves_as_upstream_gradient():
    """Everybody's first seed is 0. Were dy the same draws, dy = x, then dweight = x^T x would equal its transpose."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape) for name, shape in SUBJECTS["square linear"].shapes.items()}
    plant = change(1, lambda g, dy, c: g.T)
    assert check_gradients(linear_forward, plant(linear_backward), arrays).failed == ("weight",)


def test_the_rng_makes_a_report_repeatable():
    forward, backward, _ = SUBJECTS["layer_norm"]

    def numbers(seed):
        report = check_gradients(forward, backward, draw("layer_norm"), rng=random_generator(seed))
        return [entry.numeric for check in report.checks for entry in check.entries]

    assert numbers(1) == numbers(1) != numbers(2)


def test_the_tolerance_decides():
    forward, backward, _ = SUBJECTS["linear"]
    plant = change(1, lambda g, dy, c: g * (1 + 1e-5))
    assert check_gradients(forward, plant(backward), draw("linear")).failed == ("weight",)
    assert check_gradients(forward, plant(backward), draw("linear"), tolerance=1e-4).passed


def test_the_step_decides():
    """A step as wide as the function's bends is wrong; the default is not."""
    assert not check_gradients(gelu_forward, gelu_backward, draw("gelu"), step=0.5).passed
    assert check_gradients(gelu_forward, gelu_backward, draw("gelu")).passed


# check_layer puts everything back


class Fails(Linear):
    """Its forward pass fails the third time."""

    passes = 0

    def forward(self, x, rng=None):
        self.passes += 1
        if self.passes == 3:
            raise RuntimeError("the third time")
        return super().forward(x, rng)


@pytest.mark.parametrize("kind", [Linear, Fails, OverwritesGradients, ReplacesGradients])
def test_check_layer_puts_parameters_and_gradients_back(kind):
    layer = build(kind, C, 4)
    for parameter in layer.parameters():
        parameter.grad[...] = 5.0
    held = [(p.data, p.grad, p.data.copy()) for p in layer.parameters()]
    if kind is Fails:
        with pytest.raises(RuntimeError, match="the third time"):
            check(layer)
    else:
        check(layer)
    for parameter, (data, grad, values) in zip(layer.parameters(), held, strict=True):
        assert parameter.data is data
        assert parameter.grad is grad
        np.testing.assert_array_equal(data, values)
        np.testing.assert_array_equal(grad, np.full(grad.shape, 5.0))


def test_a_drop_seed_lets_every_pass_drop_the_same():
    layer = build(FocalNetBlock, CONFIG, 0, 0.4)
    assert check(layer, (6, H, W, C), drop_seed=2).passed
    x = np.random.default_rng(3).standard_normal((6, H, W, C))
    assert not np.array_equal(layer.forward(x, random_generator(2))[0], layer(x))


def test_a_layer_without_parameters_has_its_input_checked():
    report = check(build(LayerNorm, C))
    assert [check.name for check in report.checks] == ["x", "weight", "bias"]


# The two halves by themselves: numbers without a backward function, and the comparison


@pytest.mark.parametrize(("method", "rtol"), [("complex", 1e-12), ("central", 1e-8)])
def test_numeric_gradients_are_those_of_the_backward_function(method, rtol):
    rng = random_generator(20)
    arrays = {"x": rng.standard_normal((2, 5, 4, 3)), "weight": rng.standard_normal((3, 3, 3))}
    z, cache = depthwise_conv_forward(*arrays.values())
    dz = rng.standard_normal(z.shape)
    numeric = numeric_gradients(depthwise_conv_forward, arrays, dz, method=method)
    assert list(numeric) == ["x", "weight"]
    for found, right in zip(numeric.values(), depthwise_conv_backward(dz, cache), strict=True):
        np.testing.assert_allclose(found, right, rtol=rtol, atol=rtol)


def test_numeric_gradients_leave_the_arrays_and_refuse_what_the_check_refuses():
    x = random_generator(21).standard_normal((2, 3))
    kept = x.copy()
    numeric_gradients(gelu_forward, {"x": x}, np.ones((2, 3)))
    np.testing.assert_array_equal(x, kept)
    with pytest.raises(InputError, match="gradients are checked in float64, but x is float32"):
        numeric_gradients(gelu_forward, {"x": x.astype("float32")}, np.ones((2, 3)))
    with pytest.raises(InputError, match="method must be one of central, complex, got 'forward'"):
        numeric_gradients(gelu_forward, {"x": x}, np.ones((2, 3)), method="forward")


def test_arrays_are_compared_element_by_element_worst_first():
    right = np.array([[1.0, -2.0, 3.0], [0.0, 4.0, 5.0]])
    wrong = right + np.array([[0.0, 0.0, 0.3], [1.0, 0.0, 0.0]])
    check = compare_arrays("dx", wrong, right)
    assert not check.passed
    assert [entry.index for entry in check.entries[:2]] == [(1, 0), (0, 2)]
    # An element near zero is measured by the root mean square of all of them.
    rms = math.sqrt((right**2).mean())
    assert check.entries[0].relative_error == pytest.approx(1.0 / max(1.0, rms))
    assert check.entries[1].relative_error == pytest.approx(0.3 / 3.3)
    assert compare_arrays("dx", right + 1e-9, right).passed
    assert not compare_arrays("dx", right + 1e-9, right, tolerance=1e-12).passed


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.zeros((3, 2)), "must have shape (2, 3), got (3, 2)"),
        (np.zeros((2, 3), "float32"), "must be float64, got float32"),
        (np.full((2, 3), np.nan), "is not finite"),
        (None, "must have shape (2, 3), got NoneType"),
    ],
)
def test_what_cannot_be_compared_is_a_fault(array, fault):
    check = compare_arrays("dx", array, np.ones((2, 3)))
    assert fault in check.fault
    assert not check.passed
    assert check.entries == ()


def test_a_check_of_nothing_is_refused():
    with pytest.raises(InputError, match="there are no arrays to check; pass at least one"):
        check_gradients(lambda: (np.zeros(1), None), lambda dy, cache: (), {})
