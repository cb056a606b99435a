# %% [markdown]
# # 3. GELU and sigmoid
#
# *Before this:* tutorials 1 and 2. *Time:* 30 minutes.
#
# *Afterwards you can* derive the slopes of both functions, choose what to cache for them, tell the two published GELUs
# apart, and compute a sigmoid that does not overflow.
#
# *Explains* [`minifocal/functional/activations.py`](../minifocal/functional/activations.py).
#
# An activation is a function of one number, applied to every number of a map. FocalNet uses one, the GELU (Gaussian
# error linear unit): where a token gathers what is around it, and between the two linear maps of the MLP (multi-layer
# perceptron) that every block of the network has. Some variants use another, the logistic sigmoid, for their gates: a
# *gate* is a number that another one is multiplied by, to let more or less of it through.
#
# Let $\varphi$ be the density of the standard normal distribution, and $\Phi$ its distribution function: $\Phi(x)$ is
# the probability that a normal number is below $x$. The GELU weighs each number by it:
#
# $$\varphi(x) = \frac{1}{\sqrt{2\pi}} e^{-x^2/2}, \qquad
# \Phi(x) = \tfrac12 \Bigl( 1 + \operatorname{erf} \frac{x}{\sqrt2} \Bigr), \qquad
# \operatorname{gelu}(x) = x\, \Phi(x) .$$
#
# Large numbers pass, very negative ones become 0, and between there is a smooth bend. $\operatorname{erf}$ is the error
# function, which `math` and SciPy have. With $\Phi' = \varphi$, the product rule gives the slope:
# $\operatorname{gelu}'(x) = \Phi(x) + x\, \varphi(x)$.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

from minifocal.functional import activations
from minifocal.gradcheck import check_gradients

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
rng = np.random.default_rng(3)
x = np.array([[-3.0, -1.0, -0.2], [0.0, 0.7, 2.5]])  # two tokens of three channels


def gelu(number):
    cdf = 0.5 * (1.0 + math.erf(number / math.sqrt(2.0)))
    density = math.exp(-0.5 * number**2) / math.sqrt(2.0 * math.pi)
    return number * cdf, cdf + number * density


def elementwise(function, x):
    """Apply a function of one number everywhere; give the values, and the slopes as the cache."""
    y, slope = np.zeros_like(x), np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        y[index], slope[index] = function(x[index])
    return y, slope


def backward(dy, slope):
    """Give dx: one number in, one number out, so the chain rule has one term."""
    dx = np.zeros_like(dy)
    for index in np.ndindex(*dy.shape):
        dx[index] = dy[index] * slope[index]
    return dx


y, slope = elementwise(gelu, x)
print("x\n", x, "\ngelu(x)\n", y.round(4), "\nslope\n", slope.round(4))

# %% [markdown]
# ## What to cache
#
# The way back needs $\Phi(x) + x \varphi(x)$. It could be computed from $x$, but the forward pass has just computed
# $\Phi(x)$, and an `erf` is expensive. So the cache holds the finished slope, in place of $x$ and as large.
#
# ## The second GELU
#
# Where `erf` was slow or missing, a formula by tanh took its place, with a fitted coefficient:
#
# $$\operatorname{gelu}_{\tanh}(x) = \frac{x}{2} (1 + \tanh u), \qquad u = \sqrt{2/\pi}\, (x + 0.044715\, x^3) .$$
#
# It is **another function**, and it has another slope. With $\tanh' = 1 - \tanh^2$ and
# $u' = \sqrt{2/\pi}\, (1 + 3 \cdot 0.044715\, x^2)$:
#
# $$\operatorname{gelu}_{\tanh}'(x) = \tfrac12 (1 + \tanh u) + \tfrac{x}{2} (1 - \tanh^2 u)\, u' .$$


# %%
def gelu_tanh(number):
    root = math.sqrt(2.0 / math.pi)
    t = math.tanh(root * (number + 0.044715 * number**3))
    return 0.5 * number * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * number * (1.0 - t**2) * root * (1.0 + 0.134145 * number**2)


grid = np.linspace(-5.0, 5.0, 1001)
values, slopes = elementwise(gelu, grid)
values_tanh, slopes_tanh = elementwise(gelu_tanh, grid)

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.4))
left.plot(grid, values, color=BLUE, label="by erf")
left.plot(grid, values_tanh, "--", color=ORANGE, label="by tanh")
left.set(title="GELU", xlabel="x", ylabel="y", xlim=(-4, 3), ylim=(-0.4, 3))
middle.plot(grid, slopes, color=BLUE, label="by erf")
middle.plot(grid, slopes_tanh, "--", color=ORANGE, label="by tanh")
middle.set(title="slope", xlabel="x", ylabel="dy/dx")
right.plot(grid, 1e4 * (values_tanh - values), color=BLUE, label="of the values")
right.plot(grid, 1e4 * (slopes_tanh - slopes), "--", color=ORANGE, label="of the slopes")
right.set(title="tanh minus erf", xlabel="x", ylabel="difference, in units of 0.0001")
for axes in (left, middle, right):
    axes.axhline(0.0, color=GREY, linewidth=0.6)
    axes.legend(fontsize=8)
figure.tight_layout()
plt.show()
value_gap, slope_gap = np.abs(values_tanh - values).max(), np.abs(slopes_tanh - slopes).max()
print(f"largest differences: {value_gap:.1e} of the values, {slope_gap:.1e} of the slopes")
print(f"smallest value {values.min():.4f}, at x = {grid[values.argmin()]:.2f}; largest slope {slopes.max():.4f}")
assert 4e-4 < value_gap < 5e-4
assert 8e-4 < slope_gap < 9e-4

# %% [markdown]
# In the first two pictures the curves lie on each other; the third shows what is left. The GELU is not monotonic:
# to the left of $x = -0.75$ it comes back up towards 0. And its slope is not bounded by 1.
#
# ## A backward that belongs to another forward
#
# Networks are trained with one of the two, and weights come with a name for it: `"gelu"` is the one by erf,
# `"gelu_pytorch_tanh"` the one by tanh. A program that takes the forward pass of one and the slope of the other
# trains, and looks right. Does the check of tutorial 2 see it? The table also asks a careless check, with a tolerance
# of 1 %.

# %%
dy = rng.standard_normal(x.shape)
for forward_name, forward_of in (("erf", gelu), ("tanh", gelu_tanh)):
    for slope_name, slope_of in (("erf", gelu), ("tanh", gelu_tanh)):

        def one_forward(x, function=forward_of):
            return elementwise(function, x)

        def other_backward(dy, cache, function=slope_of):
            return backward(dy, elementwise(function, x)[1])  # does not look at the cache

        strict = check_gradients(one_forward, other_backward, {"x": x})  # its tolerance is 1e-7
        careless = check_gradients(one_forward, other_backward, {"x": x}, tolerance=1e-2)
        print(
            f"forward by {forward_name:<4}  slope by {slope_name:<4}  relative error {strict.relative_error:.0e}  "
            f"{'pass' if strict.passed else 'FAIL'}   at 1 %: {'pass' if careless.passed else 'FAIL'}"
        )
        assert strict.passed == (forward_name == slope_name)
        assert careless.passed

# %% [markdown]
# A mistake that leaves an error of $10^{-4}$ is found only where the right gradient leaves much less. That is what
# float64 and a tolerance of $10^{-7}$ are for.
#
# ## Sigmoid
#
# $$\sigma(x) = \frac{1}{1 + e^{-x}}, \qquad \sigma'(x) = \frac{e^{-x}}{(1 + e^{-x})^2} = \sigma(x) (1 - \sigma(x)) .$$
#
# The slope follows from the value alone, so the cache is the output $y$. It exists anyway, and the layer after it may
# keep it too: this cache costs no memory of its own.
#
# The formula has a trap. $e^{-x}$ overflows to infinity, in float32 from $x = -89$ on. Written as above the result is
# still 0, with a warning. Multiplied through by $e^x$, the same function becomes $e^x / (1 + e^x)$, and at large $x$
# this is infinity divided by infinity: not a number. But
#
# $$\tanh \frac x2 = \frac{e^{x/2} - e^{-x/2}}{e^{x/2} + e^{-x/2}} = \frac{1 - e^{-x}}{1 + e^{-x}} = 2 \sigma(x) - 1
# \qquad \text{so} \qquad \sigma(x) = \tfrac12 \Bigl( 1 + \tanh \frac x2 \Bigr) ,$$
#
# and a tanh cannot overflow.

# %%
formulas = {
    "1 / (1 + exp(-x))": lambda x: 1 / (1 + np.exp(-x)),
    "exp(x) / (1 + exp(x))": lambda x: np.exp(x) / (1 + np.exp(x)),
    "(1 + tanh(x/2)) / 2": lambda x: 0.5 * (1 + np.tanh(0.5 * x)),
}
extreme = np.array([-200, -20, 0, 20, 200], dtype="float32")
print(f"{'x':<24}", extreme)
overflows = []
for text, formula in formulas.items():
    with np.errstate(over="ignore", invalid="ignore"):
        print(f"{text:<24}", formula(extreme))
        assert np.isnan(formula(extreme)).any() == text.startswith("exp")
    try:
        with np.errstate(over="raise"):
            formula(extreme)
    except FloatingPointError:
        overflows.append(text)
print("overflow in:", "; ".join(overflows))
assert overflows == ["1 / (1 + exp(-x))", "exp(x) / (1 + exp(x))"]

# %% [markdown]
# It pays for this at the far left: a tanh near $-1$ has few digits left for its distance from $-1$. The *absolute*
# error stays at rounding, the *relative* one grows, and in the end the result is 0, a relative error of 1. For a gate,
# here a factor between 0 and 1, the absolute error is what counts.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4))
by_tanh = formulas["(1 + tanh(x/2)) / 2"]
left.plot(grid, by_tanh(grid), color=BLUE, label="sigmoid, y")
left.plot(grid, by_tanh(grid) * (1 - by_tanh(grid)), "--", color=ORANGE, label="slope, y (1 - y)")
left.set(title="sigmoid", xlabel="x")
left.legend(fontsize=8)
tail = np.linspace(-45.0, -0.5, 179)
true = np.exp(tail) / (1 + np.exp(tail))  # exact to rounding here, where nothing overflows
for dtype, colour in (("float64", BLUE), ("float32", ORANGE)):
    error = np.abs(by_tanh(tail.astype(dtype)) / true - 1)
    right.semilogy(tail, np.maximum(error, 1e-17), color=colour, label=dtype)
    assert error[0] == 1.0  # nothing is left at x = -45
right.set(title="the tanh formula at the far left", xlabel="x", ylabel="relative error")
right.legend(fontsize=8)
figure.tight_layout()
plt.show()


# %%
def sigmoid(x):
    y = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        y[index] = 0.5 * (1.0 + math.tanh(0.5 * x[index]))
    return y, y


def sigmoid_way_back(dy, y):
    dx = np.zeros_like(y)
    for index in np.ndindex(*y.shape):
        dx[index] = dy[index] * y[index] * (1.0 - y[index])
    return dx


report = check_gradients(sigmoid, sigmoid_way_back, {"x": x})
print(report)
assert report.passed

# %% [markdown]
# ## The library does the same
#
# [`activations.py`](../minifocal/functional/activations.py) has the three pairs, without loops. Its constants come from
# `math` (tutorial 0), so float32 stays float32.

# %%
for (ours, our_cache), our_backward, forward_library, backward_library in (
    (elementwise(gelu, x), backward, activations.gelu_forward, activations.gelu_backward),
    (elementwise(gelu_tanh, x), backward, activations.gelu_tanh_forward, activations.gelu_tanh_backward),
    (sigmoid(x), sigmoid_way_back, activations.sigmoid_forward, activations.sigmoid_backward),
):
    y_library, cache = forward_library(x)
    np.testing.assert_allclose(ours, y_library, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(our_backward(dy, our_cache), backward_library(dy, cache), rtol=1e-12, atol=1e-15)
    assert forward_library(x.astype("float32"))[0].dtype == "float32"

# %% [markdown]
# ## Questions
#
# 1. Where is the slope of the GELU (by erf) largest, where smallest? Show that the slopes at $x$ and $-x$ add up to 1.
# 2. A sigmoid gate in float32 has the input $x = 40$. What does `sigmoid_backward` give, and what would be exact?
#    Would caching $x$ in place of $y$ help?
#
# ## Answers
#
# 1. With $\varphi'(x) = -x\varphi(x)$ the slope of the slope is $\varphi(x) (2 - x^2)$: zero at $\pm\sqrt2$. There the
#    slopes are 1.1289 and -0.1289. $\Phi(-x) = 1 - \Phi(x)$ and $\varphi(-x) = \varphi(x)$, so the slope at $-x$ is
#    $1 - \Phi(x) - x \varphi(x)$: 1 minus the slope at $x$.
# 2. $y$ is rounded to exactly 1, so $1 - y$ and `dx` are 0. The exact slope is $4.2 \cdot 10^{-18}$, and $x$ would give
#    it, as $e^{-x} / (1 + e^{-x})^2$. But a step by so little is lost all the same: added to 1, float32 rounds it away.
