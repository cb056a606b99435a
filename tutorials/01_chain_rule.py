# %% [markdown]
# # 1. The chain rule by hand: one linear layer, and what a cache is
#
# *Before this:* tutorial 0. *Time:* 30 minutes.
#
# *Afterwards you can* derive the three gradients of a linear layer, say what its cache holds and why, and explain why
# gradients are added up and must be cleared.
#
# *Explains* [`minifocal/functional/linear.py`](../minifocal/functional/linear.py),
# [`minifocal/layers/linear.py`](../minifocal/layers/linear.py) and
# [`minifocal/layers/base.py`](../minifocal/layers/base.py).
#
# A linear layer maps the $I$ channels of a token to $O$ channels, with a `weight` of shape $(I, O)$ and a `bias` of
# shape $(O,)$:
#
# $$y_{to} = \sum_i x_{ti}\, w_{io} + b_o .$$
#
# Here $x_{ti}$ is channel $i$ of token $t$, so that $x$ has shape $(T, I)$ and $y$ has shape $(T, O)$. The $T$ tokens
# do not see each other, and all are mapped by the same weight. It is the smallest layer that has everything: an input,
# parameters (the arrays that are learned), a cache, and a way back.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minifocal.functional.linear import linear_backward, linear_forward
from minifocal.gradcheck import check_gradients, check_layer
from minifocal.layers.base import Layer
from minifocal.layers.initializers import get_initializer
from minifocal.layers.linear import Linear

rng = np.random.default_rng(1)
x = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0], [-2.0, 1.0, 1.0], [0.0, -1.0, 0.5]])  # T = 4 tokens, I = 3 channels
weight, bias = np.array([[1.0, -1.0], [0.5, 2.0], [0.0, 3.0]]), np.array([0.1, -0.2])  # (I, O) and (O,), O = 2


def forward(x, weight, bias):
    y = np.zeros((len(x), len(bias)), dtype=np.result_type(x, weight, bias))  # the check will use complex numbers
    for t, o in np.ndindex(*y.shape):
        y[t, o] = bias[o] + sum(x[t, i] * weight[i, o] for i in range(x.shape[1]))
    return y, (x, weight)  # the output and the cache


y, cache = forward(x, weight, bias)
print("y\n", y)

# %% [markdown]
# ## Backward
#
# Let $\mathcal L$ be a loss that depends on $y$, and $\mathrm{d}y_{to} = \partial \mathcal L / \partial y_{to}$ the
# upstream gradient, of the shape of $y$. The chain rule says: go through every $y_{to}$ that a number reaches, multiply
# the upstream gradient there by the slope, and add up.
#
# - $x_{ti}$ reaches the $O$ outputs of its own token, with slopes $w_{io}$.
# - $w_{io}$ reaches the outputs $o$ of all tokens, with slopes $x_{ti}$.
# - $b_o$ reaches the outputs $o$ of all tokens, with slope 1: it was broadcast (tutorial 0).
#
# $$\mathrm{d}x_{ti} = \sum_o \mathrm{d}y_{to}\, w_{io}, \qquad
# \mathrm{d}w_{io} = \sum_t x_{ti}\, \mathrm{d}y_{to}, \qquad
# \mathrm{d}b_o = \sum_t \mathrm{d}y_{to} .$$
#
# Beside `dy`, the right-hand sides ask for $w$ and $x$: known on the way forward, needed on the way back. They are the
# **cache**: what the backward pass needs of the forward pass. No formula asks for $y$ or $b$, so it lacks them. The
# cache holds the arrays themselves, not copies.


# %%
def backward(dy, cache):
    x, weight = cache
    dx, dweight, dbias = np.zeros_like(x), np.zeros_like(weight), np.zeros(weight.shape[1])
    for t, o in np.ndindex(*dy.shape):
        dbias[o] += dy[t, o]
        for i in range(x.shape[1]):
            dx[t, i] += dy[t, o] * weight[i, o]
            dweight[i, o] += dy[t, o] * x[t, i]
    return dx, dweight, dbias


dy = rng.standard_normal(y.shape)
dx, dweight, dbias = backward(dy, cache)
print("dy\n", dy.round(3), "\ndx\n", dx.round(3), "\ndweight\n", dweight.round(3), "\ndbias", dbias.round(3))

# %% [markdown]
# Is it right? `check_gradients` moves `x`, `weight` and `bias` a little and compares how the output changes with what
# `backward` says; tutorial 2 shows how. Its report has a line for each array: name, shape, relative error, verdict.
# Below come the two numbers that disagree, where they do: `analytic` from `backward`, `numeric` from moving the array.
#
# Two wrong ways back stand beside ours: one forgets that all tokens share the bias, the other forgets to transpose the
# weight. The shapes of the second fit only where $I = O$, so the weight is square for once.


# %%
def bias_of_first_token_only(dy, cache):
    dx, dweight, _ = backward(dy, cache)
    return dx, dweight, dy[0].copy()


def weight_not_transposed(dy, cache):
    _, dweight, dbias = backward(dy, cache)
    return dy @ cache[1], dweight, dbias


arrays = {"x": x, "weight": rng.standard_normal((3, 3)), "bias": rng.standard_normal(3)}
for way_back, failing in ((backward, ()), (bias_of_first_token_only, ("bias",)), (weight_not_transposed, ("x",))):
    report = check_gradients(forward, way_back, arrays, method="complex")
    print(f"{way_back.__name__}\n{report}\n")
    assert report.failed == failing

# %% [markdown]
# ## The library: a function, and a layer around it
#
# [`functional/linear.py`](../minifocal/functional/linear.py) computes the same as three matrix products and a sum. Its
# maps may have any shape $(\dots, I)$. All positions are put under each other first.

# %%
y_library, cache_library = linear_forward(x, weight, bias)
for ours, theirs in zip((y, dx, dweight, dbias), (y_library, *linear_backward(dy, cache_library)), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
print(cache_library)
assert [id(array) for array in cache_library] == [id(x), id(weight)]  # the arrays themselves

# %% [markdown]
# [`layers/linear.py`](../minifocal/layers/linear.py) adds what the function lacks: parameters. A `Parameter` has two
# arrays, `data` and `grad`, of the same shape. An *initialiser* gives `data` its first values: `"zeros"`, or random
# numbers (`"lecun"`, used further down). `layer.forward` returns the output and the cache and remembers nothing.
# `layer.backward` takes the cache, returns `dx`, and **adds** the parameters' gradients to `grad`. A second call adds
# the same again:

# %%
layer = Linear(3, 2, init=get_initializer("zeros", seed=0, dtype="float64"))
layer.weight.data[...], layer.bias.data[...] = weight, bias
_, layer_cache = layer.forward(x)
layer.backward(dy, layer_cache)
np.testing.assert_allclose(layer.weight.grad, dweight, rtol=1e-12)
layer.backward(dy, layer_cache)
print("weight.grad / dweight after two backward passes:\n", layer.weight.grad / dweight)
np.testing.assert_allclose(layer.weight.grad, 2 * dweight, rtol=1e-12)
layer.zero_grad()
assert not layer.weight.grad.any()
assert not layer.bias.grad.any()

# %% [markdown]
# Adding is no convenience. If a network uses one layer twice, its weight reaches the loss by two ways, and the chain
# rule adds over all ways. Here is such a network, $y = f(f(x))$ with one linear $f$. `check_layer` is `check_gradients`
# for a layer: it also checks what `backward` has put into every `grad`. With `=` in place of `+=` the second use
# overwrites the first. (`rng` is for layers that draw random numbers; none does here.)


# %%
class Overwriting(Linear):
    def backward(self, dy, cache):
        dx, self.weight.grad, self.bias.grad = linear_backward(dy, cache)
        return dx


class Twice(Layer):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, rng=None):
        middle, cache_1 = self.inner.forward(x, rng)
        y, cache_2 = self.inner.forward(middle, rng)
        return y, (cache_1, cache_2)

    def backward(self, dy, cache):
        cache_1, cache_2 = cache
        return self.inner.backward(self.inner.backward(dy, cache_2), cache_1)


for kind in (Linear, Overwriting):
    network = Twice(kind(3, 3, init=get_initializer("lecun", seed=0, dtype="float64")))
    report = check_layer(network, x, method="complex")
    print(f"{kind.__name__:<12} {'pass' if report.passed else 'FAIL: ' + ', '.join(report.failed)}")
    assert report.failed == (() if kind is Linear else ("inner.weight", "inner.bias"))

# %% [markdown]
# One layer, two forward passes, two caches: a layer that kept its cache to itself would lose the first one. And note
# the order: the way back takes the caches last to first.
#
# ## Train it by hand
#
# Let a layer with $I = 2$, $O = 1$ learn to predict a number $s_t$ from two. The loss is half the mean squared error
# over $T = 30$ tokens, and its gradient is where the way back begins:
#
# $$\mathcal L = \frac1{2T} \sum_t (y_t - s_t)^2, \qquad \mathrm{d}y_t = \frac{y_t - s_t}{T} .$$
#
# A step of gradient descent subtracts the gradient times a learning rate from each parameter. Then the gradients are
# cleared. What happens if that is forgotten?

# %%
points = rng.standard_normal((30, 2))
points[:, 1] += 0.6 * points[:, 0]
targets = points @ np.array([[1.5], [-1.0]]) + 0.4 + 0.1 * rng.standard_normal((30, 1))
lr, steps = 0.2, 100


def train(clear):
    layer = Linear(2, 1, init=get_initializer("zeros", seed=0, dtype="float64"))
    losses, path = [], [layer.weight.data[:, 0].copy()]
    for _ in range(steps):
        if clear:
            layer.zero_grad()
        y, cache = layer.forward(points)
        losses.append(float(((y - targets) ** 2).mean() / 2))
        layer.backward((y - targets) / len(points), cache)
        for parameter in layer.parameters():
            parameter.data -= lr * parameter.grad
        path.append(layer.weight.data[:, 0].copy())
    return layer, losses, np.array(path)


layer, losses, path = train(clear=True)
_, losses_uncleared, path_uncleared = train(clear=False)

figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6))
left.semilogy(losses, color="#0072B2", label="cleared in every step")
left.semilogy(losses_uncleared, color="#D55E00", label="never cleared")
left.set(xlabel="step", ylabel="loss", title="the loss", ylim=(2e-3, 4))
left.legend(fontsize=8, loc="upper right")
w0, w1 = np.meshgrid(np.linspace(-0.5, 3.5, 80), np.linspace(-3, 1.5, 80))
# The loss also depends on the bias: the contours are those at the bias that was learned.
misses = points[:, 0] * w0[..., None] + points[:, 1] * w1[..., None] + layer.bias.data - targets[:, 0]
right.contour(w0, w1, (misses**2).mean(axis=-1) / 2, levels=np.geomspace(0.01, 3, 9), cmap="cividis", norm="log")
right.plot(*path.T, ".-", color="#0072B2", label="cleared")
right.plot(*path_uncleared[:25].T, ".-", color="#D55E00", linewidth=0.8, label="never cleared, 24 steps")
right.set(xlabel="weight[0, 0]", ylabel="weight[1, 0]", title="the weights' path over the loss")
right.legend(fontsize=8, loc="lower left")
figure.tight_layout()
plt.show()
assert (np.diff(losses) < 0).all()
assert max(losses_uncleared[-20:]) > 0.5 * losses[0]

# %% [markdown]
# Cleared, the loss falls in every step. Never cleared, `grad` is the sum of all gradients so far. It acts like the
# speed of a ball that rolls without friction: through the minimum, up the other side, and back.
#
# Last, the same training without the library: the loops above and plain arrays. Both end at the same weights, and near
# those that minimise the loss exactly, which for a linear layer are known (`np.linalg.lstsq`).

# %%
w, b = np.zeros((2, 1)), np.zeros(1)
for _ in range(steps):
    y, cache = forward(points, w, b)
    _, dw, db = backward((y - targets) / len(points), cache)
    w, b = w - lr * dw, b - lr * db

best = np.linalg.lstsq(np.hstack([points, np.ones((30, 1))]), targets, rcond=None)[0][:, 0]
print("by loops  ", w[:, 0], b, "\nby library", layer.weight.data[:, 0], layer.bias.data, "\nthe best  ", best)
np.testing.assert_allclose(w, layer.weight.data, rtol=1e-12)
np.testing.assert_allclose(b, layer.bias.data, rtol=1e-12)
np.testing.assert_allclose(w[:, 0], best[:2], rtol=0.01)

# %% [markdown]
# ## Questions
#
# 1. Somebody changes the weight, `layer.weight.data -= 0.1`, after `forward` and before `backward`. Which of `dx`,
#    `dweight` and `dbias` come out wrong? And with `layer.weight.data = layer.weight.data - 0.1`?
# 2. A batch of 30 tokens does not fit into memory, halves of it do. How do you get the gradients of the whole batch?
#
# ## Answers
#
# 1. Only `dx`. The cache holds the weight array itself, `-=` writes into it, and `dx` is the only one of the three
#    that uses the weight. With `=` a new array is made, the cache keeps the old one, and all three are right.
# 2. Clear once, then forward and backward for each half, with `dy` divided by 30 and not by 15. The sums over tokens
#    are split in two, and `+=` puts them together: this is called gradient accumulation.
