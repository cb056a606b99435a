"""Every operation once more, as plain loops over its formula: slow, and too simple to be wrong.

They take and give NumPy arrays, which serve as nothing but boxes of numbers here.
"""

import math

import numpy as np


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """y[..., o] = sum_i x[..., i] weight[i, o] + bias[o]."""
    inputs, outputs = weight.shape
    y = np.zeros((*x.shape[:-1], outputs))
    for at in np.ndindex(*x.shape[:-1]):
        for o in range(outputs):
            y[(*at, o)] = bias[o] + sum(x[(*at, i)] * weight[i, o] for i in range(inputs))
    return y


def gelu(x: np.ndarray) -> np.ndarray:
    """y = x (1 + erf(x/√2)) / 2."""
    return _each(x, lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """y = x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2."""
    return _each(x, lambda v: v * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """y = 1 / (1 + exp(-x))."""
    return _each(x, lambda v: 1 / (1 + math.exp(-v)))


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """y[c] = weight[c] (x[c] - mean) / sqrt(var + eps) + bias[c], at every position."""
    C = x.shape[-1]
    y = np.zeros(x.shape)
    for at in np.ndindex(*x.shape[:-1]):
        mean = math.fsum(x[at]) / C
        variance = math.fsum((x[(*at, c)] - mean) ** 2 for c in range(C)) / C
        for c in range(C):
            y[(*at, c)] = weight[c] * (x[(*at, c)] - mean) / math.sqrt(variance + eps) + bias[c]
    return y


def layer_scale(x: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """y[..., c] = gamma[c] x[..., c]."""
    y = np.zeros(x.shape)
    for at in np.ndindex(*x.shape):
        y[at] = gamma[at[-1]] * x[at]
    return y


def depthwise_conv(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """z[b, h, w, c] = sum_ij weight[i, j, c] x[b, h + i - k//2, w + j - k//2, c], zero outside."""
    B, H, W, C = x.shape
    k = weight.shape[0]
    z = np.zeros(x.shape)
    for b, h, w, c in np.ndindex(B, H, W, C):
        for i, j in np.ndindex(k, k):
            row, column = h + i - k // 2, w + j - k // 2
            if 0 <= row < H and 0 <= column < W:
                z[b, h, w, c] += weight[i, j, c] * x[b, row, column, c]
    return z


def patches(x: np.ndarray, size: int, stride: int, padding: tuple[tuple[int, int], tuple[int, int]]) -> np.ndarray:
    """patches[b, h, w, (c, i, j)] = x[b, h*stride + i - above, w*stride + j - left, c], zero outside."""
    B, H, W, C = x.shape
    (above, below), (left, right) = padding
    tops = [top for top in range(0, above + H + below, stride) if top + size <= above + H + below]
    sides = [side for side in range(0, left + W + right, stride) if side + size <= left + W + right]
    cut = np.zeros((B, len(tops), len(sides), C * size * size))
    for b, h, w, c, i, j in np.ndindex(B, len(tops), len(sides), C, size, size):
        row, column = tops[h] + i - above, sides[w] + j - left
        if 0 <= row < H and 0 <= column < W:
            cut[b, h, w, (c * size + i) * size + j] = x[b, row, column, c]
    return cut


def box_mean(x: np.ndarray, width: int) -> np.ndarray:
    """y[b, t, c] = 1/width sum_{i < width} x[b, t + i - (width-1)//2, c], t = h*W + w, zero outside."""
    B, H, W, C = x.shape
    y = np.zeros(x.shape)
    for b, t, c in np.ndindex(B, H * W, C):
        for i in range(width):
            near = t + i - (width - 1) // 2
            if 0 <= near < H * W:
                y[b, t // W, t % W, c] += x[b, near // W, near % W, c] / width
    return y


def focal_level(
    ctx: np.ndarray, weight: np.ndarray, gate: np.ndarray | None, aggregate: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """ctx_l = GELU(DWConv(ctx)), and aggregate + gate * ctx_l with one gate a token."""
    ctx = gelu(depthwise_conv(ctx, weight))
    total = np.zeros(ctx.shape) + aggregate
    for b, h, w, c in np.ndindex(*ctx.shape):
        total[b, h, w, c] += ctx[b, h, w, c] * (1.0 if gate is None else gate[b, h, w, 0])
    return ctx, total


def global_level(ctx: np.ndarray, gate: np.ndarray, aggregate: np.ndarray | float) -> np.ndarray:
    """aggregate + gate * GELU(mean of ctx over H and W)."""
    context = gelu(mean_pool(ctx))
    total = np.zeros(ctx.shape) + aggregate
    for b, h, w, c in np.ndindex(*ctx.shape):
        total[b, h, w, c] += gate[b, h, w, 0] * context[b, c]
    return total


def mean_pool(x: np.ndarray) -> np.ndarray:
    """y[b, c] = 1/(H*W) sum_hw x[b, h, w, c]."""
    B, H, W, C = x.shape
    y = np.zeros((B, C))
    for b, c in np.ndindex(B, C):
        y[b, c] = math.fsum(x[b, h, w, c] for h, w in np.ndindex(H, W)) / (H * W)
    return y


def cross_entropy(logits: np.ndarray, labels: np.ndarray, smoothing: float) -> float:
    """Mean over the batch of -sum_n t[n] log p[n]; t[n] = (1 - s) [n = label] + s/N; p the softmax."""
    B, N = logits.shape
    loss = 0.0
    for b in range(B):
        total = math.fsum(math.exp(logits[b, n]) for n in range(N))
        for n in range(N):
            target = (1 - smoothing) * (n == labels[b]) + smoothing / N
            loss -= target * math.log(math.exp(logits[b, n]) / total) / B
    return loss


def _each(x: np.ndarray, function) -> np.ndarray:
    y = np.zeros(x.shape)
    for at in np.ndindex(*x.shape):
        y[at] = function(float(x[at]))
    return y
