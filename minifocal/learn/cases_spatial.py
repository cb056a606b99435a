"""Calls and usual mistakes of the exercises on the token grid: patches and depthwise convolutions."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from minifocal.arrays import Array
from minifocal.functional.depthwise_conv import depthwise_conv_backward, depthwise_conv_forward
from minifocal.functional.patches import patches_backward as put_back
from minifocal.functional.patches import patches_forward
from minifocal.learn.case import Case, Draws, Suspect, as_given, gradient_case

PATCH_SIZES = ((1, 4, 6, 1, 2, 2), (5, 8, 7, 6, 2, 3), (4, 8, 6, 5, 3, 2))  # B, H, W, C, P, stride


def cut_patches() -> Iterator[Case]:
    """patches[b, h, w, (c, i, j)] = x[b, h*stride + i, w*stride + j, c]."""
    draw = Draws(6)
    for B, H, W, C, P, stride in PATCH_SIZES:
        x = draw(B, H, W, C)
        patches, _ = patches_forward(x, P, stride)
        split = patches.reshape(*patches.shape[:3], C, P, P)
        rows, columns = patches.shape[1:3]
        wrong = (
            (split.transpose(0, 1, 2, 4, 5, 3), "the channel runs fastest within a patch, expected slowest: (c, i, j)"),
            (split.transpose(0, 1, 2, 3, 5, 4), "rows and columns within a patch are exchanged: (c, i, j)"),
            (split.transpose(0, 1, 2, 5, 4, 3), "the order within a patch is (j, i, c), expected (c, i, j)"),
        )
        suspects = [Suspect("patches", value.reshape(patches.shape), cause) for value, cause in wrong]
        for step, cause in ((P, "the patches lie P apart"), (1, "the patches lie one pixel apart")):
            steps = patches_forward(x, P, step)[0][:, :rows, :columns]
            suspects.append(Suspect("patches", steps, f"{cause}, expected stride apart"))
        yield Case(
            sizes={"B": B, "H": H, "W": W, "C": C, "P": P, "stride": stride},
            arguments={"x": x, "size": P, "stride": stride},
            expected={"patches": patches},
            suspects=tuple(suspects),
            numeric=False,
        )


def patches_backward() -> Iterator[Case]:
    """The way back of the exercise before: patches that overlap add up."""
    draw = Draws(7)
    for B, H, W, C, P, stride in PATCH_SIZES:
        x = draw(B, H, W, C)
        _, cache = patches_forward(x, P, stride)
        seen = put_back(np.ones_like(patches_forward(x, P, stride)[0]), cache)

        def suspects(
            dpatches: Array, x: Array = x, seen: Array = seen, P: int = P, s: int = stride
        ) -> tuple[Suspect, ...]:
            _, cache = patches_forward(x, P, s)
            rows, columns = dpatches.shape[1:3]
            C = x.shape[3]
            right, split = put_back(dpatches, cache), dpatches.reshape(*dpatches.shape[:3], C, P, P)
            last = np.zeros_like(x)
            for h in range(rows):
                for w in range(columns):
                    last[:, h * s : h * s + P, w * s : w * s + P] = split[:, h, w].transpose(0, 2, 3, 1)

            def apart(step: int) -> Array:
                dx = np.zeros((x.shape[0], x.shape[1] + P * rows, x.shape[2] + P * columns, C))
                for h in range(rows):
                    for w in range(columns):
                        dx[:, h * step : h * step + P, w * step : w * step + P] += split[:, h, w].transpose(0, 2, 3, 1)
                return dx[:, : x.shape[1], : x.shape[2]]

            channel_fast = dpatches.reshape(*dpatches.shape[:3], P, P, C).transpose(0, 1, 2, 5, 3, 4)
            return (
                Suspect("dx", last, "where patches overlap the last one stays: add (+=) and do not set (=)"),
                Suspect("dx", apart(P), "the patches are put back P apart, expected stride apart"),
                Suspect("dx", apart(1), "the patches are put back one pixel apart, expected stride apart"),
                Suspect("dx", right / np.maximum(seen, 1.0), "overlaps are averaged: gradients add up"),
                Suspect(
                    "dx",
                    put_back(split.swapaxes(4, 5).reshape(dpatches.shape), cache),
                    "rows and columns within a patch are exchanged: (c, i, j)",
                ),
                Suspect(
                    "dx",
                    put_back(channel_fast.reshape(dpatches.shape), cache),
                    "the channel is taken to run fastest within a patch, but it runs slowest: (c, i, j)",
                ),
            )

        yield gradient_case(
            {"B": B, "H": H, "W": W, "C": C, "P": P, "stride": stride},
            partial(patches_forward, size=P, stride=stride),
            {"x": x},
            {"dpatches": as_given, "shape": x.shape, "size": P, "stride": stride},
            draw=draw,
            upstream=("dpatches",),
            suspects=suspects,
        )


CONV_SIZES = ((1, 3, 4, 1, 3), (2, 6, 5, 4, 3), (3, 7, 6, 2, 5))  # B, H, W, C, k


def _convolve(x: Array, weight: Array, mode: str = "constant") -> Array:
    """The convolution with other borders than zeros: "edge" or "wrap"."""
    margin, (_, H, W, _) = weight.shape[0] // 2, x.shape
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode)  # type: ignore[call-overload]
    z = depthwise_conv_forward(padded, weight)[0]
    return z[:, margin : margin + H, margin : margin + W]


def _only(k: int, tap: int) -> Array:
    """A kernel that is 1 at [tap, tap] and zero elsewhere, for all channels."""
    only = np.zeros((k, k, 1))
    only[tap, tap] = 1.0
    return only


TURNED = "the kernel is turned by half a turn, which a convolution here does not do: weight[i, j] meets x[h + i - k//2]"


def depthwise_conv() -> Iterator[Case]:
    """z[b, h, w, c] = sum_ij weight[i, j, c] x[b, h + i - k//2, w + j - k//2, c]."""
    draw = Draws(8)
    for B, H, W, C, k in CONV_SIZES:
        x, weight = draw(B, H, W, C), draw(k, k, C)
        z = depthwise_conv_forward(x, weight)[0]
        wrong = [
            (_convolve(x, weight[::-1, ::-1]), TURNED),
            (
                _convolve(x, weight.swapaxes(0, 1)),
                "the kernel is transposed: i goes with the rows h, j with the columns w",
            ),
            (_convolve(x, weight, "wrap"), "it wraps around: tokens outside the grid count as zero"),
            (_convolve(x, weight, "edge"), "the border is repeated: tokens outside the grid count as zero"),
            (_convolve(x, weight, "reflect"), "the border is mirrored: tokens outside the grid count as zero"),
            (_convolve(x, weight[::-1]), "the rows of the kernel are reversed: weight[i, j] meets x[h + i - k//2]"),
            (
                _convolve(x, weight[:, ::-1]),
                "the columns of the kernel are reversed: weight[i, j] meets x[w + j - k//2]",
            ),
            (_convolve(x, weight * _only(k, k - 1)), "only the last tap is left: add the taps up (+=), do not set (=)"),
            (x * weight.sum(axis=(0, 1)), "every tap meets the token itself: tap (i, j) looks at a neighbour"),
        ]
        if C > 1:
            inner = np.zeros_like(z)
            m = k // 2
            inner[:, m:-m, m:-m] = z[:, m:-m, m:-m]
            wrong.append((inner, "the border is left out: a window that reaches over it counts too, zeros outside"))
            crossed = np.repeat(z.sum(axis=3, keepdims=True), C, axis=3)
            wrong.append((crossed, "the channels are added up: a depthwise convolution keeps each by itself"))
            first = _convolve(x, np.repeat(weight[:, :, :1], C, axis=2))
            wrong.append((first, "every channel is convolved with the kernel of the first"))
        yield Case(
            sizes={"B": B, "H": H, "W": W, "C": C, "k": k},
            arguments={"x": x, "weight": weight},
            expected={"z": z},
            suspects=tuple(Suspect("z", value, cause) for value, cause in wrong),
            numeric=False,
        )


def depthwise_conv_dx() -> Iterator[Case]:
    """dx gathers dz with the kernel turned by half a turn."""
    draw = Draws(9)
    for B, H, W, C, k in CONV_SIZES:
        weight = draw(k, k, C)

        def suspects(dz: Array, weight: Array = weight) -> tuple[Suspect, ...]:
            turned = weight[::-1, ::-1]
            one_axis = "the kernel is turned along one axis only: half a turn reverses both"
            wrong = (
                (
                    _convolve(dz, weight),
                    "the kernel is not turned: x[h] reached z[h - i + k//2], so it comes back from there",
                ),
                (_convolve(dz, weight[::-1]), one_axis),
                (_convolve(dz, weight[:, ::-1]), one_axis),
                (_convolve(dz, weight.swapaxes(0, 1)), "the kernel is transposed, not turned by half a turn"),
                (_convolve(dz, turned.swapaxes(0, 1)), "the turned kernel is transposed as well"),
                (
                    _convolve(dz, turned * _only(len(weight), len(weight) - 1)),
                    "only the last tap is left: add the taps up (+=), do not set (=)",
                ),
                (_convolve(dz, turned, "wrap"), "it wraps around: nothing comes back from outside the grid"),
                (_convolve(dz, turned, "edge"), "the border is repeated: nothing comes back from outside the grid"),
                (dz * weight.sum(axis=(0, 1)), "every token gets back its own dz only: its neighbours saw it too"),
            )
            return tuple(Suspect("dx", value, cause) for value, cause in wrong)

        yield gradient_case(
            {"B": B, "H": H, "W": W, "C": C, "k": k},
            lambda x, weight=weight: depthwise_conv_forward(x, weight),
            {"x": draw(B, H, W, C)},
            {"dz": as_given, "weight": weight},
            draw=draw,
            upstream=("dz",),
            suspects=suspects,
        )


def depthwise_conv_dweight() -> Iterator[Case]:
    """dweight[i, j, c] = sum_bhw dz[b, h, w, c] x[b, h + i - k//2, w + j - k//2, c]."""
    draw = Draws(10)
    for B, H, W, C, k in CONV_SIZES:
        x, weight = draw(B, H, W, C), draw(k, k, C)

        def suspects(dz: Array, x: Array = x, weight: Array = weight) -> tuple[Suspect, ...]:
            def dweight(x: Array, dz: Array) -> Array:
                return depthwise_conv_backward(dz, depthwise_conv_forward(x, weight)[1])[1]

            k = weight.shape[0]
            m, (H, W) = k // 2, x.shape[1:3]
            inner = np.zeros_like(dz)
            inner[:, m : H - m, m : W - m] = dz[:, m : H - m, m : W - m]

            def by_tap(mode: str) -> Array:
                padded = np.pad(x, ((0, 0), (m, m), (m, m), (0, 0)), mode)  # type: ignore[call-overload]
                taps = [(dz * padded[:, i : i + H, j : j + W]).sum(axis=(0, 1, 2)) for i in range(k) for j in range(k)]
                return np.stack(taps).reshape(weight.shape)

            right = dweight(x, dz)
            wrong = (
                (
                    right[::-1, ::-1],
                    "it is turned by half a turn: weight[i, j] met x[h + i - k//2], not x[h - i + k//2]",
                ),
                (right.swapaxes(0, 1), "it is transposed: i goes with the rows h, j with the columns w"),
                (dweight(x, inner), "windows that reach over the border are left out: they count too, zeros outside"),
                (by_tap("edge"), "the border is repeated: tokens outside the grid count as zero"),
                (by_tap("wrap"), "it wraps around: tokens outside the grid count as zero"),
                (
                    np.broadcast_to((dz * x).sum(axis=(0, 1, 2)), weight.shape),
                    "every tap gets what the middle one gets: tap (i, j) met a neighbour",
                ),
                (dweight(x[:1], dz[:1]), "only the first image of the batch is there: add up over the batch"),
            )
            return tuple(Suspect("dweight", value, cause) for value, cause in wrong)

        yield gradient_case(
            {"B": B, "H": H, "W": W, "C": C, "k": k},
            lambda weight, x=x: depthwise_conv_forward(x, weight),
            {"weight": weight},
            {"dz": as_given, "x": x, "k": k},
            draw=draw,
            upstream=("dz",),
            suspects=suspects,
        )
