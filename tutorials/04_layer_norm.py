# %% [markdown]
# # 4. LayerNorm's two hidden terms
#
# *Before this:* tutorials 1 and 2. *Time:* 30 minutes.
#
# *Afterwards you can* derive the gradient of a normalisation, say where its three terms come from, and show with
# numbers which of them a check misses.
#
# *Explains* [`minifocal/functional/layer_norm.py`](../minifocal/functional/layer_norm.py).
#
# Every token of a FocalNet is a vector of $C$ channels. LayerNorm takes one such vector $x$, moves its mean to 0
# and its variance to 1, and lets two learned vectors, `weight` and `bias`, choose another scale and shift:
#
# $$\mu = \frac1C \sum_{c} x_c, \qquad \sigma^2 = \frac1C \sum_{c} (x_c - \mu)^2, \qquad
# r = \frac{1}{\sqrt{\sigma^2 + \varepsilon}}, \qquad
# \hat x_c = (x_c - \mu)\, r, \qquad y_c = w_c\, \hat x_c + b_c .$$
#
# $\varepsilon = 10^{-5}$ keeps the root away from zero. The code calls $\hat x$ `x_hat` and $r$ `rstd`, the
# reciprocal standard deviation. Tokens do not see each other here: everything happens within one vector.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

from minifocal.functional.layer_norm import layer_norm_backward, layer_norm_forward
from minifocal.gradcheck import check_gradients

rng = np.random.default_rng(4)
T, C, eps = 2, 3, 1e-5  # two tokens of three channels
x = np.array([[1.0, 2.0, 6.0], [-1.0, 0.5, 0.0]])
weight, bias = np.array([1.0, 2.0, -1.0]), np.array([0.0, 0.1, 0.2])

# %% [markdown]
# ## Forward, one number at a time
#
# The sums are written as sums. `x_hat` and `rstd` are kept: the way back will want them.

# %%
x_hat, rstd, y = np.zeros((T, C)), np.zeros((T, 1)), np.zeros((T, C))
for t in range(T):
    mean = sum(x[t, c] for c in range(C)) / C
    variance = sum((x[t, c] - mean) ** 2 for c in range(C)) / C
    rstd[t, 0] = 1.0 / math.sqrt(variance + eps)
    for c in range(C):
        x_hat[t, c] = (x[t, c] - mean) * rstd[t, 0]
        y[t, c] = weight[c] * x_hat[t, c] + bias[c]

print("x\n", x, "\nx_hat\n", x_hat.round(3), "\ny\n", y.round(3))
print("x_hat has mean", x_hat.mean(axis=1).round(12), "and variance", x_hat.var(axis=1).round(4))

# %% [markdown]
# ## Look: what the forward pass throws away
#
# Many vectors give the same `x_hat`: add a number to all channels of a token, or multiply them by a positive one,
# and nothing changes (but for $\varepsilon$). Draw 200 random vectors of three channels, and what LayerNorm makes
# of them. They all land on one circle: the vectors with mean 0 (a plane) and length $\sqrt C$ (a sphere).

# %%
cloud = rng.standard_normal((200, 3))
normal = (cloud - cloud.mean(axis=1, keepdims=True)) / np.sqrt(cloud.var(axis=1, keepdims=True) + eps)
figure = plt.figure(figsize=(7, 3.4))
for number, (points, title) in enumerate(((cloud, "x"), (normal, "x_hat")), start=1):
    axes = figure.add_subplot(1, 2, number, projection="3d")
    axes.scatter(*points.T, s=6, color="#0072B2")
    axes.set(title=title, xlabel="channel 0", ylabel="channel 1", zlabel="channel 2")
    axes.view_init(elev=20, azim=25)
figure.tight_layout(pad=2.0)
plt.show()

# %% [markdown]
# Two directions are lost: along $(1, 1, \dots, 1)$ and along $\hat x$ itself. A loss that only sees `y` cannot
# change when $x$ moves along them, so the gradient `dx` has no part in them. Keep that picture: the two hidden
# terms are these two directions being taken out.
#
# ## Backward
#
# Let `dy` be the upstream gradient, that of the loss $\mathcal L$ with respect to $y$. `weight` and `bias` are shared
# by all tokens, so their gradients are sums over tokens:
#
# $$\mathrm{d}w_c = \sum_t \mathrm{d}y_{tc}\, \hat x_{tc}, \qquad \mathrm{d}b_c = \sum_t \mathrm{d}y_{tc}, \qquad
# \mathrm{d}\hat x_{tc} = w_c\, \mathrm{d}y_{tc} .$$
#
# Within a token, $x_j$ reaches every $\hat x_c$ in three ways: directly (only $c = j$), through $\mu$, and
# through $\sigma^2$. With $\partial\mu/\partial x_j = 1/C$ and $\partial r/\partial x_j = -r^3 (x_j - \mu)/C =
# -r^2\, \hat x_j / C$:
#
# $$\frac{\partial \hat x_c}{\partial x_j} =
# r \Bigl( \underbrace{[c = j]}_{\text{direct}} - \underbrace{\tfrac1C}_{\text{mean}}
# - \underbrace{\tfrac1C\, \hat x_c\, \hat x_j}_{\text{variance}} \Bigr) .$$
#
# Multiply by $\mathrm{d}\hat x_c$ and sum over $c$:
#
# $$\mathrm{d}x_j = r \Bigl( \mathrm{d}\hat x_j - \tfrac1C \sum_c \mathrm{d}\hat x_c
# - \hat x_j \cdot \tfrac1C \sum_c \mathrm{d}\hat x_c\, \hat x_c \Bigr) .$$

# %%
dy = rng.standard_normal((T, C))


def backward_by_loops(dy, weight, mean_term=True, variance_term=True):
    """Give dx, dweight and dbias; either hidden term can be left out, to see what happens."""
    dx, dweight, dbias = np.zeros((T, C)), np.zeros(C), np.zeros(C)
    for t in range(T):
        for c in range(C):
            dweight[c] += dy[t, c] * x_hat[t, c]
            dbias[c] += dy[t, c]
        dx_hat = [weight[c] * dy[t, c] for c in range(C)]
        through_mean = sum(dx_hat) / C if mean_term else 0.0
        through_variance = sum(dx_hat[c] * x_hat[t, c] for c in range(C)) / C if variance_term else 0.0
        for c in range(C):
            dx[t, c] = rstd[t, 0] * (dx_hat[c] - through_mean - x_hat[t, c] * through_variance)
    return dx, dweight, dbias


dx, dweight, dbias = backward_by_loops(dy, weight)
print("dx\n", dx.round(4))
print("dx · (1, 1, 1) of each token:", dx.sum(axis=1).round(12))
print("dx · x_hat of each token:    ", (dx * x_hat).sum(axis=1).round(5))
assert np.abs(dx.sum(axis=1)).max() < 1e-12
trace = eps * rstd[:, 0] ** 3 * (weight * dy * x_hat).sum(axis=1)  # eps lets this little of the length through
np.testing.assert_allclose((dx * x_hat).sum(axis=1), trace, rtol=1e-6)

# %% [markdown]
# ## Check it, and see two wrong ones caught
#
# `check_gradients` moves the inputs a little, sees how $\langle \mathrm{d}y, y\rangle$ changes, and compares
# (tutorial 2). It calls a forward and a backward function; ours are the library's forward and the loops above.

# %%
arrays = {"x": x, "weight": weight, "bias": bias}
for name, terms in (
    ("all three terms", {}),
    ("without the mean term", {"mean_term": False}),
    ("without the variance term", {"variance_term": False}),
):
    report = check_gradients(
        lambda x, weight, bias: layer_norm_forward(x, weight, bias, eps),
        lambda dy, cache, terms=terms: backward_by_loops(dy, weight, **terms),
        arrays,
        method="complex",
    )
    verdict = "pass" if report.passed else f"FAIL: {', '.join(report.failed)}"
    print(f"{name:<26} {verdict:<8} relative error {report.relative_error:.0e}")
    assert report.passed == (not terms)

# %% [markdown]
# ## How the check can be fooled
#
# Take a plain sum of $y$ as the loss: `dy` is all ones. With `weight` all ones too, $\mathrm{d}\hat x$ points
# along $(1, 1, 1)$, which LayerNorm throws away, so the true `dx` is zero. The mean term alone brings it to zero:
# whether the variance term is there, or all of `dx` is seven times too large, makes no difference.

# %%
ones = np.ones((T, C))
right, _, _ = backward_by_loops(ones, np.ones(C))
wrong, _, _ = backward_by_loops(ones, np.ones(C), variance_term=False)
print("dy of ones, right:", np.abs(right).max(), "  without the variance term:", np.abs(wrong).max())
assert np.abs(right).max() < 1e-12
assert np.abs(wrong).max() < 1e-12

# %% [markdown]
# Nothing to see. That is why `check_gradients` draws `dy` at random: a random vector has a part in every
# direction.
#
# ## The library does the same
#
# [`layer_norm.py`](../minifocal/functional/layer_norm.py) takes maps of any shape $(\dots, C)$ and has no loops:
# the sums are `mean(axis=-1)`. Read `layer_norm_backward` now; its three lines are the three terms.

# %%
y_library, cache = layer_norm_forward(x, weight, bias, eps)
dx_library, dweight_library, dbias_library = layer_norm_backward(dy, cache)
for ours, theirs in ((y, y_library), (dx, dx_library), (dweight, dweight_library), (dbias, dbias_library)):
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
assert cache.x_hat.shape == (T, C)
assert cache.rstd.shape == (T, 1)

# %% [markdown]
# ## Questions
#
# 1. The variance could be computed as $\frac1C \sum_c x_c^2 - \mu^2$, in one pass over the data. Why does the library
#    not do that? Try it in float32 on `x + 3000`.
# 2. `dx` is proportional to $r$. What happens to the gradients below a LayerNorm when its inputs become ten times
#    larger?
#
# ## Answers
#
# 1. Two nearly equal large numbers are subtracted: at a mean of 3000 the squares are about $9 \cdot 10^6$, float32
#    resolves them to about 1, and a variance of 1 is lost. Centring first loses nothing.
# 2. They become ten times smaller, and $y$ stays the same. A LayerNorm is indifferent to the scale of what goes in. So
#    for the weights that make its input only the direction counts, and a step on them counts relative to their size.
