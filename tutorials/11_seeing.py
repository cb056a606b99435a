# %% [markdown]
# # 11. Seeing: gates, modulators and receptive fields
#
# *Before this:* tutorials 1 to 9. *Time:* 40 minutes.
#
# *Afterwards you can* take gates and modulators out of a cache and draw them over the image, measure which pixels a
# token depends on, and say what such pictures show and what they only seem to show.
#
# *Explains* the caches of [`minifocal/models/modulation.py`](../minifocal/models/modulation.py) and
# [`minifocal/models/block.py`](../minifocal/models/block.py).
#
# A forward pass gives a cache beside its result, which holds what the way back needs, and so most of what there is to
# see. In that of a whole network, `cache.layers[s]` is a stage, whose `features` are its last map; its
# `.blocks[b].modulation` holds `gates` $(B, H, W, L+1)$, `modulator` $(B, H, W, C)$ and `q`, of the same shape. To
# look, you only need these names.
#
# To judge a picture, one must know what there is to see. So these images are made, of $16 \times 16$ pixels: one of
# four glyphs (small shapes: a plus, a cross, a T, an L), of nine pixels each, at a random place, among up to twelve
# single pixels, the dots, that are just as bright. A single pixel does not tell glyph from dot; the label is the glyph.

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from scipy import ndimage

import minifocal as mf
from minifocal.data import Dataset, Standardize
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import Trainer

rng = np.random.default_rng(11)
NAMES = ("plus", "cross", "T", "L")
five = np.arange(5)
glyphs = np.zeros((4, 5, 5))
glyphs[0, 2], glyphs[0, :, 2] = 1, 1  # plus: the middle row and the middle column
glyphs[1, five, five], glyphs[1, five, 4 - five] = 1, 1  # cross: both diagonals
glyphs[2, 0], glyphs[2, :, 2] = 1, 1  # T: the first row and the middle column
glyphs[3, :, 0], glyphs[3, 4] = 1, 1  # L: the first column and the last row
assert (glyphs.sum(axis=(1, 2)) == 9).all()


def make_images(count):
    """Images with labels; and two masks, of the glyphs' and of the dots' pixels."""
    labels, glyph, dots = rng.integers(0, 4, count), np.zeros((count, 16, 16)), np.zeros((count, 16, 16))
    for b in range(count):
        top, left = rng.integers(0, 12, 2)
        glyph[b, top : top + 5, left : left + 5] = glyphs[labels[b]]
        dots[b].flat[rng.choice(256, 12, replace=False)] = 1
        dots[b, top : top + 5, left : left + 5] = 0
    pixels = 0.15 + 0.7 * (glyph + dots) + 0.1 * rng.standard_normal(glyph.shape)
    return Dataset(np.clip(pixels, 0, 1)[:, None].astype("float32"), labels, NAMES, max_value=1.0), glyph, dots


train, _, _ = make_images(2000)
test, glyph, dots = make_images(200)
standardize = Standardize.fit(train)

# %% [markdown]
# ## Train, and keep the network as it was before
#
# One stage of two blocks, two levels (kernels of 3 and 5) and the global one, on patches of $2 \times 2$ pixels: a
# grid of $8 \times 8$ tokens. Training is in float32. To look and to compare, both states are copied into networks
# in float64 with the operations that you read.


# %%
def in_float64(network):
    twin = mf.FocalNet(network.config, dtype="float64", ops="reference", init="zeros")
    for ours, theirs in zip(twin.parameters(), network.parameters(), strict=True):
        ours.data[...] = theirs.data
    return twin


shape = {"image_size": 16, "patch_size": 2, "in_channels": 1, "hidden_size": 32, "num_layers": 2, "focal_levels": 2}
network = mf.FocalNet.build(**shape, mlp_ratio=2.0, num_classes=4, modulation="focal", init="lecun")
networks = {"before": in_float64(network)}
Trainer(network, train, test, standardize, TrainConfig(epochs=12, lr=0.1, weight_decay=1e-3)).fit()
networks["after"] = in_float64(network)

images = standardize(test.images, test.max_value, "float64")
caches = {}
for when, twin in networks.items():
    logits, caches[when] = twin.forward(images)
    print(f"{when:<7} accuracy {(logits.argmax(axis=1) == test.labels).mean():.3f}")
assert (logits.argmax(axis=1) == test.labels).mean() > 0.6

# %% [markdown]
# ## A modulator by hand
#
# For one token: the contexts of all levels, each times its gate, added up, and $h$. Since $h$ is a linear map, with a
# weight $W_h$ of shape $(C, C)$, the modulator is also a sum of *shares*, one a level: $g_l\, \text{ctx}_l\, W_h$, and
# for the global level $g_{L+1}\, \text{ctx}_g\, W_h$. The bias of $h$ belongs to none.

# %%
b, i, j = 3, 5, 2  # image, row and column of a token
seen = caches["after"].layers[0].blocks[1].modulation
h = networks["after"].layers[0].blocks[1].modulation.h
L, C = seen.gates.shape[-1] - 1, seen.modulator.shape[-1]
contexts = [level.ctx[b, i, j] for level in seen.context.levels] + [seen.context.global_level.ctx_global[b, 0, 0]]
by_hand = h.bias.data.copy()
for level in range(L + 1):
    for c in range(C):
        by_hand += seen.gates[b, i, j, level] * contexts[level][c] * h.weight.data[c]
np.testing.assert_allclose(by_hand, seen.modulator[b, i, j], rtol=1e-11, atol=1e-13)
np.testing.assert_array_equal(seen.modulator, caches["after"].modulators[0][1])  # a shorter name for the same array


def shares(when, block):
    """Norm over channels of each level's share of the modulator, (B, H, W, L+1)."""
    seen = caches[when].layers[0].blocks[block].modulation
    weight = networks[when].layers[0].blocks[block].modulation.h.weight.data
    contexts = [level.ctx for level in seen.context.levels] + [seen.context.global_level.ctx_global]
    parts = [seen.gates[..., n : n + 1] * ctx @ weight for n, ctx in enumerate(contexts)]
    return np.stack([np.linalg.norm(part, axis=-1) for part in parts], axis=-1)


# %% [markdown]
# ## Over the image
#
# A map of tokens is coarser than the image. To lay it over the image, a pixel's value is interpolated between the four
# nearest token centres, along rows and along columns (*bilinear*). Token $i$ of a row covers $P$ pixels, counted from
# 0, and its centre lies at pixel $P i + (P-1)/2$; beyond the outermost centres the edge value stays.


# %%
def upsample(tokens, P):
    """(H, W) -> (P*H, P*W)."""
    H, W = tokens.shape
    pixels = np.zeros((P * H, P * W))
    for y in range(P * H):
        for x in range(P * W):
            v = min(max((y - (P - 1) / 2) / P, 0), H - 1)  # in tokens, from the centre of the first
            u = min(max((x - (P - 1) / 2) / P, 0), W - 1)
            i, j = min(int(v), H - 2), min(int(u), W - 2)
            upper = (1 - (u - j)) * tokens[i, j] + (u - j) * tokens[i, j + 1]
            lower = (1 - (u - j)) * tokens[i + 1, j] + (u - j) * tokens[i + 1, j + 1]
            pixels[y, x] = (1 - (v - i)) * upper + (v - i) * lower
    return pixels


gate = seen.gates[0, ..., 0]
np.testing.assert_allclose(upsample(gate, 2), ndimage.zoom(gate, 2, order=1, mode="nearest", grid_mode=True), rtol=1e-9)

chosen = [int(np.flatnonzero(test.labels == n)[0]) for n in range(3)]
figure, axes = plt.subplots(3, 5, figsize=(9.5, 6.2), layout="constrained")
limit = np.abs(seen.gates[chosen]).max()
norms = np.linalg.norm(seen.modulator, axis=-1)
for row, b in zip(axes, chosen, strict=True):
    row[0].imshow(test.images[b, 0], cmap="cividis")
    for level in range(L + 1):
        signed = row[1 + level].imshow(upsample(seen.gates[b, ..., level], 2), "RdBu_r", vmin=-limit, vmax=limit)
    row[4].imshow(upsample(norms[b], 2), "viridis", vmin=0, vmax=norms[b].max())
    row[4].set_xlabel(f"0 to {norms[b].max():.1f}")
    for axis in row:
        axis.contour(glyph[b], levels=[0.5], colors="black", linewidths=0.7)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(f"a {NAMES[test.labels[b]]}")
for axis, title in zip(axes[0], ("image", "gate, 3x3", "gate, 5x5", "gate, global", "|modulator|"), strict=True):
    axis.set_title(title)
figure.colorbar(signed, ax=axes[:, 1:4], orientation="horizontal", fraction=0.05)
figure.suptitle("second block, after training; black: outline of the glyph")
plt.show()

# %% [markdown]
# The modulator is a vector a token; drawn is its *norm* over channels. Its mean over channels would be near nothing
# wherever some are positive and others negative, however large.
#
# ## By number, beside two controls
#
# Three pictures prove little. Take all 200 images, and the mean of a number over the tokens that hold pixels of a
# glyph, over those that hold dots but no glyph, and over those that are empty. Two controls belong to it: the *dots*,
# which are as bright as the glyph, and the network *before* training.

# %%
# Axes 2 and 4 are the rows and columns of pixels within a token: a token holds a glyph if any of its pixels does.
holds_glyph = glyph.reshape(-1, 8, 2, 8, 2).max(axis=(2, 4)) > 0
holds_dots = dots.reshape(-1, 8, 2, 8, 2).max(axis=(2, 4)) > 0
groups = {"glyph": holds_glyph, "dots": holds_dots & ~holds_glyph, "empty": ~holds_dots & ~holds_glyph}
print(f"{'second block':<22}" + "".join(f"{when + ', ' + name:>15}" for when in networks for name in groups))
ratio = {}
for quantity in ("gate", "share"):
    for level, name in enumerate(("3x3", "5x5", "global")):
        line = f"{quantity + ' of ' + name:<22}"
        for when in networks:
            gates = caches[when].gates[0][1]
            values = (gates if quantity == "gate" else shares(when, 1))[..., level]
            line += "".join(f"{values[group].mean():15.2f}" for group in groups.values())
        print(line)
line = f"{'|modulator|':<22}"
for when in networks:
    norms = np.linalg.norm(caches[when].modulators[0][1], axis=-1)
    ratio[when] = norms[groups["glyph"]].mean() / norms[groups["dots"]].mean()
    line += "".join(f"{norms[group].mean():15.2f}" for group in groups.values())
print(f"{line}\n|modulator| of glyph / dots: " + ", ".join(f"{when} {value:.2f}" for when, value in ratio.items()))
assert ratio["after"] > 1.2 * ratio["before"]

# %% [markdown]
# What this shows: the trained network modulates the tokens of a glyph more strongly than those of dots as bright. It
# had to put several pixels together for that. Before training there is hardly any difference.
#
# What it does not show: that a certain level "looks at the object". Build the network with `seed=1`, 2 or 3, and the
# last ratio is above 1 again (2.2, 1.6 and 1.3 where this was written), but the gates are others, even in sign. Nor
# need they agree: gates are not bounded, and if all of them and the weight of $h$ change sign, the modulator is the
# same (question 1). And a gate of 2 does less on a small context than one of 0.5 on a context ten times as large. The
# shares of the global level are the smallest throughout; its gates are not.
#
# ## Whom a token depends on
#
# The *receptive field* of a token is all pixels that can change it: here, by the global level, every pixel. The
# *effective* receptive field says how much each does. Send a random upstream gradient to one token of the last map
# alone, and the backward pass gives the gradient of each pixel. Take magnitudes (signs differ from image to image and
# would cancel) and the mean over the images. The way back begins at `features` and goes through the blocks and the
# stem. Checked below, beside a wrong way back that leaves out the last block.

# %%
at = (4, 4)  # row and column of the token


def token_backward(dtoken, cache, network, blocks=2):
    """Give dimages (B, H, W, 1) from the gradient (B, C) of the token after so many blocks."""
    dx = np.zeros((len(dtoken), 8, 8, dtoken.shape[-1]))
    dx[:, at[0], at[1]] = dtoken
    for number in reversed(range(blocks)):
        dx = network.layers[0].blocks[number].backward(dx, cache.layers[0].blocks[number])
    return network.patch_embed.backward(dx, cache.patch_embed)


def token_forward(pixels):
    _, cache = networks["after"].forward(pixels.transpose(0, 3, 1, 2))
    return cache.layers[0].features[:, at[0], at[1]], cache


two = images[:2].transpose(0, 2, 3, 1).copy()
for blocks in (2, 1):
    backward = partial(token_backward, network=networks["after"], blocks=blocks)
    report = mf.check_gradients(token_forward, backward, {"pixels": two})
    print(
        f"back through {blocks} of 2 blocks: {'pass' if report.passed else 'FAIL'}, error {report.relative_error:.0e}"
    )
    assert report.passed == (blocks == 2)

# %%
figure, axes = plt.subplots(2, 2, figsize=(7, 6.4), layout="constrained")
dtoken = rng.choice([-1.0, 1.0], (len(images), C))
near = np.zeros((8, 8), bool)
near[3:6, 3:6] = True
for row, (when, cache) in zip(axes, caches.items(), strict=True):
    for axis, blocks in zip(row, (1, 2), strict=True):
        dimages = token_backward(dtoken, cache, networks[when], blocks)
        field = np.abs(dimages[..., 0]).mean(axis=0)
        field /= field.sum()
        by_token = field.reshape(8, 2, 8, 2).sum(axis=(1, 3))
        assert (field > 0).all()
        print(f"{when:<7}{blocks} blocks: own {by_token[at]:.2f}, 3x3 tokens {by_token[near].sum():.2f} of the whole")
        picture = axis.imshow(field, "viridis", norm=LogNorm(3e-5, 1e-1))
        axis.set(title=f"{when} training, {blocks} block{'s' * (blocks > 1)}", xlabel="pixel", ylabel="pixel")
figure.colorbar(picture, ax=axes, label="share of all pixels together", fraction=0.05)
figure.suptitle("effective receptive field of the token at row 4, column 4")
plt.show()

# %% [markdown]
# After one block there is a square of $7 \times 7$ tokens, that of the two kernels in a chain; beyond it there is only
# the global level, which reaches everywhere and weakly. Within the square the influence is far from even: half or more
# of the whole belongs to the token and its eight neighbours. A receptive field on paper says what could matter, not
# what does.
#
# ## Questions
#
# 1. In a block, negate the columns of `f` and of its bias that make the gates, and the weight of $h$. What changes in
#    the pictures, what in the logits?
# 2. In the first block, take the global level away (gates of zero). Which pixels does the token at (4, 4) then depend
#    on after one block?
#
# ## Answers
#
# 1. All gates change sign, and red becomes blue. Modulators and logits stay the same: $h$ gets the negated sum and
#    negates it back, and its bias is left alone. So the sign of a gate means nothing by itself.
# 2. On those of rows and columns 2 to 15: kernels of 3 and 5 reach $1 + 2 = 3$ tokens each way, so tokens 1 to 7. The
#    pixels of row and column 0 of the tokens have a gradient of exactly 0.
