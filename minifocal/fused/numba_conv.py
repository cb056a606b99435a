"""Numba's kernels for depthwise convolutions and focal levels.

An image is put between zeros once (`_pad`), so that no token needs to know where the border is. Then vectors of
channels are convolved for four tokens at a time: each number of the kernel is loaded once for the four, and their sums
stay in the processor's registers. Maps are flat; a *pitch* is how many elements further the next token's channels
begin, so that a part of wider rows can be read where it lies.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from numba import njit

from minifocal.fused.numba_kernels import kernel, number
from minifocal.fused.numba_math import gelu
from minifocal.fused.numba_vectors import lane_count, lanes_below, load, multiply_add, store, zeros

inlined: Callable[[Any], Any] = partial(njit, inline="always")


@kernel
def _pad(x: Any, first: int, pitch: int, H: int, W: int, C: int, k: int, padded: Any) -> None:
    """Put the image that begins at x[first] into the middle of `padded`, which has zeros around it."""
    margin = k // 2
    for h in range(H):
        for w in range(W):
            here = ((h + margin) * (W + k - 1) + w + margin) * C
            there = first + (h * W + w) * pitch
            target, source = padded[here : here + C], x[there : there + C]
            for c in range(C):
                target[c] = source[c]


@inlined
def _convolve_row_with(k: int, padded: Any, weight: Any, h: int, W: int, C: int, z: Any, first: int) -> None:
    """Fill row h of z, which begins at z[first]."""
    row = (W + k - 1) * C
    for c in range(0, C, lane_count(z)):
        mask = lanes_below(z, C - c)
        w = 0
        while w < W:
            if W >= 4:
                w = min(w, W - 4)  # the last four may overlap those before: the same numbers are written again
                z0, z1, z2, z3 = zeros(z), zeros(z), zeros(z), zeros(z)
                for i in range(k):
                    for j in range(k):
                        x = (h + i) * row + (w + j) * C + c
                        tap = load(weight, (i * k + j) * C + c, mask)
                        z0 = multiply_add(tap, load(padded, x, mask), z0)
                        z1 = multiply_add(tap, load(padded, x + C, mask), z1)
                        z2 = multiply_add(tap, load(padded, x + 2 * C, mask), z2)
                        z3 = multiply_add(tap, load(padded, x + 3 * C, mask), z3)
                here = first + w * C + c
                store(z, here, z0, mask)
                store(z, here + C, z1, mask)
                store(z, here + 2 * C, z2, mask)
                store(z, here + 3 * C, z3, mask)
                w += 4
            else:
                z0 = zeros(z)
                for i in range(k):
                    for j in range(k):
                        x = (h + i) * row + (w + j) * C + c
                        z0 = multiply_add(load(weight, (i * k + j) * C + c, mask), load(padded, x, mask), z0)
                store(z, first + w * C + c, z0, mask)
                w += 1


@kernel
def _convolve_row(padded: Any, weight: Any, h: int, W: int, C: int, k: int, z: Any, first: int) -> None:
    """Fill row h of z. A kernel size that the compiler knows makes loops without a counter, half as fast again."""
    if k == 3:
        _convolve_row_with(3, padded, weight, h, W, C, z, first)
    elif k == 5:
        _convolve_row_with(5, padded, weight, h, W, C, z, first)
    elif k == 7:
        _convolve_row_with(7, padded, weight, h, W, C, z, first)
    else:
        _convolve_row_with(k, padded, weight, h, W, C, z, first)


@kernel
def _correlate(padded: Any, dz: Any, first: int, H: int, W: int, C: int, k: int, dweight: Any) -> None:
    """Add to dweight what one image gives; its dz begins at dz[first]. Taps go by threes, then by twos."""
    row = (W + k - 1) * C
    for c in range(0, C, lane_count(dz)):
        mask = lanes_below(dz, C - c)
        for h in range(H):
            there = first + h * W * C + c
            for i in range(k):
                here = (h + i) * row + c
                taps = i * k * C + c
                j = 0
                if k >= 3:
                    d0, d1, d2 = (
                        load(dweight, taps, mask),
                        load(dweight, taps + C, mask),
                        load(dweight, taps + 2 * C, mask),
                    )
                    for w in range(W):
                        d = load(dz, there + w * C, mask)
                        d0 = multiply_add(d, load(padded, here + w * C, mask), d0)
                        d1 = multiply_add(d, load(padded, here + (w + 1) * C, mask), d1)
                        d2 = multiply_add(d, load(padded, here + (w + 2) * C, mask), d2)
                    store(dweight, taps, d0, mask)
                    store(dweight, taps + C, d1, mask)
                    store(dweight, taps + 2 * C, d2, mask)
                    j = 3
                while j < k - 1:
                    d0, d1 = load(dweight, taps + j * C, mask), load(dweight, taps + (j + 1) * C, mask)
                    for w in range(W):
                        d = load(dz, there + w * C, mask)
                        d0 = multiply_add(d, load(padded, here + (w + j) * C, mask), d0)
                        d1 = multiply_add(d, load(padded, here + (w + j + 1) * C, mask), d1)
                    store(dweight, taps + j * C, d0, mask)
                    store(dweight, taps + (j + 1) * C, d1, mask)
                    j += 2
                if k == 1:
                    d0 = load(dweight, taps, mask)
                    for w in range(W):
                        d0 = multiply_add(load(dz, there + w * C, mask), load(padded, here + w * C, mask), d0)
                    store(dweight, taps, d0, mask)


@kernel
def convolve_kernel(
    x: Any, pitch: int, weight: Any, H: int, W: int, C: int, k: int, padded: Any, z: Any, start: int, stop: int
) -> None:
    """Fill rows start..stop of z, counted through all images. `padded` holds zeros, room for one image."""
    for r in range(start, stop):
        if r == start or r % H == 0:
            _pad(x, r // H * H * W * pitch, pitch, H, W, C, k, padded)
        _convolve_row(padded, weight, r % H, W, C, k, z, r * W * C)


@kernel
def convolve_backward_kernel(
    dz: Any,
    x: Any,
    pitch: int,
    turned: Any,
    H: int,
    W: int,
    C: int,
    k: int,
    padded: Any,
    dx: Any,
    dweight: Any,
    start: int,
    stop: int,
) -> None:
    """Fill images start..stop of dx, and add to dweight. `turned` is the kernel turned by half a turn."""
    for b in range(start, stop):
        first = b * H * W * C
        _pad(x, b * H * W * pitch, pitch, H, W, C, k, padded)
        _correlate(padded, dz, first, H, W, C, k, dweight)
        _pad(dz, first, C, H, W, C, k, padded)
        for h in range(H):
            _convolve_row(padded, turned, h, W, C, k, dx, first + h * W * C)


@kernel
def focal_level_kernel(
    x: Any,
    pitch: int,
    weight: Any,
    gate: Any,
    gate_pitch: int,
    before: Any,
    before_pitch: int,
    H: int,
    W: int,
    k: int,
    padded: Any,
    ctx: Any,
    slope: Any,
    aggregate: Any,
    start: int,
    stop: int,
) -> None:
    """Fill rows start..stop of the maps ctx, slope and aggregate, (tokens, C), counted through all images.

    The sum before is read at before_pitch; a pitch of 0 reads the same row, or the same gate, for every token.
    """
    C = ctx.shape[1]
    for r in range(start, stop):
        if r == start or r % H == 0:
            _pad(x, r // H * H * W * pitch, pitch, H, W, C, k, padded)
        _convolve_row(padded, weight, r % H, W, C, k, ctx.reshape(-1), r * W * C)
        for t in range(r * W, (r + 1) * W):
            share = gate[t * gate_pitch]
            before_row = before[t * before_pitch : t * before_pitch + C]
            for c in range(C):
                ctx[t, c], slope[t, c] = gelu(ctx[t, c])
                aggregate[t, c] = before_row[c] + share * ctx[t, c]


@kernel
def gated_gradient_kernel(
    dctx: Any,
    dctx_pitch: int,
    dctx_image: int,
    daggregate: Any,
    gate: Any,
    gate_pitch: int,
    ctx: Any,
    slope: Any,
    T: int,
    dz: Any,
    dgate: Any,
    start: int,
    stop: int,
) -> None:
    """Fill tokens start..stop of dz, (tokens, C), and dgate; T tokens are an image.

    dz = (dctx + gate * daggregate) * slope,   dgate = sum_c daggregate * ctx

    Image b's part of dctx begins at b * dctx_image, and its tokens are dctx_pitch apart: 0 where all get the same.
    """
    C = dz.shape[1]
    for t in range(start, stop):
        share = gate[t * gate_pitch]
        above = t // T * dctx_image + t % T * dctx_pitch
        dctx_row = dctx[above : above + C]
        # Two loops: one that sums and writes is compiled twice, for arrays that may overlap and for others, with two
        # orders of summing, and which one runs depends on where the arrays happen to lie.
        total = number(dz, 0.0)
        for c in range(C):
            total += daggregate[t, c] * ctx[t, c]
        for c in range(C):
            dz[t, c] = (dctx_row[c] + share * daggregate[t, c]) * slope[t, c]
        dgate[t] = total


@kernel
def global_level_kernel(
    ctx_global: Any,
    gate: Any,
    gate_pitch: int,
    before: Any,
    before_pitch: int,
    T: int,
    aggregate: Any,
    start: int,
    stop: int,
) -> None:
    """Fill tokens start..stop of aggregate, (tokens, C), with before + gate * ctx_global; T tokens are an image."""
    C = aggregate.shape[1]
    for t in range(start, stop):
        share = gate[t * gate_pitch]
        before_row = before[t * before_pitch : t * before_pitch + C]
        for c in range(C):
            aggregate[t, c] = before_row[c] + share * ctx_global[t // T, c]
