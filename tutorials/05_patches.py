# %% [markdown]
# # 5. Patches, and why they are a convolution
#
# *Before this:* tutorials 1, 2 and 4. *Time:* 40 minutes.
#
# *Afterwards you can* cut a map into patches and put gradients back, say in which order the numbers of a patch lie and
# why, and explain which pixels get a sum and which get nothing.
#
# *Explains* [`minifocal/functional/patches.py`](../minifocal/functional/patches.py) and
# [`minifocal/layers/patch_embed.py`](../minifocal/layers/patch_embed.py).
#
# A FocalNet does not work on pixels but on tokens. Its first layer, the stem, cuts the image into squares of
# $P \times P$ pixels, writes each square as one long vector, a patch, and maps that vector to a token by a matrix.
# Larger networks work in several *stages*, each on a coarser map than the one before; the same layer stands between
# stages, where it makes one token of every $2 \times 2$. Maps are arrays $(B, H, W, C)$: batch, height, width,
# channels; here an image is such a map, of pixels. With patches $s$ pixels apart ($s$ is called the stride) and rows
# and columns counted from 0,
#
# $$\text{patches}[b, h, w, (c, i, j)] = x[b,\; h s + i,\; w s + j,\; c], \qquad
# 0 \le c < C, \quad 0 \le i, j < P .$$
#
# Here $(h, w)$ counts patches, and $(i, j)$ the pixels within one. The three indices in brackets are one axis of
# $C P^2$ numbers: $j$ runs fastest, then $i$, and the channel $c$ runs slowest.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minifocal.functional.patches import patches_backward, patches_forward
from minifocal.gradcheck import check_gradients, check_layer
from minifocal.layers.initializers import get_initializer
from minifocal.layers.patch_embed import PatchEmbed

rng = np.random.default_rng(5)
B, H, W, C, P, out = 1, 5, 9, 3, 2, 6  # out: channels of a token, O in the formulas
places = np.zeros((B, H, W, C))
for b, h, w, c in np.ndindex(B, H, W, C):
    places[b, h, w, c] = 100 * c + 10 * h + w  # a number that says where it stands

print("channel 0 of a map whose numbers say where they stand: row, column\n", places[0, :, :, 0].astype(int))

# %% [markdown]
# ## Forward, one number at a time
#
# With $p$ rows and columns of zeros on every side, the number of whole patches is
#
# $$H' = \Bigl\lfloor \frac{H + 2p - P}{s} \Bigr\rfloor + 1, \qquad W' \text{ likewise from } W .$$
#
# Five rows give two patches of two; the fifth row fills no patch and is left out. So is the ninth column.


# %%
def patches_by_loops(x, size, stride, pad=0):
    """Cut x (B, H, W, C) into patches (B, H', W', C*size*size); what lies outside x counts as zero."""
    batch, height, width, channels = x.shape
    rows = (height + 2 * pad - size) // stride + 1
    columns = (width + 2 * pad - size) // stride + 1
    patches = np.zeros((batch, rows, columns, channels * size * size), dtype=x.dtype)
    for b, h, w in np.ndindex(batch, rows, columns):
        position = 0
        for c in range(channels):
            for i in range(size):
                for j in range(size):
                    row, column = h * stride + i - pad, w * stride + j - pad
                    if 0 <= row < height and 0 <= column < width:
                        patches[b, h, w, position] = x[b, row, column, c]
                    position += 1
    return patches


cut = patches_by_loops(places, P, stride=P)
print("patches have shape", cut.shape)
print("the patch in row 1, column 2:", cut[0, 1, 2].astype(int))
assert cut.shape == (1, 2, 4, C * P * P)
np.testing.assert_array_equal(cut[0, 1, 2], [24, 25, 34, 35, 124, 125, 134, 135, 224, 225, 234, 235])

# %% [markdown]
# ## Look: how many patches see a pixel
#
# Three ways of cutting. With stride $s = P$ the patches tile the map: no pixel is seen twice. With $s < P$ they
# overlap. With one row of zeros around the map, the $3 \times 3$ patches are centred on pixels 0, 2, 4, …, the border
# included.

# %%
ways = [("P = 2, stride 2", 2, 2, 0), ("P = 3, stride 2", 3, 2, 0), ("P = 3, stride 2, padding 1", 3, 2, 1)]
figure, panels = plt.subplots(1, 3, figsize=(10, 2.6))
seen = []
for axes, (title, size, stride, pad) in zip(panels, ways, strict=True):
    count = np.zeros((H, W))
    one_channel = places[..., :1] + 1  # without a zero, so that 0 means padding
    for value in patches_by_loops(one_channel, size, stride, pad).ravel():
        if value > 0:
            row, column = divmod(int(value) - 1, 10)
            count[row, column] += 1
    seen.append(count)
    axes.imshow(count, cmap="cividis", vmin=0, vmax=4)
    for row, column in np.ndindex(H, W):
        ink = "black" if count[row, column] > 2 else "white"
        axes.text(column, row, f"{count[row, column]:.0f}", ha="center", va="center", color=ink)
    axes.set(title=title, xlabel="column", ylabel="row", xticks=range(W), yticks=range(H))
figure.suptitle("number of patches that see a pixel")
figure.tight_layout()
plt.show()

# %% [markdown]
# Keep the numbers in mind: on the way back each pixel gets a sum of exactly so many terms.
#
# ## A matrix applied to patches is a convolution
#
# A convolution has a weight of shape $(O, C, P, P)$ in published files: output channel, input channel, row, column. It
# slides over the map in steps of $s$ and takes one sum of products at each stop:
#
# $$y[b, h, w, o] = \text{bias}[o] + \sum_{c, i, j} \text{weight}[o, c, i, j]\; x[b,\, h s + i,\, w s + j,\, c] .$$
#
# The last factor is $\text{patches}[b, h, w, (c, i, j)]$. So the triple sum is a product of a row and a matrix, if the
# weight is flattened in the order of the patch: $(c, i, j)$, the channel slowest. That is why patches have that order.

# %%
x = rng.standard_normal((B, H, W, C))
weight, bias = rng.standard_normal((out, C, P, P)), rng.standard_normal(out)
rows, columns = H // P, W // P

convolved = np.zeros((B, rows, columns, out))
for b, h, w, o in np.ndindex(convolved.shape):
    convolved[b, h, w, o] = bias[o]
    for c, i, j in np.ndindex(C, P, P):
        convolved[b, h, w, o] += weight[o, c, i, j] * x[b, h * P + i, w * P + j, c]

matrix = weight.reshape(out, C * P * P).T  # (C*P*P, O)
tokens = patches_by_loops(x, P, stride=P) @ matrix + bias
channel_fastest = weight.transpose(0, 2, 3, 1).reshape(out, P * P * C).T  # the order (i, j, c)
wrong = patches_by_loops(x, P, stride=P) @ channel_fastest + bias
print(f"largest difference, channel slowest: {np.abs(tokens - convolved).max():.0e}")
print(f"largest difference, channel fastest: {np.abs(wrong - convolved).max():.2f}")
np.testing.assert_allclose(tokens, convolved, rtol=1e-12, atol=1e-12)
assert np.abs(wrong - convolved).max() > 0.1

# %% [markdown]
# The shapes of the wrong one are right, and a network trained from the start would learn with it. It only fails with
# weights that were learned in the other order.
#
# ## Backward
#
# Let `dy`, $(B, H', W', O)$, be the upstream gradient. The matrix is a linear layer (tutorial 1):
#
# $$\mathrm{d}\text{patches} = \mathrm{d}y\; \text{matrix}^\top, \qquad
# \mathrm{d}\text{matrix} = \sum_{b, h, w} \text{patches}[b, h, w]^\top\, \mathrm{d}y[b, h, w], \qquad
# \mathrm{d}\text{bias} = \sum_{b, h, w} \mathrm{d}y[b, h, w] .$$
#
# Cutting only copies numbers. A pixel that was copied into several patches reached the loss in several ways, so its
# gradient is the sum of theirs; a pixel that was copied nowhere gets zero:
#
# $$\mathrm{d}x[b, r, q, c] = \sum_{(h, i):\; h s + i = r}\;\; \sum_{(w, j):\; w s + j = q}
# \mathrm{d}\text{patches}[b, h, w, (c, i, j)] .$$


# %%
def put_back(dpatches, shape, size, stride, pad=0, add=True):
    """Give dx of `shape`; with add=False the last patch that saw a pixel wins, which is wrong."""
    dx = np.zeros(shape)
    _, height, width, channels = shape
    for b, h, w in np.ndindex(dpatches.shape[:3]):
        for position, (c, i, j) in enumerate(np.ndindex(channels, size, size)):
            row, column = h * stride + i - pad, w * stride + j - pad
            if 0 <= row < height and 0 <= column < width:
                before = dx[b, row, column, c] if add else 0.0
                dx[b, row, column, c] = before + dpatches[b, h, w, position]
    return dx


for (title, size, stride, pad), count in zip(ways, seen, strict=True):
    ones = np.ones_like(patches_by_loops(x, size, stride, pad))
    dx = put_back(ones, x.shape, size, stride, pad)
    print(f"{title:<27} a gradient of ones comes back as the counts above; zero at {int((count == 0).sum())} pixels")
    np.testing.assert_array_equal(dx[0, :, :, 0], count)

# %% [markdown]
# ## Check it, and see when a wrong one is caught
#
# We check cutting and matrix together, with the sum and with the planted mistake: `dx[...] = ...` where it should be
# `dx[...] += ...`.

# %%
for title, size, stride, pad in ways:
    kernel = rng.standard_normal((C * size * size, out))

    def forward(x, matrix, bias, size=size, stride=stride, pad=pad):
        patches = patches_by_loops(x, size, stride, pad)
        return patches @ matrix + bias, (patches, matrix, x.shape)

    for add in (True, False):

        def backward(dy, cache, size=size, stride=stride, pad=pad, add=add):
            patches, matrix, shape = cache
            dmatrix = sum(np.outer(patches[at], dy[at]) for at in np.ndindex(dy.shape[:3]))
            return put_back(dy @ matrix.T, shape, size, stride, pad, add), dmatrix, dy.sum(axis=(0, 1, 2))

        report = check_gradients(forward, backward, {"x": x, "matrix": kernel, "bias": bias}, method="complex")
        verdict = "pass" if report.passed else f"FAIL: {', '.join(report.failed)}"
        print(f"{title:<27} {'sum' if add else 'last one wins':<14} {verdict:<8} error {report.relative_error:.0e}")
        assert report.passed == (add or stride == size)

# %% [markdown]
# Where patches tile the map, the mistake is none: there is only one term to sum. A test that knows only tiling patches
# does not see it. Test with the hardest setting that the code allows.
#
# ## The library does the same
#
# [`patches.py`](../minifocal/functional/patches.py) loops only over $i$ and $j$: for one place within a patch it
# copies that pixel of all patches at once, by a slice with a step. Its way back runs over the same slices with `+=`.
# The cache holds sizes and no array, since a copy is undone without knowing what was copied.

# %%
for _, size, stride, pad in ways:
    patches, cache = patches_forward(x, size, stride, ((pad, pad), (pad, pad)))
    np.testing.assert_array_equal(patches, patches_by_loops(x, size, stride, pad))
    dpatches = rng.standard_normal(patches.shape)
    dx = put_back(dpatches, x.shape, size, stride, pad)
    np.testing.assert_allclose(patches_backward(dpatches, cache), dx, rtol=1e-12, atol=1e-14)

# %% [markdown]
# [`patch_embed.py`](../minifocal/layers/patch_embed.py) is the layer: patches, then `Linear`, then LayerNorm (tutorial
# 4). Its option `pad_to` adds zeros below and at the right until height and width are multiples of it, as one of the
# published implementations does, so that no pixel is left out: five rows then give three patches and not two.

# %%
layer = PatchEmbed(C, out, size=P, stride=P, norm=False, init=get_initializer("lecun", 0, "float64"))
layer.proj.weight.data[...], layer.proj.bias.data[...] = matrix, bias
y, cache = layer.forward(x)
np.testing.assert_allclose(y, convolved, rtol=1e-12, atol=1e-12)
dx = layer.backward(rng.standard_normal(y.shape), cache)
print(
    "without pad_to:", y.shape, "  dx of the last row and column:", np.abs(dx[:, -1]).max(), np.abs(dx[:, :, -1]).max()
)
np.testing.assert_array_equal(dx[:, -1], 0)

whole = PatchEmbed(C, out, size=P, stride=P, pad_to=P, init=get_initializer("lecun", 0, "float64"))
y, cache = whole.forward(x)
dx = whole.backward(rng.standard_normal(y.shape), cache)
print("with pad_to:   ", y.shape, "  smallest dx in the last row:", f"{np.abs(dx[:, -1]).min():.4f}")
assert y.shape == (B, rows + 1, columns + 1, out)
assert np.abs(dx[:, -1]).min() > 0
assert check_layer(whole, x).passed

# %% [markdown]
# ## Questions
#
# 1. The published stem has $P = s = 4$ for images of $224 \times 224$ pixels; another has $P = 7$, $s = 4$ and padding
#    2. How many tokens does each give, and how many times as much memory as the image do its patches take? What is
#    `patches_backward` to `patches_forward` in the first case?
# 2. Shift the image one pixel to the right. Do the tokens of a stem with stride 2 move along?
#
# ## Answers
#
# 1. Both give $56 \times 56$ tokens: $\lfloor (224 - 4) / 4 \rfloor + 1 = \lfloor (224 + 4 - 7) / 4 \rfloor + 1 = 56$.
#    Tiling patches hold each pixel once and take the same memory; the others take $7^2 / 4^2 \approx 3.06$ times as
#    much. Tiling patches are a permutation of the pixels, and `patches_backward` is its inverse: the transpose of a
#    permutation undoes it.
# 2. No. Every patch then holds other pixels, and the tokens become other tokens. They only move along with shifts by
#    multiples of the stride, by one token for each, and even then new tokens come in at the border.
