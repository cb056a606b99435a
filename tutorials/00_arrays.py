# %% [markdown]
# # 0. Arrays, shapes and devices
#
# *Before this:* nothing. *Time:* 30 minutes.
#
# *Afterwards you can* read minifocal's shapes, give the gradient of a broadcast, tell a view from a copy, keep float32
# from turning into float64, and write a function that runs wherever its arrays live.
#
# *Explains* [`minifocal/arrays.py`](../minifocal/arrays.py).
#
# An array has a *shape*, a *memory* that it may share with other arrays, a *dtype*, and a *home*: the library and the
# device that hold it. We take them in turn. What we build by hand on the way is the gradient of broadcasting.

# %%
import math
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np

from minifocal.arrays import get_array_module
from minifocal.functional.layer_scale import layer_scale_backward, layer_scale_forward
from minifocal.functional.mean_pool import mean_pool_backward, mean_pool_forward

rng = np.random.default_rng(0)
B, H, W, C = 2, 3, 4, 5

# %% [markdown]
# ## Shape
#
# The letters are the same in every file: $B$ images in a batch, $H$ rows and $W$ columns of the token grid, $C$
# channels. A *token* is one position of the grid with its vector of channels, and a *map* is an array of shape
# $(B, H, W, C)$, channels last. The numbers of this one spell their index: 1203 lies at `[1, 2, 0, 3]`.

# %%
spelled = np.zeros((B, H, W, C), dtype=int)
for b, h, w, c in np.ndindex(B, H, W, C):
    spelled[b, h, w, c] = 1000 * b + 100 * h + 10 * w + c
print("one image, (H, W, C):\n", spelled[1], "\none token, (C,):", spelled[1, 2, 0])
assert spelled[1, 2, 0, 3] == 1203
assert spelled.reshape(B * H * W, C)[(1 * H + 2) * W + 0, 3] == 1203  # the row of this token, see below

# %% [markdown]
# In memory this is one long row of numbers, and the last axis varies fastest. The $C$ numbers of a token lie side by
# side. Putting all tokens under each other, $(B, H, W, C) \to (BHW, C)$, moves nothing, and one matrix product then
# serves every token.
#
# Images enter channels first, $(B, C, H, W)$, as most libraries of the field hold them; here $C = 3$ colours. The way
# from one order to the other is `transpose`, which reorders the axes. `reshape` also gives the shape that was asked
# for, without a complaint, but cuts the row of numbers into other pieces.

# %%
rows, columns = np.indices((24, 36))
disc = (rows - 10) ** 2 + (columns - 14) ** 2 < 70
colours = np.array([[0.84, 0.37, 0.0], [0.0, 0.45, 0.7], [0.0, 0.62, 0.45]])  # orange, blue, green
which = np.ones((24, 36), dtype=int)  # blue, but for
which[disc] = 0
which[rows >= 19] = 2
image = colours[which].transpose(2, 0, 1)  # (3, 24, 36), as images enter
pictures = {
    "transpose(1, 2, 0): right": image.transpose(1, 2, 0),
    "reshape(24, 36, 3): wrong": image.reshape(24, 36, 3),
    "transpose(2, 1, 0): wrong": image.transpose(2, 1, 0),
}
figure, panels = plt.subplots(1, 3, figsize=(8, 3))
for axes, (title, picture) in zip(panels, pictures.items(), strict=True):
    axes.imshow(picture)
    axes.set_title(f"{title}\n{picture.shape}", fontsize=10)
    axes.set(xlabel="second axis", ylabel="first axis")
figure.tight_layout()
plt.show()

# %% [markdown]
# The middle picture has the right shape and the wrong contents. On the right, rows and columns are swapped: the shape
# gives it away, and would not if the image were square. That is why sizes in these tutorials differ.
#
# ## Broadcasting, and what its gradient needs
#
# Let every channel have a factor of its own, $\gamma$ of shape $(C,)$: $y_{bhwc} = x_{bhwc}\, \gamma_c$, in NumPy
# `x * gamma`. Shapes are aligned at their last axes; an axis that is missing or has length 1 is repeated as often as
# needed. Nothing is copied: the *stride*, the distance in bytes to the next number along an axis, is 0 there.

# %%
x, gamma = rng.standard_normal((B, H, W, C)), np.array([1.0, -0.5, 2.0, 0.1, 3.0])
print("strides of gamma:", gamma.strides, "  of gamma repeated:", np.broadcast_to(gamma, x.shape).strides)
y = np.zeros_like(x)
for index in np.ndindex(*x.shape):
    y[index] = x[index] * gamma[index[-1]]
np.testing.assert_array_equal(y, x * gamma)

# %% [markdown]
# Let a loss $\mathcal L$ depend on $y$, and call its gradient with respect to $y$, of the shape of $y$, $\mathrm{d}y$:
# the *upstream gradient*, since it comes from later in the network. One $\gamma_c$ touches $BHW$ numbers of $y$, so by
# the chain rule its gradient is a sum of as many terms. Each $x_{bhwc}$ touches one:
#
# $$\mathrm{d}\gamma_c = \sum_{bhw} \mathrm{d}y_{bhwc}\, x_{bhwc}, \qquad
# \mathrm{d}x_{bhwc} = \mathrm{d}y_{bhwc}\, \gamma_c .$$
#
# This is general: **whatever the forward pass repeats along an axis, the backward pass sums over that axis.** Below it
# is done for any two shapes that broadcast: each number goes back to the element that was repeated.


# %%
def sum_to_shape(gradient, shape):
    """Give the gradient of an array of `shape` that was broadcast to the shape of `gradient`."""
    total = np.zeros(shape)
    missing = gradient.ndim - len(shape)
    for index in np.ndindex(*gradient.shape):
        origin = list(index[missing:])
        for axis, size in enumerate(shape):
            if size == 1:
                origin[axis] = 0  # all along this axis came from one element
        total[tuple(origin)] += gradient[index]
    return total


dy = rng.standard_normal(y.shape)
dgamma = sum_to_shape(dy * x, (C,))

# %% [markdown]
# Check it against the definition of a derivative. As loss take $\mathcal L = \sum \mathrm{d}y \cdot y$ with `dy` held
# fixed, whose gradient with respect to $y$ is `dy`. Move one $\gamma_c$ up and down by a step, and divide the change of
# $\mathcal L$ by the distance. This loss is linear in $\gamma$, so even a large step is exact but for rounding. A wrong
# gradient, which takes a mean in place of the sum, stands beside it.

# %%
step, numeric = 0.5, np.zeros(C)
for channel in range(C):
    up, down = gamma.copy(), gamma.copy()
    up[channel] += step
    down[channel] -= step
    numeric[channel] = ((dy * (x * up)).sum() - (dy * (x * down)).sum()) / (2 * step)
wrong = (dy * x).mean(axis=(0, 1, 2))
print("by hand  ", dgamma.round(4), "\nnumeric  ", numeric.round(4), "\nwith mean", wrong.round(4))
np.testing.assert_allclose(dgamma, numeric, rtol=1e-10)
np.testing.assert_allclose(wrong * (B * H * W), numeric, rtol=1e-10)

# %% [markdown]
# With the mean it is too small by a factor of $BHW = 24$, the number of tokens, in every channel: a constant ratio
# marks a sum that became a mean. The library calls the operation layer scale, and its sum is `.sum(axis=positions)`.
# The reverse of the rule holds too: what the forward pass sums, the backward pass repeats. The mean over the tokens of
# an image, $(B, H, W, C) \to (B, C)$, hands every token the same $1/(HW)$ of its gradient.

# %%
y_library, cache = layer_scale_forward(x, gamma)
dx_library, dgamma_library = layer_scale_backward(dy, cache)
for ours, theirs in ((y, y_library), (dy * gamma, dx_library), (dgamma, dgamma_library)):
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)

dpooled = rng.standard_normal((B, C))
dx_pool = mean_pool_backward(dpooled, mean_pool_forward(x)[1])
for index in np.ndindex(*x.shape):
    np.testing.assert_allclose(dx_pool[index], dpooled[index[0], index[-1]] / (H * W), rtol=1e-12)
print("strides of dx through the mean:", dx_pool.strides)
assert not dx_pool.flags.writeable

# %% [markdown]
# ## Memory: views and copies
#
# That last array holds only $BC$ numbers, which all tokens look at, and NumPy lets nobody write to it. An array that
# looks into the memory of another is a *view*. `np.shares_memory` tells views from copies:

# %%
for text, array, is_view in (
    ("x[..., :2]", x[..., :2], True),
    ("x.reshape(-1, C)", x.reshape(-1, C), True),
    ("x.transpose(0, 3, 1, 2)", x.transpose(0, 3, 1, 2), True),
    ("x.transpose(0, 3, 1, 2).reshape(B, -1)", x.transpose(0, 3, 1, 2).reshape(B, -1), False),
    ("x[..., [0, 1]]", x[..., [0, 1]], False),
):
    print(f"{text:<40} {'view' if np.shares_memory(x, array) else 'copy'}")
    assert np.shares_memory(x, array) == is_view

# %% [markdown]
# For reading the difference does not matter; for writing it does. `x *= gamma` writes into the caller's array and all
# that share its memory. In a network that is a bug even if the caller is done with `x`, because the way back is not.
# Here a function multiplies in place, and keeps `x` for its gradient:


# %%
def scale_in_place(x, gamma):
    x *= gamma
    return x, x


given = x.copy()
y_in_place, x_kept = scale_in_place(given, gamma)
np.testing.assert_array_equal(y_in_place, y)  # the output is right ...
dgamma_in_place = sum_to_shape(dy * x_kept, (C,))
print("right  ", dgamma.round(4), "\nwrong  ", dgamma_in_place.round(4), "\nratio  ", dgamma_in_place / dgamma)
np.testing.assert_allclose(dgamma_in_place / dgamma, gamma, rtol=1e-10)  # ... and the gradient is not

# %% [markdown]
# No error, the right output, and a gradient that is off by a factor $\gamma_c$: the kept `x` has become $y$. The rule
# of this library: *a function writes only into arrays that it made in the same call.*
#
# ## Dtype
#
# Networks compute in float32, which keeps about 7 digits in 4 bytes; gradients are checked in float64, about 16
# digits in 8 bytes. Functions of this library give back the dtype that they were given. One careless constant breaks
# that: under NumPy 2 a Python float adapts to the array, and a NumPy scalar such as `np.sqrt(2)` does not. Its dtype is
# float64, which wins.

# %%
x32 = x.astype("float32")
for text, result, expected in (
    ("x32 * math.sqrt(2)", x32 * math.sqrt(2), "float32"),
    ("x32 * np.sqrt(2)", x32 * np.sqrt(2), "float64"),
    ("x32 * gamma", x32 * gamma, "float64"),
):
    print(f"{text:<20} {result.dtype}")
    assert result.dtype == expected

# %% [markdown]
# One such constant makes everything after it float64: twice the memory, slower, and nothing looks wrong. Constants
# come from `math`.
#
# ## Home
#
# CuPy offers NumPy's functions for arrays in the memory of a GPU. Code that names `np` works with them in part: CuPy
# redirects some calls and refuses others. Code that asks its arrays works as a whole: **the arrays decide.**
# `get_array_module` asks; it returns the library that made its arguments. Arrays of two homes in one call are a
# mistake: moving one silently would hide a slow transfer in every step, so a mixture is refused and both are named.
# To see it without a GPU, here is an array type that stands for one and names a library of its own:


# %%
class FarArray:
    def __init__(self, numbers):
        self._numbers, self.shape, self.device = numbers, numbers.shape, "far:0"

    def __array_namespace__(self):  # the name that array libraries agreed on: "which library made you?"
        return far


far = SimpleNamespace(__name__="far", tanh=lambda array: FarArray(np.tanh(array._numbers)))


def tanh(x):
    return get_array_module(x).tanh(x)


x_far = FarArray(x)
print("tanh(x) is a", type(tanh(x)).__name__, "and tanh(x_far) a", type(tanh(x_far)).__name__)
np.testing.assert_array_equal(tanh(x_far)._numbers, tanh(x))
refusal = ""
try:
    get_array_module(x, x_far)
except TypeError as error:
    refusal = str(error)
print(refusal)
assert "numpy array of shape (2, 3, 4, 5) on cpu and far array" in refusal

# %% [markdown]
# Read [`arrays.py`](../minifocal/arrays.py) now. Of all files that hold the mathematics, none imports NumPy or CuPy
# itself: they ask this one.
#
# ## Questions
#
# 1. A vector `v` of shape $(H, 1, C)$ is added to a map $x$ of shape $(B, H, W, C)$. Over which axes must `dy` be
#    summed to give `dv`, and how do you write it without loops?
# 2. Somebody writes `part = x[..., :2]` and then one of: (a) `part += 1`, (b) `part = part + 1`,
#    (c) `part = x[..., [0, 1]]; part += 1`. Which of them change `x`?
#
# ## Answers
#
# 1. Over axis 0, which `v` lacks, and axis 2, where it has length 1 and keeps it:
#    `dy.sum(axis=0).sum(axis=1, keepdims=True)`, of shape $(H, 1, C)$. `sum_to_shape(dy, (H, 1, C))` agrees.
# 2. Only (a): `part` is a view, and `+=` writes into it. In (b) `+` makes a new array and `part` becomes its name.
#    In (c) a list of indices has made a copy, and the copy is changed.
