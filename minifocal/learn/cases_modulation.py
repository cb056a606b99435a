"""Calls and usual mistakes of the exercises on focal modulation, what surrounds it in a block, and the optimizer."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minifocal.arrays import Array, erf, random_generator
from minifocal.functional.activations import gelu_forward
from minifocal.functional.context import focal_level_backward, focal_level_forward, global_level_forward
from minifocal.functional.depthwise_conv import depthwise_conv_forward
from minifocal.functional.drop_path import drop_path_forward
from minifocal.functional.layer_scale import layer_scale_forward
from minifocal.functional.linear import linear_forward
from minifocal.functional.modulate import modulate_forward
from minifocal.functional.updates import UpdateRow, sgd_update
from minifocal.learn.case import Case, Draws, Suspect, as_given, gradient_case

MAPS = ((1, 1, 2, 2), (2, 5, 4, 3))  # B, H, W, C


def gates() -> Iterator[Case]:
    """y = sum_l gates[..., l] * ctx[l]."""
    draw = Draws(11)
    for (B, H, W, C), L in zip(MAPS, (1, 6), strict=True):
        ctx, gates = draw(L, B, H, W, C), draw(B, H, W, L)

        def forward(ctx: Array, gates: Array) -> tuple[Array, None]:
            return sum(gates[..., level : level + 1] * ctx[level] for level in range(len(ctx))), None

        def suspects(dy: Array, ctx: Array = ctx, gates: Array = gates) -> tuple[Suspect, ...]:
            L = len(ctx)
            summed = np.stack([(dy * ctx.sum(axis=0)).sum(axis=-1)] * L, axis=-1)
            plain = np.stack([ctx[level].sum(axis=-1) for level in range(L)], axis=-1)
            sums = plain * dy.sum(axis=-1, keepdims=True)
            no_gate = np.broadcast_to(dy, ctx.shape)
            total = gates.sum(axis=-1, keepdims=True) * no_gate
            turned = np.stack([gates[..., level : level + 1] * dy for level in reversed(range(L))])
            return (
                Suspect("dctx", no_gate, "the gates are missing: each level gets its own gate's share of dy"),
                Suspect("dctx", total, "every level gets the sum of the gates, expected its own gate"),
                Suspect("dctx", turned, "the levels are in reverse order"),
                Suspect(
                    "dctx", ctx * dy, "dctx takes ctx, expected the gates: of a product each factor gets the other"
                ),
                Suspect("dgates", sums, "it is a product of sums over the channels, expected a sum of products"),
                Suspect("dgates", summed, "a gate gets the sum over all levels, expected its own level's context"),
                Suspect("dgates", plain, "dgates does not depend on dy: the chain rule multiplies by it"),
            )

        yield gradient_case(
            {"L": L, "B": B, "H": H, "W": W, "C": C},
            forward,
            {"ctx": ctx, "gates": gates},
            {"dy": as_given, "ctx": ctx, "gates": gates},
            draw=draw,
            suspects=suspects,
        )


def global_level() -> Iterator[Case]:
    """y = gate * GELU(mean of ctx over H and W)."""
    draw = Draws(12)
    for B, H, W, C in MAPS:
        ctx, gate = draw(B, H, W, C), draw(B, H, W, 1)
        ctx_global, cache = gelu_forward(ctx.mean(axis=(1, 2), keepdims=True))

        def forward(ctx: Array, gate: Array) -> tuple[Array, Any]:
            return global_level_forward(ctx, gate, 0.0)

        def suspects(
            dy: Array, gate: Array = gate, slope: Array = cache.slope, ctx_global: Array = ctx_global
        ) -> tuple[Suspect, ...]:
            _, H, W, _ = dy.shape

            def spread(one: Array) -> Array:
                return np.broadcast_to(one / (H * W), dy.shape)

            both = (1, 2)
            return (
                Suspect(
                    "dctx",
                    spread((gate * dy).sum(axis=both, keepdims=True)),
                    "the slope of GELU is missing: the mean goes through it",
                ),
                Suspect(
                    "dctx",
                    spread(slope * dy.sum(axis=both, keepdims=True)),
                    "the gate is missing: each token takes its own share of the global context",
                ),
                Suspect(
                    "dctx",
                    gate * dy * slope / (H * W),
                    "each token gets back its own part only: all tokens used the one mean, so sum over H and W first",
                ),
                Suspect(
                    "dctx",
                    spread(slope * (gate * dy).mean(axis=both, keepdims=True)),
                    "it is divided by H*W twice: sum over the tokens, then spread one mean",
                ),
                Suspect(
                    "dctx",
                    spread(slope * (gate * dy).sum(axis=(0, *both), keepdims=True)),
                    "it is summed over the batch: each image has a mean of its own",
                ),
                Suspect(
                    "dctx",
                    spread(slope * dy.sum(axis=both, keepdims=True) * gate.sum(axis=both, keepdims=True)),
                    "it is a product of sums, expected a sum of products: multiply at each token, then add up",
                ),
                Suspect(
                    "dctx", gate * dy * slope * ctx_global, "dctx takes ctx_global: that is what the gate gets, not ctx"
                ),
                Suspect("dgate", dy.sum(axis=-1, keepdims=True), "the factor ctx_global is missing in dgate"),
                Suspect(
                    "dgate",
                    (dy * ctx_global * slope).sum(axis=-1, keepdims=True),
                    "there is a slope of GELU in dgate: the gate stands behind GELU",
                ),
            )

        yield gradient_case(
            {"B": B, "H": H, "W": W, "C": C},
            forward,
            {"ctx": ctx, "gate": gate},
            {"dy": as_given, "gate": gate, "ctx_global": ctx_global, "slope": cache.slope},
            draw=draw,
            suspects=suspects,
        )


def modulation() -> Iterator[Case]:
    """y = q * (z @ weight + bias)."""
    draw = Draws(13)
    for B, H, W, C in MAPS:
        arrays = {"q": draw(B, H, W, C), "z": draw(B, H, W, C), "weight": draw(C, C), "bias": draw(C)}

        def forward(q: Array, z: Array, weight: Array, bias: Array) -> tuple[Array, Any]:
            return modulate_forward(q, linear_forward(z, weight, bias)[0])

        def suspects(dy: Array, arrays: dict[str, Array] = arrays) -> tuple[Suspect, ...]:
            q, z, weight, bias = arrays.values()
            rows, C = z.reshape(-1, z.shape[-1]), z.shape[-1]
            wrong = (
                ("dq", dy * z, "dq takes z, expected the modulator z @ weight + bias"),
                ("dq", dy * q, "dq takes q, expected the modulator: of a product each factor gets the other"),
                ("dq", dy, "the modulator is missing: dq = dy * modulator"),
                (
                    "dq",
                    dy * (z @ weight.T + bias),
                    "weight is transposed in the modulator: forward is z @ weight + bias",
                ),
                ("dq", dy * (z @ weight), "the bias is missing in the modulator"),
                ("dz", dy @ weight.T, "the factor q is missing: dmodulator = dy * q comes first"),
                ("dz", (dy * q) @ weight, "weight is not transposed on the way back"),
                ("dz", dy * q, "the way back through the linear map is missing"),
                ("dweight", rows.T @ dy.reshape(-1, C), "the factor q is missing: dmodulator = dy * q comes first"),
                ("dweight", (dy * q).reshape(-1, C).T @ rows, "it is transposed: rows of weight belong to z"),
                ("dbias", dy.sum(axis=(0, 1, 2)), "the factor q is missing: dmodulator = dy * q comes first"),
            )
            return tuple(Suspect(*each) for each in wrong)

        yield gradient_case(
            {"B": B, "H": H, "W": W, "C": C},
            forward,
            arrays,
            {"dy": as_given, **arrays},
            draw=draw,
            suspects=suspects,
        )


def drop_path() -> Iterator[Case]:
    """y[b] = x[b] * keep[b] / (1 - rate), keep[b] = draws[b] < 1 - rate."""
    draw = Draws(14)
    for (B, H, W, C), rate, seed in (((1, 1, 2, 3), 0.25, 3), ((6, 2, 4, 3), 0.3, 5), ((5, 3, 2, 4), 0.6, 8)):
        draws = random_generator(seed).random(B)

        def forward(x: Array, rate: float = rate, seed: int = seed) -> tuple[Array, Any]:
            return drop_path_forward(x, rate, random_generator(seed))

        def suspects(dy: Array, draws: Array = draws, rate: float = rate) -> tuple[Suspect, ...]:
            by_sample = draws[:, None, None, None]
            kept, turned = by_sample < 1.0 - rate, by_sample < rate
            mirrored = "a sample is kept when its draw is < 1 - rate, not > rate"
            wrong = (
                (dy * turned / (1.0 - rate), "a sample is kept when its draw is < 1 - rate, not < rate"),
                (dy * ~turned / (1.0 - rate), mirrored),
                (dy * ~kept / (1.0 - rate), "the dropped samples are kept, and the kept ones dropped"),
                (dy / (1.0 - rate), "nothing is dropped: a dropped sample gets no gradient"),
                (np.where(kept, dy / (1.0 - rate), dy), "dropped samples still get dy: their output was zero"),
                (dy * kept / rate, "the scale is 1/(1 - rate), not 1/rate"),
                (
                    dy * by_sample / (1.0 - rate),
                    "the draws themselves are the factor, expected 0 or 1 after a comparison",
                ),
                (dy * turned / rate, "rate and 1 - rate are exchanged"),
            )
            return tuple(Suspect("dx", value, cause) for value, cause in wrong)

        yield gradient_case(
            {"B": B, "H": H, "W": W, "C": C},
            forward,
            {"x": draw(B, H, W, C)},
            {"dy": as_given, "draws": draws, "rate": rate},
            draw=draw,
            suspects=suspects,
        )


def layer_scale() -> Iterator[Case]:
    """y = gamma * x."""
    draw = Draws(15)
    for B, T, C in ((1, 1, 3), (2, 4, 5)):
        x, gamma = draw(B, T, C), draw(C)

        def suspects(dy: Array, x: Array = x, gamma: Array = gamma) -> tuple[Suspect, ...]:
            positions = (0, 1)
            return (
                Suspect(
                    "dgamma", (dy * x * gamma).sum(axis=positions), "dgamma takes y = gamma * x, expected x itself"
                ),
                Suspect("dgamma", dy.sum(axis=positions), "the factor x is missing: that would be a bias's gradient"),
                Suspect(
                    "dgamma",
                    dy.sum(axis=positions) * x.sum(axis=positions),
                    "it is a product of sums, expected a sum of products",
                ),
                Suspect("dx", dy * x, "dx takes x, expected gamma"),
            )

        yield gradient_case(
            {"B": B, "T": T, "C": C},
            layer_scale_forward,
            {"x": x, "gamma": gamma},
            {"dy": as_given, "x": x, "gamma": gamma},
            draw=draw,
            suspects=suspects,
        )


def sgd() -> Iterator[Case]:
    """velocity = momentum * velocity + grad + weight_decay * weight;  weight = weight - lr * velocity."""
    draw = Draws(16)
    for shape, lr, momentum, decay in (((3,), 0.1, 0.9, 0.0), ((2, 4), 0.4, 0.8, 0.3), ((3, 2), 0.3, 0.0, 0.5)):
        weight, grad, velocity = draw(*shape), draw(*shape), draw(*shape)
        new_weight, new_velocity = weight.copy(), velocity.copy()
        row = UpdateRow(new_weight, grad, (new_velocity,), decay)
        sgd_update([row], lr=lr, momentum=momentum, nesterov=False)
        slope = grad + decay * weight
        damped = momentum * velocity + (1.0 - momentum) * slope
        bare = momentum * velocity + grad
        wrong = (
            (
                "new_velocity",
                damped,
                "there is a factor 1 - momentum: that is Adam's mean, SGD adds the whole gradient",
            ),
            (
                "new_velocity",
                bare,
                "weight decay is missing: the gradient of weight_decay/2 * |weight|² is added to grad",
            ),
            (
                "new_velocity",
                momentum * velocity + lr * slope,
                "lr is inside the velocity: it belongs to the step alone",
            ),
            ("new_velocity", momentum * velocity - lr * slope, "lr and the sign are inside the velocity"),
            ("new_velocity", momentum * (velocity + slope), "momentum multiplies the new gradient too"),
            (
                "new_velocity",
                momentum * velocity - slope,
                "the velocity takes grad with a minus: the sign is in the step",
            ),
            ("new_velocity", bare - decay * weight, "weight decay has the wrong sign"),
            ("new_velocity", bare + lr * decay * weight, "weight decay is multiplied by lr: lr is in the step alone"),
            ("new_velocity", velocity, "it is the velocity before, expected the new one"),
            ("new_velocity", slope, "the velocity before is forgotten: nothing is remembered"),
            ("new_velocity", velocity + slope, "the velocity before is not multiplied by momentum"),
            ("new_weight", weight + lr * new_velocity, "the step goes up the slope: subtract it"),
            ("new_weight", weight - lr * velocity, "the step takes the velocity before, expected the new one"),
            ("new_weight", weight - lr * slope, "the step takes the gradient, expected the velocity"),
            ("new_weight", -lr * new_velocity, "it is the step alone: weight is missing"),
            ("new_weight", lr * new_velocity, "it is the step alone: weight is missing"),
            ("new_weight", weight + new_velocity, "lr and the minus are missing in the step"),
            ("new_weight", weight - new_velocity, "lr is missing in the step"),
            (
                "new_weight",
                weight - lr * (slope + momentum * new_velocity),
                "it looks ahead: that is Nesterov's momentum, here the plain one is asked for",
            ),
            ("new_weight", weight - lr * bare, "weight decay is missing: it is added to grad before the velocity"),
        )
        yield Case(
            sizes={f"axis{axis}": length for axis, length in enumerate(shape)},
            arguments={
                "weight": weight,
                "grad": grad,
                "velocity": velocity,
                "lr": lr,
                "momentum": momentum,
                "weight_decay": decay,
            },
            expected={"new_weight": new_weight, "new_velocity": new_velocity},
            suspects=tuple(Suspect(*each) for each in wrong),
            numeric=False,
        )


def focal_level() -> Iterator[Case]:
    """ctx = GELU(DWConv(ctx_before));  aggregate = gate * ctx."""
    draw = Draws(17)
    for B, H, W, C, k in ((1, 3, 4, 1, 3), (2, 5, 4, 6, 3)):
        arrays = {"ctx_before": draw(B, H, W, C), "weight": draw(k, k, C), "gate": draw(B, H, W, 1)}

        def forward(ctx_before: Array, weight: Array, gate: Array) -> tuple[Array, Any]:
            ctx, aggregate, cache = focal_level_forward(ctx_before, weight, gate, 0.0)
            return np.concatenate([ctx, aggregate], axis=-1), cache

        def suspects(dy: Array, arrays: dict[str, Array] = arrays) -> tuple[Suspect, ...]:
            before, weight, gate = arrays.values()
            C = before.shape[3]
            dctx, daggregate = dy[..., :C], dy[..., C:]
            z = depthwise_conv_forward(before, weight)[0]
            ctx, cache = gelu_forward(z)
            cdf = 0.5 * (1.0 + erf(z * math.sqrt(0.5)))
            _, _, level = focal_level_forward(before, weight, gate, 0.0)

            def gradients(dctx: Array, daggregate: Array, slope: Array = cache.slope) -> tuple[Array, ...]:
                other = level._replace(gelu=level.gelu._replace(slope=slope))
                return focal_level_backward(dctx, daggregate, other)

            wrong = (
                (gradients(0.0 * dctx, daggregate), "what comes back from the next level, dctx, is missing"),
                (gradients(dctx, 0.0 * daggregate), "the level's own share, gate * daggregate, is missing"),
                (gradients(dctx + (1.0 - gate) * daggregate, daggregate), "daggregate is not multiplied by the gate"),
                (gradients(dctx, daggregate, np.ones_like(z)), "the slope of GELU is missing"),
                (gradients(dctx, daggregate, gelu_forward(ctx)[1].slope), "the slope of GELU is taken at its output"),
                (gradients(dctx, daggregate, cdf), "the term z φ(z) of GELU's slope is missing"),
                (gradients(dctx, daggregate, ctx), "GELU itself stands where its slope belongs"),
                (gradients(gate * dctx, daggregate), "dctx is multiplied by the gate: it passed beside it"),
            )
            names = (("dctx_before", 0), ("dweight", 1))
            found = [Suspect(name, values[at], cause) for values, cause in wrong for name, at in names]
            dz, one_axis = (dctx + gate * daggregate) * cache.slope, "the kernel is turned along one axis only"
            for kernel, cause in (
                (weight, "the kernel is not turned by half a turn"),
                (weight[::-1], one_axis),
                (weight[:, ::-1], one_axis),
                (weight.swapaxes(0, 1), "the kernel is transposed, not turned by half a turn"),
            ):
                found.append(Suspect("dctx_before", depthwise_conv_forward(dz, kernel)[0], cause))
            for value, cause in (
                (z, "dgate takes the convolution, expected the context behind GELU"),
                (before, "dgate takes the context of the level before"),
            ):
                found.append(Suspect("dgate", (daggregate * value).sum(axis=-1, keepdims=True), cause))
            other = (dctx * ctx).sum(axis=-1, keepdims=True)
            found.append(Suspect("dgate", other, "dgate takes dctx, expected daggregate: only that passed the gate"))
            both = ((daggregate + dctx) * ctx).sum(axis=-1, keepdims=True)
            found.append(Suspect("dgate", both, "dctx did not pass the gate: only daggregate gives it a gradient"))
            return tuple(found)

        yield gradient_case(
            {"B": B, "H": H, "W": W, "C": C, "k": k},
            forward,
            arrays,
            {"dctx": _first_half, "daggregate": _second_half, **arrays},
            draw=draw,
            upstream=("dctx", "daggregate"),
            suspects=suspects,
        )


def _first_half(dy: Array) -> Array:
    return dy[..., : dy.shape[-1] // 2].copy()


def _second_half(dy: Array) -> Array:
    return dy[..., dy.shape[-1] // 2 :].copy()
