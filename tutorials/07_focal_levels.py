# %% [markdown]
# # 7. Focal levels: chaining, gates, the global level
#
# *Before this:* tutorials 1, 2, 3 and 6. *Time:* 45 minutes.
#
# *Afterwards you can* write the context of a FocalNet and its way back, say from which places each level gets its
# gradient, and tell what a gate can choose between.
#
# *Explains* [`minifocal/functional/context.py`](../minifocal/functional/context.py) and
# [`minifocal/layers/focal_context.py`](../minifocal/layers/focal_context.py).
#
# A token needs to know what is around it: fine detail close by, a rough summary further away. A FocalNet makes $L$
# maps for that, the focal levels, each by a depthwise convolution (tutorial 6) of the one before it and a GELU
# (tutorial 3):
#
# $$\text{ctx}_l = \text{GELU}\bigl(\text{DWConv}_l(\text{ctx}_{l-1})\bigr), \qquad l = 1, \dots, L .$$
#
# $\text{ctx}_0$ and all levels have shape $(B, H, W, C)$; kernel $l$ has shape $(k_l, k_l, C)$. One more level
# sees the whole map, the global one: a mean over all tokens, then GELU.
#
# $$\text{ctx}_g[b, c] = \text{GELU}\Bigl(\frac{1}{HW} \sum_{h, w} \text{ctx}_L[b, h, w, c]\Bigr) .$$
#
# Each token then chooses. It has $L + 1$ gates, one number for each level, shared by all channels, the last for the
# global level. They come from a linear map, so they can be any real number, also negative:
#
# $$A[b, h, w, c] = \sum_{l=1}^{L} g_l[b, h, w]\; \text{ctx}_l[b, h, w, c]
# + g_{L+1}[b, h, w]\; \text{ctx}_g[b, c] .$$
#
# $A$ is the aggregate, of shape $(B, H, W, C)$. Gates are an array $(B, H, W, L+1)$, so $g_l$ is `gates[..., l - 1]`;
# $\text{ctx}_g$ has shape $(B, C)$.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np

from minifocal.functional.activations import gelu_backward, gelu_forward
from minifocal.functional.depthwise_conv import depthwise_conv_backward, depthwise_conv_forward
from minifocal.gradcheck import check_gradients
from minifocal.layers.focal_context import FocalContext
from minifocal.layers.initializers import get_initializer

rng = np.random.default_rng(7)
B, H, W, C, L = 1, 6, 8, 2, 3  # four gates a token; kernels of 3, 5 and 7: no two sizes are equal
ctx0, gates = rng.standard_normal((B, H, W, C)), rng.standard_normal((B, H, W, L + 1))
kernels = [rng.standard_normal((k, k, C)) / k for k in (3, 5, 7)]

# %% [markdown]
# ## Forward, level by level
#
# Convolution and GELU were built in earlier tutorials; here they are the library's. What is new is the chain, the
# gated sum and the mean. The caches of all steps are kept.


# %%
def gather_by_loops(ctx0, gates, *kernels):
    """Give the aggregate, and a cache: the contexts of all levels, the global one, and the caches of the steps."""
    contexts, conv_caches, gelu_caches = [ctx0], [], []
    for kernel in kernels:  # each level reads the one before it
        z, conv_cache = depthwise_conv_forward(contexts[-1], kernel)
        ctx, gelu_cache = gelu_forward(z)
        contexts.append(ctx)
        conv_caches.append(conv_cache)
        gelu_caches.append(gelu_cache)
    batch, height, width, channels = ctx0.shape
    mean = np.zeros((batch, channels), dtype=contexts[-1].dtype)
    for b, h, w, c in np.ndindex(ctx0.shape):
        mean[b, c] += contexts[-1][b, h, w, c] / (height * width)
    ctx_global, global_gelu = gelu_forward(mean)

    aggregate = np.zeros(ctx0.shape, dtype=np.result_type(mean, gates))
    for b, h, w, c in np.ndindex(ctx0.shape):
        for level in range(1, len(kernels) + 1):
            aggregate[b, h, w, c] += gates[b, h, w, level - 1] * contexts[level][b, h, w, c]
        aggregate[b, h, w, c] += gates[b, h, w, -1] * ctx_global[b, c]
    return aggregate, (contexts, ctx_global, gates, conv_caches, gelu_caches, global_gelu)


aggregate, cache = gather_by_loops(ctx0, gates, *kernels)
print("one token, (2, 5), channel 0:")
for level in range(1, L + 1):
    print(f"  gate {gates[0, 2, 5, level - 1]:6.3f} times ctx_{level} {cache[0][level][0, 2, 5, 0]:6.3f}")
print(f"  gate {gates[0, 2, 5, L]:6.3f} times ctx_g {cache[1][0, 0]:6.3f}, together {aggregate[0, 2, 5, 0]:6.3f}")

# %% [markdown]
# ## Look: what each level sees
#
# Two inputs on a map of $25 \times 25$ tokens of one channel: a single number 1 among zeros, and a simple picture of
# two discs and a thin line. All kernels are plain means here; learned ones would look for something. The mean of each
# map is printed, since every panel has a colour scale of its own.

# %%
size = 25
point, picture = np.zeros((size, size)), np.zeros((size, size))
point[12, 12] = 1.0
for row, column in np.ndindex(size, size):
    disc = (row - 15) ** 2 + (abs(column - 12) - 6) ** 2 <= 14
    picture[row, column] = 1.0 if disc or row == 4 else 0.0

means = [np.full((k, k, 1), 1.0 / k**2) for k in (3, 5, 7)]
figure, panels = plt.subplots(2, L + 2, figsize=(11, 4.8), layout="constrained")
for row, (name, values) in enumerate((("point", point), ("picture", picture))):
    _, (contexts, ctx_global, *_) = gather_by_loops(values[None, :, :, None], np.zeros((1, size, size, L + 1)), *means)
    maps = [ctx[0, :, :, 0] for ctx in contexts] + [np.full((size, size), ctx_global[0, 0])]
    for axes, title, level_map in zip(panels[row], ("ctx 0", "ctx 1", "ctx 2", "ctx 3", "global"), maps, strict=True):
        axes.imshow(level_map, cmap="viridis", vmin=0, vmax=level_map.max())
        axes.set(title=f"{name}: {title}", xlabel="column", ylabel="row", xticks=(0, 12, 24), yticks=(0, 12, 24))
    print(f"{name:<8} mean of ctx_0 to ctx_3 and global:", *(f"{level_map.mean():.5f}" for level_map in maps))
    assert all(wide.mean() < 0.8 * narrow.mean() for narrow, wide in pairwise(maps))
plt.show()

# %% [markdown]
# The discs are still discs in level 3; the line has melted. Each level also gets weaker, as GELU halves numbers
# near zero, and does so at every level. A network whose kernels start too small therefore starts with contexts
# that vanish, the widest first. The published code draws its linear weights with a standard deviation of 0.02, but
# its $3 \times 3$ kernels with 0.19: nine independent numbers of size 1 then give a sum of size
# $\sqrt 9 \cdot 0.19 = 0.57$, and not of 0.06.
#
# A gate chooses between those maps, token by token. Here the left half of the map asks for level 1, and the right
# half, which holds the same things, for five times level 3.

# %%
split_gates = np.zeros((1, size, size, L + 1))
split_gates[:, :, :12, 0] = 1.0
split_gates[:, :, 12:, 2] = 5.0
mixed, _ = gather_by_loops(picture[None, :, :, None], split_gates, *means)
figure, panels = plt.subplots(1, 4, figsize=(11.5, 2.7), layout="constrained")
shown = (
    ("ctx 0", picture),
    ("gate 1", split_gates[0, :, :, 0]),
    ("gate 3", split_gates[0, :, :, 2]),
    ("aggregate", mixed[0, :, :, 0]),
)
for axes, (title, values) in zip(panels, shown, strict=True):
    image = axes.imshow(values, cmap="viridis", vmin=0)
    figure.colorbar(image, ax=axes, shrink=0.6)
    axes.set(title=title, xlabel="column", ylabel="row", xticks=(0, 12, 24), yticks=(0, 12, 24))
plt.show()

# %% [markdown]
# ## Backward
#
# Let $\mathrm{d}A$ be the upstream gradient, that of the loss $\mathcal L$ with respect to the aggregate. A gate is
# shared by the channels of its token, so its gradient is a sum over them. The global context is shared by all tokens,
# so its gradient is a sum over these:
#
# $$\mathrm{d}g_l[b, h, w] = \sum_c \mathrm{d}A[b, h, w, c]\; \text{ctx}_l[b, h, w, c], \qquad
# \mathrm{d}\text{ctx}_g[b, c] = \sum_{h, w} g_{L+1}[b, h, w]\; \mathrm{d}A[b, h, w, c] .$$
#
# (For $g_{L+1}$ put $\text{ctx}_g$ in place of $\text{ctx}_l$.) Every level was used twice: in the sum, and as the
# input of what comes after it (level $L$: of the global level). So it gets a gradient from two places, and the way
# back needs the sum of both before it can go through the level's GELU and convolution:
#
# $$\mathrm{d}\text{ctx}_l = \underbrace{g_l\, \mathrm{d}A}_{\text{its own share}} +
# \underbrace{\text{back through level } l + 1}_{\text{DWConv and GELU}}, \qquad
# \mathrm{d}\text{ctx}_L = g_L\, \mathrm{d}A +
# \underbrace{\tfrac{1}{HW}\, \text{GELU}'(\text{mean})\, \mathrm{d}\text{ctx}_g}_{\text{the same for every token}} .$$
#
# ($g_l\, \mathrm{d}A$ multiplies all channels of a token by its gate.) $\text{ctx}_0$ has no gate: its gradient comes
# from level 1 alone.


# %%
lengths = {}  # of the two gradients that each level gets; filled on the way back, to be looked at


def backward_by_loops(daggregate, cache, share=True, chain=True, divide=True):
    """Give dctx0, dgates and the gradient of each kernel; three parts can be left out, to see what happens."""
    contexts, ctx_global, gates, conv_caches, gelu_caches, global_gelu = cache
    batch, height, width, channels = daggregate.shape
    dgates, dctx_global = np.zeros(gates.shape), np.zeros((batch, channels))
    for b, h, w, c in np.ndindex(daggregate.shape):
        for level in range(1, len(contexts)):
            dgates[b, h, w, level - 1] += daggregate[b, h, w, c] * contexts[level][b, h, w, c]
        dgates[b, h, w, -1] += daggregate[b, h, w, c] * ctx_global[b, c]
        dctx_global[b, c] += gates[b, h, w, -1] * daggregate[b, h, w, c]
    dmean = gelu_backward(dctx_global, global_gelu)
    dctx = np.zeros(daggregate.shape)
    for b, h, w, c in np.ndindex(daggregate.shape):
        dctx[b, h, w, c] = dmean[b, c] / (height * width if divide else 1)

    dkernels = []
    for level in range(len(contexts) - 1, 0, -1):
        from_after = dctx if chain or level == len(contexts) - 1 else np.zeros_like(dctx)
        own = np.zeros(daggregate.shape)
        for b, h, w, c in np.ndindex(daggregate.shape):
            own[b, h, w, c] = gates[b, h, w, level - 1] * daggregate[b, h, w, c] if share else 0.0
        lengths[level] = np.linalg.norm(own), np.linalg.norm(from_after)
        dz = gelu_backward(own + from_after, gelu_caches[level - 1])
        dctx, dkernel = depthwise_conv_backward(dz, conv_caches[level - 1])
        dkernels.insert(0, dkernel)
    return dctx, dgates, *dkernels


daggregate = rng.standard_normal(aggregate.shape)
dctx0, dgates, *dkernels = backward_by_loops(daggregate, cache)
for level, (own, from_after) in sorted(lengths.items()):
    after = "the global level" if level == L else f"level {level + 1}"
    print(f"dctx_{level}: own share {own:6.3f}   from {after:<17} {from_after:6.3f}   (lengths)")
    assert min(own, from_after) > 0

# %% [markdown]
# ## Check it, and see three wrong ones caught

# %%
arrays = {"ctx0": ctx0, "gates": gates, **{f"kernel {level}": kernel for level, kernel in enumerate(kernels, start=1)}}
for name, parts in (
    ("everything", {}),
    ("without the own share", {"share": False}),
    ("without the level after", {"chain": False}),
    ("without 1 / (H W)", {"divide": False}),
):
    report = check_gradients(
        gather_by_loops,
        lambda daggregate, cache, parts=parts: backward_by_loops(daggregate, cache, **parts),
        arrays,
        method="complex",
    )
    verdict = "pass" if report.passed else f"FAIL: {', '.join(report.failed)}"
    print(f"{name:<24} {verdict}")
    assert report.passed == (not parts)
    assert "gates" not in report.failed

# %% [markdown]
# The gates pass every time: their gradient stands before the chain. And without the level after, the kernel of
# level 3 passes as well: its gradient was complete before the mistake. Which arrays fail tells where in the chain
# to look.
#
# ## The library does the same
#
# [`context.py`](../minifocal/functional/context.py) makes one operation of a level: convolve, GELU, gate, add to
# the sum. It takes the aggregate so far and gives it back with its share added, so that fast kernels can do a
# level in one pass over memory. [`focal_context.py`](../minifocal/layers/focal_context.py) is the chain; its
# `backward` walks from the widest level to the first and hands `dctx` on, as above. Given no gates, it adds the
# levels as they are and has no global one: that is what the modulation called `"sigmoid_gate"` uses.

# %%
layer = FocalContext(C, (3, 5, 7), init=get_initializer("lecun", 0, "float64"))
for (conv,), kernel in zip(layer.focal_layers, kernels, strict=True):  # each level is stored as a tuple of one layer
    conv.weight.data[...] = kernel
aggregate_library, cache_library = layer.forward(ctx0, gates)
dctx0_library, dgates_library = layer.backward(daggregate, cache_library)
np.testing.assert_allclose(aggregate, aggregate_library, rtol=1e-12, atol=1e-13)
np.testing.assert_allclose(dctx0, dctx0_library, rtol=1e-12, atol=1e-13)
np.testing.assert_allclose(dgates, dgates_library, rtol=1e-12, atol=1e-13)
for (conv,), dkernel in zip(layer.focal_layers, dkernels, strict=True):
    np.testing.assert_allclose(dkernel, conv.weight.grad, rtol=1e-12, atol=1e-13)
plain_sum, _ = layer.forward(ctx0)
np.testing.assert_allclose(sum(cache[0][1:]), plain_sum, rtol=1e-12, atol=1e-13)

# %% [markdown]
# ## Questions
#
# 1. Let the gates of level 2 be zero at every token. Does kernel 2 still get a gradient? And kernel 3, if its
#    gates and those of the global level are zero?
# 2. Through the global level a token gets $1/(HW)$ of a gradient. Does that vanish on large maps?
#
# ## Answers
#
# 1. Kernel 2 does: level 3 reads level 2, so the loss still depends on it. Kernel 3 does not: nothing else reads
#    level 3 but its own share and the global level. Try it with `backward_by_loops`.
# 2. Not by itself. $\mathrm{d}\text{ctx}_g$ is a sum over all $HW$ tokens, and $1/(HW)$ of that is the mean of
#    $g_{L+1}\, \mathrm{d}A$ over the map; each token gets it, times the slope of the GELU. If tokens agree on what they
#    want, the mean stays; if their gradients have random signs, it shrinks as $1/\sqrt{HW}$.
