# %% [markdown]
# # 2. How to check a gradient, and how a check fools you
#
# *Before this:* tutorials 0 and 1. *Time:* 40 minutes.
#
# *Afterwards you can* check any backward function against its forward function, choose a step size and say what error
# it leaves, and name the ways in which a check passes a wrong gradient.
#
# *Explains* [`minifocal/gradcheck.py`](../minifocal/gradcheck.py).
#
# A wrong gradient rarely crashes. The network trains, a little worse. So every backward function is checked against
# what it claims to be: the derivative of its forward function. The example is the softmax, which turns the $C$ channels
# of a token $x$ into $C$ positive numbers with sum 1:
#
# $$y_c = \frac{e^{x_c}}{\sum_j e^{x_j}}, \qquad
# \frac{\partial y_c}{\partial x_j} = y_c \bigl( [c = j] - y_j \bigr), \qquad
# \mathrm{d}x_j = y_j \Bigl( \mathrm{d}y_j - \sum_c \mathrm{d}y_c\, y_c \Bigr) .$$
#
# $[c = j]$ is 1 where $c = j$ and 0 elsewhere. The last formula is the chain rule of tutorial 1: multiply the slope by
# the upstream gradient and add up over $c$.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minifocal.functional.cross_entropy import log_softmax
from minifocal.functional.linear import linear_backward, linear_forward
from minifocal.gradcheck import check_gradients

T, C = 3, 4  # three tokens of four channels
rng = np.random.default_rng(2)
x, dy, v = (rng.standard_normal((T, C)) for _ in range(3))  # v: a direction to move x in, used below


def forward(x):
    y = np.zeros_like(x)  # in the dtype of x: float64, float32 or complex
    for t in range(T):
        exponentials = [np.exp(x[t, c]) for c in range(C)]
        for c in range(C):
            y[t, c] = exponentials[c] / sum(exponentials)
    return y, y  # the output is all that the way back needs: it is the cache


def backward(dy, y):
    dx = np.zeros_like(y)
    for t in range(T):
        along_y = sum(dy[t, c] * y[t, c] for c in range(C))
        for c in range(C):
            dx[t, c] = y[t, c] * (dy[t, c] - along_y)
    return dx


y, cache = forward(x)
dx = backward(dy, cache)
np.testing.assert_allclose(y, np.exp(log_softmax(x)), rtol=1e-12)  # the library's forward
print("y\n", y.round(4))

# %% [markdown]
# ## One number at a time
#
# A backward function turns *any* upstream gradient into a gradient. To check it no network is needed: choose `dy`, and
# take as loss
#
# $$\mathcal L(x) = \langle \mathrm{d}y,\, y(x) \rangle = \sum_{tc} \mathrm{d}y_{tc}\, y_{tc}(x) ,$$
#
# whose gradient with respect to $y$ is `dy`. Then `backward(dy, cache)` must be the gradient of $\mathcal L$ with
# respect to $x$. The *central difference* moves one number of $x$ by a small step $h$ both ways. Write $x \pm h$ for
# that, and $\mathcal L'$, $\mathcal L'''$ for the first and the third derivative by that number. By Taylor's formula
#
# $$\frac{\mathcal L(x + h) - \mathcal L(x - h)}{2h} = \mathcal L'(x) + \frac{h^2}{6} \mathcal L'''(x) + \dots$$


# %%
def loss(x):
    return (dy.astype(x.real.dtype) * forward(x)[0]).sum()  # all of it in the precision of x


h = 1e-5
print("index     by hand          central difference   difference")
for index in np.ndindex(T, C):
    moved = np.zeros((T, C))
    moved[index] = h
    numeric = (loss(x + moved) - loss(x - moved)) / (2 * h)
    print(f"{index}   {dx[index]:+.12f}   {numeric:+.12f}   {abs(dx[index] - numeric):.0e}")
    np.testing.assert_allclose(dx[index], numeric, atol=1e-9)

# %% [markdown]
# ## Which step size?
#
# The formula above says: the smaller the better. Rounding says the opposite. A loss is known only to a relative error
# $\epsilon$, about $10^{-16}$ in float64 and $10^{-7}$ in float32. The two losses agree in most of their digits. In
# the difference these cancel, and what rounding has left is divided by $2h$. The total error is about
#
# $$\underbrace{\frac{h^2}{6} \left| \mathcal L''' \right|}_{\text{truncation}} +
# \underbrace{\frac{\epsilon}{h} \left| \mathcal L \right|}_{\text{rounding}} ,$$
#
# a V in a log-log picture, with its lowest point near $h = \epsilon^{1/3}$, at an error near $\epsilon^{2/3}$.
#
# The *complex step* does without the subtraction. Move $x$ by $h$ times the imaginary unit $i$:
# $\mathcal L(x + ih) = \mathcal L(x) + ih \mathcal L'(x) - \frac{h^2}{2} \mathcal L''(x) - \dots$, so
# $\operatorname{Im} \mathcal L(x + ih) / h$ is $\mathcal L'(x)$ up to $h^2$, and nothing cancels. Its $h$ may be
# $10^{-30}$. In the picture, $x$ moves along one random direction `v`.

# %%
exact = (dx * v).sum()  # the slope along v
steps = 10.0 ** np.arange(0, -13, -0.5)


def central_error(h, dtype):
    x_, v_ = x.astype(dtype), v.astype(dtype)
    return abs((float(loss(x_ + h * v_)) - float(loss(x_ - h * v_))) / (2 * h) / exact - 1)


errors64 = np.array([central_error(float(h), "float64") for h in steps])
errors32 = np.array([central_error(float(h), "float32") for h in steps])
complex_step = np.array([abs(loss(x + 1j * h * v).imag / h / exact - 1) for h in steps])

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.9), width_ratios=(2, 3))
along = np.linspace(-1.6, 1.6, 80)
left.plot(along, [loss(x + a * v) for a in along], color="#0072B2", label="loss at x + h v")
left.plot(along, loss(x) + exact * along, "--", color="#666666", label="its slope at h = 0")
left.plot([-1, 1], [loss(x - v), loss(x + v)], "o-", color="#D55E00", label="central difference, h = 1")
left.set(xlabel="h", ylabel="loss", title="what is computed")
left.legend(fontsize=8)
right.loglog(steps, errors32, ".-", color="#D55E00", label="central, float32")
right.loglog(steps, errors64, ".-", color="#0072B2", label="central, float64")
right.loglog(steps, np.maximum(complex_step, 1e-17), ".-", color="#009E73", label="complex step")
right.loglog(steps, errors64[2] * (steps / steps[2]) ** 2, ":", color="#666666", label="truncation, rounding")
for dtype in ("float64", "float32"):
    right.loglog(steps, np.finfo(dtype).eps / steps * abs(loss(x) / exact), ":", color="#666666")
right.set(xlabel="step h", ylabel="relative error", title="what it costs", ylim=(1e-17, 30))
right.invert_xaxis()
right.legend(fontsize=8, loc="lower left")
figure.tight_layout()
plt.show()

# %% [markdown]
# From left to right $h$ shrinks. All three errors fall as $h^2$ at first. float64 turns at about $10^{-5}$ and keeps
# ten digits, float32 turns at $10^{-2}$ and keeps four; the complex step does not turn. On a deeper network the curves
# lie higher, and float32 leaves three digits or fewer: a gradient that is 0.1 % wrong looks like rounding. So gradients
# are checked in float64.
#
# The complex step has its price: the forward function must take complex numbers, and must not use `abs`, a
# comparison or a forced dtype, which lose the imaginary part. It does not complain where it fails: the slope of $|x|$
# at $-2$ is $-1$, and the complex step says 0.

# %%
print(f"best errors: float64 {errors64.min():.0e}, float32 {errors32.min():.0e}, complex {complex_step.min():.0e}")
assert errors32.min() > 1e3 * errors64.min()
assert complex_step[steps < 1e-8].max() < 1e-13
assert np.imag(np.abs(-2.0 + 1e-30j)) == 0.0

# %% [markdown]
# ## One direction in place of every number
#
# A network of a million parameters would need two million forward passes. Take a random direction $v$ instead. Let $J$
# be the *Jacobian*, the matrix of all slopes $\partial y / \partial x$. Moving $x$ along $v$ changes the output by
# $J v$, and a backward function computes $J^\top \mathrm{d}y$. These two must agree:
#
# $$\langle \mathrm{d}y,\, J v \rangle = \langle J^\top \mathrm{d}y,\, v \rangle .$$
#
# This is the *adjoint identity*. The left side needs forward passes only, two of them, or one complex; the right side
# one backward pass. A wrong $\mathrm{d}x$ passes only if its error is nearly perpendicular to $v$, which is unlikely
# for a random $v$; `directions=3` asks for three of them.

# %%
Jv = forward(x + 1e-30j * v)[0].imag / 1e-30
print(f"<dy, J v> = {(dy * Jv).sum():+.16f}\n<dx, v>   = {(dx * v).sum():+.16f}")
np.testing.assert_allclose((dy * Jv).sum(), (dx * v).sum(), rtol=1e-12)

# %% [markdown]
# ## How a check fools you
#
# Five wrong backward functions, and four checks. The first check is in float64, `dy` and `v` random. The others save
# something each: in the second `dy` is all ones, so that the loss is the plain sum of $y$; in the third the dtype is
# float32, with a tolerance to match; in the fourth only one number of $x$ is moved. Before you run it: which of the
# five will the check with ones find?

# %%
wrongs = {
    "right": lambda dy, y: backward(dy, y),
    "seven times too large": lambda dy, y: 7 * backward(dy, y),
    "plain mean of dy subtracted": lambda dy, y: y * (dy - dy.mean(axis=1, keepdims=True)),
    "nothing subtracted": lambda dy, y: y * dy,
    "0.3 % too large": lambda dy, y: 1.003 * backward(dy, y),
    "zero for the last token": lambda dy, y: backward(dy, y) * np.array([[1.0], [1.0], [0.0]]),
}


def found(way_back, dy, v, dtype="float64", h=1e-5, tolerance=1e-7):
    """Whether the slope by central difference disagrees. All slopes here are below 1, so the error is absolute."""
    x_, dy_, v_ = (array.astype(dtype) for array in (x, dy, v))
    difference = ((dy_ * forward(x_ + h * v_)[0]).sum() - (dy_ * forward(x_ - h * v_)[0]).sum()) / (2 * h)
    return abs((way_back(dy_, forward(x_)[0]) * v_).sum() - difference) > tolerance


one_number = np.zeros((T, C))
one_number[0, 0] = 1.0
table = np.zeros((len(wrongs), 4), dtype=bool)  # a row for each function, a column for each check
print(f"{'':<28}      random        ones     float32  one number")
for row, (name, way_back) in enumerate(wrongs.items()):
    table[row, 0] = found(way_back, dy, v)
    table[row, 1] = found(way_back, np.ones((T, C)), v)
    table[row, 2] = found(way_back, dy, v, "float32", h=1e-2, tolerance=1e-2)
    table[row, 3] = found(way_back, dy, one_number)
    print(f"{name:<28}" + "".join(f"{'found' if wrong else '-':>12}" for wrong in table[row]))
assert not table[0].any()
assert table.sum(axis=0).tolist() == [5, 1, 4, 4]

# %% [markdown]
# The sum of a softmax is 1 whatever $x$ is, so with `dy` of ones the true gradient is 0, and so is seven times it.
# Every function that fixes a sum, a mean or a length has such a blind upstream gradient. A random `dy` avoids it. In
# float32 the tolerance has to be above the rounding, and 0.3 % slips through below it. Who moves only one number, of
# token 0, learns nothing about the last token.
#
# One more trap: `dy` drawn from the same seed as `x`. For the linear layer of tutorial 1 with $I = O$,
# $\mathrm{d}w = x^\top \mathrm{d}y$ is symmetric if `dy` equals `x`, and a transposed gradient passes:


# %%
def transposed(dy, cache):
    dx, dweight, dbias = linear_backward(dy, cache)
    return dx, dweight.T.copy(), dbias


same = np.random.default_rng(7).standard_normal((5, 3))
inputs = {"x": same, "weight": rng.standard_normal((3, 3)), "bias": np.ones(3)}
for seed in (7, 8):
    report = check_gradients(linear_forward, transposed, inputs, rng=np.random.default_rng(seed))
    print(f"x from seed 7, dy from seed {seed}: {'pass' if report.passed else 'FAIL: ' + ', '.join(report.failed)}")
    assert report.passed == (seed == 7)

# %% [markdown]
# ## The library does the same
#
# [`check_gradients`](../minifocal/gradcheck.py) draws `dy`, then a direction for each array, and compares. With the
# same draws we get its numbers. By default it takes the central difference $D_h$ at $h$, $h/2$, $h/4$, $\dots$ From two
# of them the $h^2$ term can be removed, $(4 D_{h/2} - D_h) / 3$, from three also the $h^4$ term, and so on, until
# rounding stops it. This *extrapolation* needs no choice of $h$ and no complex numbers.

# %%
report = check_gradients(forward, backward, {"x": x}, rng=np.random.default_rng(3), method="complex")
draws = np.random.default_rng(3)
dy_drawn, v_drawn = (draws.standard_normal((T, C)) for _ in range(2))
entry = report["x"].entries[0]
np.testing.assert_allclose(entry.analytic, (backward(dy_drawn, y) * v_drawn).sum(), rtol=1e-12)
np.testing.assert_allclose(entry.numeric, (dy_drawn * forward(x + 1e-30j * v_drawn)[0]).sum().imag / 1e-30, rtol=1e-12)
for name, options in (("complex step", {"method": "complex"}), ("step of 1e-5", {"step": 1e-5}), ("extrapolated", {})):
    report = check_gradients(forward, backward, {"x": x}, **options)
    print(f"{name:<14} {report}")
    assert report.passed
print(check_gradients(forward, wrongs["0.3 % too large"], {"x": x}, elementwise=True))

# %% [markdown]
# ## Questions
#
# 1. A backward function is wrong by one part in a million, in one number of a gradient of ten thousand numbers that
#    are all about equally large. Does `check_gradients` find it along one direction, with its tolerance of $10^{-7}$?
#    And with `elementwise=True`?
# 2. Replace `backward` by one that multiplies with $J$ in place of $J^\top$. Why does no check of a softmax find it?
#
# ## Answers
#
# 1. The error is measured relative to the length of the whole gradient, here 100 times one number. Along a direction
#    it is about $10^{-6} / 100 = 10^{-8}$, and passes. Element by element it is $10^{-6}$, and fails.
# 2. $J$ is symmetric: $y_c ([c = j] - y_j)$ stays the same if $c$ and $j$ are exchanged, so it is no mistake here.
