# %% [markdown]
# # 6. Depthwise convolution and its two gradients
#
# *Before this:* tutorials 1 and 2. *Time:* 45 minutes.
#
# *Afterwards you can* write a depthwise convolution and both of its gradients, say where the kernel turns and why,
# and compute and measure how far a chain of convolutions sees.
#
# *Explains* [`minifocal/functional/depthwise_conv.py`](../minifocal/functional/depthwise_conv.py).
#
# In a block of a FocalNet a token learns about its neighbours by depthwise convolutions (and about the map as a whole
# by a mean). A map $x$ of shape $(B, H, W, C)$ and a kernel `weight` of shape $(k, k, C)$, $k$ odd, give a map $z$ of
# the shape of $x$:
#
# $$z[b, h, w, c] = \sum_{i=0}^{k-1} \sum_{j=0}^{k-1} \text{weight}[i, j, c]\;
# x[b,\; h + i - m,\; w + j - m,\; c], \qquad m = \lfloor k/2 \rfloor .$$
#
# "Depthwise" says that each channel has a kernel of its own and no channel sees another. A place $(i, j)$ of the
# kernel is called a tap. Tokens outside the map count as zero, and there is no bias.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minifocal.functional.depthwise_conv import depthwise_conv_backward, depthwise_conv_forward
from minifocal.gradcheck import check_gradients
from minifocal.models.config import FocalNetConfig

rng = np.random.default_rng(6)
B, H, W, C, k = 1, 6, 5, 2, 3

# %% [markdown]
# ## Forward, one product at a time
#
# A small function lists, for one size of map and kernel, which token of $x$ meets which tap for which token of $z$.
# It is all there is to know about a convolution: forward and both gradients run over the same list.


# %%
def meetings(height, width, k):
    """Yield (token of z, tap, token of x) for every product of the sum; tokens outside the map have none."""
    for h, w, i, j in np.ndindex(height, width, k, k):
        row, column = h + i - k // 2, w + j - k // 2
        if 0 <= row < height and 0 <= column < width:
            yield (h, w), (i, j), (row, column)


def convolve(x, weight):
    z = np.zeros(x.shape, dtype=np.result_type(x, weight))
    for (h, w), (i, j), (row, column) in meetings(*x.shape[1:3], len(weight)):
        for b, c in np.ndindex(x.shape[0], x.shape[3]):
            z[b, h, w, c] += weight[i, j, c] * x[b, row, column, c]
    return z


x, weight = rng.standard_normal((B, H, W, C)), rng.standard_normal((k, k, C))
z = convolve(x, weight)
taps = convolve(np.ones((1, H, W, 1)), np.full((k, k, 1), 1.0))
print("taps that lie on the map:\n", taps[0, :, :, 0].astype(int))
assert z.shape == x.shape
assert taps[0, 0, 0, 0] == 4  # a corner has four of nine

# %% [markdown]
# The last lines convolve a map of ones with a kernel of ones. The result shows what padding with zeros does: a
# corner gets four of nine terms. A convolution with zero padding can tell the border from the middle, and a
# FocalNet, which is told no positions, learns from this where a token stands.
#
# ## Backward
#
# Let `dz` be the upstream gradient, that of the loss $\mathcal L$ with respect to $z$. Each product
# `weight[i, j, c] * x[...]` is a term of one number of $z$. So along the same list of meetings, each factor gets `dz`
# times the other factor:


# %%
def backward_by_meetings(dz, x, weight):
    """Give dx and dweight: every product sends dz times one factor to the other."""
    dx, dweight = np.zeros_like(x), np.zeros_like(weight)
    for (h, w), (i, j), (row, column) in meetings(*x.shape[1:3], len(weight)):
        for b, c in np.ndindex(x.shape[0], x.shape[3]):
            dx[b, row, column, c] += weight[i, j, c] * dz[b, h, w, c]
            dweight[i, j, c] += x[b, row, column, c] * dz[b, h, w, c]
    return dx, dweight


dz = rng.standard_normal(z.shape)
dx, dweight = backward_by_meetings(dz, x, weight)

# %% [markdown]
# Sorted by where they arrive, the terms become two formulas. A tap is shared by all tokens; its gradient is a sum
# over them, and says how well `dz` agrees with the map shifted by that tap, a correlation:
#
# $$\mathrm{d}\text{weight}[i, j, c] = \sum_{b, h, w} \mathrm{d}z[b, h, w, c]\; x[b,\, h + i - m,\, w + j - m,\, c] .$$
#
# The token of $x$ in row $r$ and column $q$ met tap $(i, j)$ in the sum for the token of $z$ with $h + i - m = r$ and
# $w + j - m = q$, which is $h = r - i + m$, $w = q - j + m$. So
#
# $$\mathrm{d}x[b, r, q, c] = \sum_{i, j} \text{weight}[i, j, c]\; \mathrm{d}z[b,\, r - i + m,\, q - j + m,\, c] .$$
#
# The signs of $i$ and $j$ are the other way round than in the forward pass. Count the taps from the other end,
# $i' = k - 1 - i$ and $j' = k - 1 - j$: since $m = (k - 1)/2$, $\;r - i + m = r + i' - m$, and this is the forward
# formula again, with the kernel `weight[k-1-i', k-1-j']`: turned by half a turn.

# %%
turned = weight[::-1, ::-1]
np.testing.assert_allclose(convolve(dz, turned), dx, rtol=1e-12, atol=1e-14)
for i, j, c in np.ndindex(k, k, C):  # the correlation, tap by tap, as a sum over a shifted map
    shifted = np.zeros((B, H, W))
    for h, w in np.ndindex(H, W):
        if 0 <= h + i - 1 < H and 0 <= w + j - 1 < W:
            shifted[:, h, w] = x[:, h + i - 1, w + j - 1, c]
    np.testing.assert_allclose((dz[..., c] * shifted).sum(), dweight[i, j, c], rtol=1e-12, atol=1e-14)
print("dweight of channel 0\n", dweight[..., 0].round(3))

# %% [markdown]
# ## Look: a one goes in
#
# Put a single one into $x$ and the kernel appears in $z$, turned: the token below the one sees it through its upper
# tap. Put a single one into `dz` and the kernel appears in `dx` as it is: the picture of what one output token saw.

# %%
counting = np.arange(1.0, 10.0).reshape(3, 3, 1)
one = np.zeros((1, H, W, 1))
one[0, 3, 1] = 1.0
response = convolve(one, counting)[0, :, :, 0]
saw = backward_by_meetings(one, one, counting)[0][0, :, :, 0]
np.testing.assert_array_equal(response[2:5, 0:3], counting[::-1, ::-1, 0])
np.testing.assert_array_equal(saw[2:5, 0:3], counting[..., 0])

figure, panels = plt.subplots(1, 3, figsize=(9, 3.4))
pictures = (
    ("weight", counting[..., 0]),
    ("z, for a one in x at (3, 1)", response),
    ("dx, for a one in dz at (3, 1)", saw),
)
for axes, (title, picture) in zip(panels, pictures, strict=True):
    axes.imshow(picture, cmap="cividis", vmin=0, vmax=9)
    for row, column in np.ndindex(picture.shape):
        ink = "black" if picture[row, column] > 5 else "white"
        axes.text(column, row, f"{picture[row, column]:.0f}", ha="center", va="center", color=ink)
    axes.set(title=title, xlabel="column", ylabel="row", xticks=range(picture.shape[1]), yticks=range(picture.shape[0]))
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Check it, and see how the mistake hides
#
# The common mistake is to forget the half turn, or to transpose instead. The check finds it, unless the kernel is
# the same when it is turned: a mean, a Gaussian, or anything else that a test might take because it is simple.

# %%
symmetric = np.array([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])[..., None] / 16 * np.ones(C)
for kernel_name, kernel in (("random kernel", weight), ("symmetric kernel", symmetric)):
    for turn_name, turn in (
        ("half a turn", lambda kernel: kernel[::-1, ::-1]),
        ("not turned", lambda kernel: kernel),
        ("transposed", lambda kernel: kernel.transpose(1, 0, 2)),
    ):

        def backward(dz, cache, turn=turn):
            x, kernel = cache
            return convolve(dz, turn(kernel)), backward_by_meetings(dz, x, kernel)[1]

        report = check_gradients(
            lambda x, kernel: (convolve(x, kernel), (x, kernel)), backward, {"x": x, "weight": kernel}, method="complex"
        )
        verdict = "pass" if report.passed else f"FAIL: {', '.join(report.failed)}"
        print(f"{kernel_name:<17} {turn_name:<12} {verdict:<8} relative error {report.relative_error:.0e}")
        assert report.passed == (turn_name == "half a turn" or kernel_name == "symmetric kernel")

# %% [markdown]
# ## Receptive fields of a chain
#
# A FocalNet chains $L$ depthwise convolutions, its focal levels, the subject of tutorial 7. The kernels grow: with
# levels $l = 1, \dots, L$,
#
# $$k_l = \text{focal\_window} + \text{focal\_factor} \cdot (l - 1) .$$
#
# Most published networks have a window of 3 and a factor of 2: $k = 3, 5$ with two levels, $k = 3, 5, 7$ with
# three. `FocalNet.build` has the same rule under other names: its `focal_kernel` is $k_1$, and each level is 2
# wider. The receptive field of a level is the set of input tokens that can change one of its tokens. One
# convolution sees $k$ tokens in a row; each further one adds $m = (k-1)/2$ on both sides:
#
# $$R_l = 1 + \sum_{i=1}^{l} (k_i - 1) .$$
#
# That can be measured, in almost any network, without knowing how it is built: put a one into `dz` and look where
# `dx` is not zero.

# %%
config = FocalNetConfig(depths=(1,), focal_levels=(3,), focal_windows=(3,), focal_factor=2)
kernel_sizes = [3 + 2 * (level - 1) for level in (1, 2, 3)]
assert config.kernel_sizes(0) == tuple(kernel_sizes)

size, middle = 17, 8
fields = []
for level in (1, 2, 3):
    dctx = np.zeros((1, size, size, 1))
    dctx[0, middle, middle, 0] = 1.0
    for width in reversed(kernel_sizes[:level]):  # from the last level back to the input
        dctx = convolve(dctx, rng.uniform(0.5, 1.5, (width, width, 1))[::-1, ::-1] / width**2)
    fields.append(dctx[0, :, :, 0])
    theory = 1 + sum(width - 1 for width in kernel_sizes[:level])
    measured = int((dctx != 0).any(axis=(0, 2, 3)).sum()), int((dctx != 0).any(axis=(0, 1, 3)).sum())
    inner = fields[-1][middle - 3 : middle + 4, middle - 3 : middle + 4].sum() / fields[-1].sum()
    print(
        f"level {level}: k = {kernel_sizes[level - 1]}, R = {theory:>2}, measured {measured[0]:>2} x {measured[1]:<2}, "
        f"share of dx in the inner 7 x 7: {inner:.0%}"
    )
    assert measured == (theory, theory)

# %%
figure, panels = plt.subplots(1, 3, figsize=(9.5, 3.2), layout="constrained")
for level, (axes, field) in enumerate(zip(panels, fields, strict=True), start=1):
    side = 1 + sum(width - 1 for width in kernel_sizes[:level])
    image = axes.imshow(field / field.max(), cmap="viridis", vmin=0, vmax=1)
    corner = middle - side / 2
    axes.add_patch(plt.Rectangle((corner, corner), side, side, fill=False, edgecolor="#D55E00", linewidth=2))
    axes.set(
        title=f"level {level}: {side} x {side}",
        xlabel="column",
        ylabel="row",
        xticks=range(0, size, 4),
        yticks=range(0, size, 4),
    )
figure.colorbar(image, ax=panels, label="dx, relative to its largest", shrink=0.9)
plt.show()

# %% [markdown]
# The square is the receptive field as computed. Inside it the gradient is far from even: many paths lead through
# the middle and a single one through each corner. What a network could see and what it looks at are two things; a
# trained one is looked at in a later tutorial.
#
# ## The library does the same
#
# [`depthwise_conv.py`](../minifocal/functional/depthwise_conv.py) loops over the $k^2$ taps only and adds a
# shifted map for each; `depthwise_conv_backward` calls the same function with `weight[::-1, ::-1]`, and sums a
# product for each tap.

# %%
z_library, cache = depthwise_conv_forward(x, weight)
dx_library, dweight_library = depthwise_conv_backward(dz, cache)
for ours, theirs in ((z, z_library), (dx, dx_library), (dweight, dweight_library)):
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
assert cache.x is x
assert cache.weight is weight

# %% [markdown]
# ## Questions
#
# 1. The first stage of the published networks has $56 \times 56$ tokens, and three levels in a block see
#    $R = 13$. How many blocks does it take until a token in a corner can see the opposite corner, by these levels
#    alone?
# 2. A $3 \times 3$ convolution is followed by one of $5 \times 5$, without a GELU between them. Can the two be replaced
#    by one of $7 \times 7$? Try it, and look at the border.
#
# ## Answers
#
# 1. Ten. A block reaches $(13 - 1) / 2 = 6$ tokens to each side, and the opposite corner is 55 rows away: nine
#    blocks reach 54. The first stage of the published networks has two blocks. That is one reason for a level that
#    sees the whole map at once, the subject of tutorial 7.
# 2. In the middle, yes: the kernel is the two kernels convolved with each other, at 49 products a token in place
#    of $9 + 25$. In the two rows and columns along each border, no: the second convolution takes zero for what
#    the first would have given outside the map, and one large convolution does not.
