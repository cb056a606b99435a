# %% [markdown]
# # 8. Modulation, and a whole block
#
# *Before this:* tutorials 1, 2, 3, 4 and 7. *Time:* 60 minutes.
#
# *Afterwards you can* write focal modulation and its way back, assemble a block from it, and say what a LayerNorm
# before or after a branch does to the sizes of maps and gradients in a deep stack.
#
# *Explains* [`minifocal/models/modulation.py`](../minifocal/models/modulation.py) and
# [`minifocal/models/block.py`](../minifocal/models/block.py).
#
# Focal modulation asks two things about each token of $C$ channels in a map $x$: what is here, and what is around? The
# query $q$, a linear map of the token, answers the first; the aggregate $A$ of tutorial 7, gathered from
# $\text{ctx}_0$ and chosen by the gates, the second. A linear map called $h$ (not the row index) turns $A$ into the
# modulator $M$. The query is multiplied by it, channel by channel ($\odot$), and a last linear map, proj, mixes the
# channels of the product:
#
# $$q, \text{ctx}_0, \text{gates} = \text{split}(f(x)), \qquad M = h(A(\text{ctx}_0, \text{gates})), \qquad
# y = \text{proj}(q \odot M) .$$
#
# $x$, $q$, $\text{ctx}_0$, $A$, $M$ and $y$ have shape $(B, H, W, C)$, the gates $(B, H, W, L+1)$ for $L$ focal levels.
# One linear map $f$ makes all three parts, with a weight of shape $(C,\, C + C + L + 1)$: its first $C$ columns give
# the query, the next $C$ the context, the last $L + 1$ the gates. The weights of $h$ and proj are $(C, C)$. $f$, $h$
# and proj have a bias each.

# %%
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import numpy as np

from minifocal.gradcheck import check_gradients, check_layer
from minifocal.layers.initializers import get_initializer
from minifocal.models.block import FocalNetBlock
from minifocal.models.config import FocalNetConfig
from minifocal.models.modulation import FocalModulation

rng = np.random.default_rng(8)
B, H, W, C, L = 1, 5, 4, 3, 2  # kernels of 3 and 5
# One stage of one block (depths), L focal levels, the first kernel of 3 (focal_windows). Stage 0 is the first.
config = FocalNetConfig(image_size=16, embed_dim=C, depths=(1,), focal_levels=(L,), focal_windows=(3,))
modulation = FocalModulation(config, 0, init=get_initializer("lecun", 1, "float64"))
for parameter in modulation.parameters():  # no bias of zero, which would hide a mistake
    parameter.data[...] += rng.uniform(-0.5, 0.5, parameter.data.shape)
x = rng.standard_normal((B, H, W, C))

# %% [markdown]
# ## Forward
#
# Only the context looks at neighbours; it is the library's `FocalContext` here, built by hand in tutorial 7.


# %%
def linear(x, weight, bias):  # einsum: sum over i, the letter that the result lacks
    return np.einsum("bhwi,io->bhwo", x, weight) + bias


def modulate(x, f, f_bias, h, h_bias, proj, proj_bias):
    projected = linear(x, f, f_bias)
    q, ctx, gates = projected[..., :C], projected[..., C : 2 * C], projected[..., 2 * C :]
    aggregate, context_cache = modulation.context.forward(ctx, gates)
    modulator = linear(aggregate, h, h_bias)
    y = linear(q * modulator, proj, proj_bias)
    return y, (x, q, modulator, aggregate, context_cache, f, h, proj)


# f, h and proj, each with its bias, in this order; the kernels of the focal levels stay within modulation.context.
values = {name: parameter.data for name, parameter in modulation.named_parameters() if "focal" not in name}
y, (_, q, modulator, *_) = modulate(x, *values.values())
print("token (1, 2):  q", q[0, 1, 2].round(3), "  modulator", modulator[0, 1, 2].round(3))
np.testing.assert_allclose(y, modulation(x), rtol=1e-12, atol=1e-13)

# %% [markdown]
# ## Look: a product of three
#
# $q$, the gates and the context (but for its GELUs) are linear maps of $x$, and $q \odot h(\sum g\, \text{ctx})$
# multiplies them: a modulation is of degree three. Without biases, a map ten times as large gives an output about a
# thousand times as large. (About, since GELU is linear only far from 0.) No other layer of the network does that.

# %%
no_bias = {name: 0 * value if name.endswith("bias") else value for name, value in values.items()}
largest = np.zeros(5)
for power in range(5):
    y_large, _ = modulate(10.0**power * x, *no_bias.values())
    largest[power] = np.abs(y_large).max()
growth = np.diff(np.log10(largest))
print("power of ten gained by y for each power of ten in x:", growth.round(3))
np.testing.assert_allclose(growth[-1], 3.0, atol=0.01)

# %% [markdown]
# ## Backward
#
# Read the forward pass from its end. With `dy` upstream, $\mathrm{d}(q \odot M) = \mathrm{d}y\, \text{proj}^\top$, and
# a product gives each factor the gradient times the other factor:
#
# $$\mathrm{d}q = \mathrm{d}(q \odot M) \odot M, \qquad \mathrm{d}M = \mathrm{d}(q \odot M) \odot q .$$
#
# $\mathrm{d}M$ goes back through $h$ and the context, which gives $\mathrm{d}\text{ctx}_0$ and
# $\mathrm{d}\text{gates}$. $x$ reached $y$ in three ways, and their gradients have to be summed. As one matrix made
# all three, they are laid beside each other, in the order of the split; the product with $f^\top$ is the sum.


# %%
def linear_backward(dy, x, weight):
    dx, dweight = np.einsum("bhwo,io->bhwi", dy, weight), np.einsum("bhwi,bhwo->io", x, dy)
    return dx, dweight, np.einsum("bhwo->o", dy)


def modulate_backward(dy, cache, forget_query=False, other_order=False):
    """Give dx and the gradients of the six arrays; two mistakes can be made, to see what happens."""
    x, q, modulator, aggregate, context_cache, f, h, proj = cache
    dproduct, dproj, dproj_bias = linear_backward(dy, q * modulator, proj)
    dq, dmodulator = dproduct * modulator, dproduct if forget_query else dproduct * q
    daggregate, dh, dh_bias = linear_backward(dmodulator, aggregate, h)
    dctx, dgates = modulation.context.backward(daggregate, context_cache)
    dparts = (dctx, dq, dgates) if other_order else (dq, dctx, dgates)
    dx, df, df_bias = linear_backward(np.concatenate(dparts, axis=-1), x, f)
    return dx, df, df_bias, dh, dh_bias, dproj, dproj_bias


mistakes = {"right": {}, "without the factor q": {"forget_query": True}, "in another order": {"other_order": True}}
for title, mistake in mistakes.items():
    report = check_gradients(modulate, partial(modulate_backward, **mistake), {"x": x, **values}, method="complex")
    print(f"{title:<22}", "pass" if report.passed else f"FAIL: {', '.join(report.failed)}")
    assert report.passed == (not mistake)

# %% [markdown]
# What fails is what the way back reaches after the mistake, so what stands before it in the forward pass: with the
# factor $q$ missing, $h$ and all before it; with the order swapped, only $f$ and $x$. Now against the library:

# %%
dy = rng.standard_normal(y.shape)
dx, *gradients = modulate_backward(dy, modulate(x, *values.values())[1])
np.testing.assert_allclose(dx, modulation.backward(dy, modulation.forward(x)[1]), rtol=1e-11, atol=1e-12)
for name, parameter in modulation.named_parameters():
    if name in values:
        np.testing.assert_allclose(gradients.pop(0), parameter.grad, rtol=1e-11, atol=1e-12)

# %% [markdown]
# ## A block
#
# A block has two branches, a modulation, which looks around, and an MLP, which treats each token alone: a linear map
# to `mlp_ratio` times as many channels, GELU, and a linear map back. Each branch is added to what came in (a residual
# branch), and has a LayerNorm, which stands in one of two places:
#
# $$\text{pre-LN:}\quad y = x + \gamma \odot \text{branch}(\text{LN}(x)), \qquad\qquad
# \text{post-LN:}\quad y = x + \gamma \odot \text{LN}(\text{branch}(x)) .$$
#
# $\gamma$ is the layer scale (tutorial 0), a learned factor for each channel that starts at $10^{-4}$. Most published
# networks have pre-LN and no $\gamma$; the large ones have post-LN (`use_postln`) and $\gamma$ (`use_layerscale`). In
# many texts "post-LN" means $\text{LN}(x + \text{branch}(x))$, which is another thing: there $x$ itself goes through
# the norm. Here it passes by. On the way back the sum copies `dy`: one copy goes past the branch unchanged, the other
# through the branch, and the two results are added.


# %%
def residual(x, norm, branch, gamma, place):
    """place: where the norm stands: "pre", "post", or "none" for a stack that we shall want to see."""
    inner, norm_cache = norm.forward(x) if place == "pre" else (x, None)
    inner, branch_cache = branch.forward(inner)
    if place == "post":
        inner, norm_cache = norm.forward(inner)
    return x + (1.0 if gamma is None else gamma.data) * inner, (norm_cache, branch_cache, inner)


def residual_backward(dy, cache, norm, branch, gamma, place):
    norm_cache, branch_cache, inner = cache
    dinner = dy * (1.0 if gamma is None else gamma.data)
    if gamma is not None:
        gamma.grad += np.einsum("bhwc,bhwc->c", dy, inner)
    if place == "post":
        dinner = norm.backward(dinner, norm_cache)
    dinner = branch.backward(dinner, branch_cache)
    if place == "pre":
        dinner = norm.backward(dinner, norm_cache)
    return dy + dinner


def there_and_back(x, dy, branches, place):
    """Give x before each branch and at the end, and the gradients with respect to these, in the same order."""
    xs, dxs, caches = [x], [dy], []
    for branch in branches:
        y, cache = residual(xs[-1], *branch, place)
        xs.append(y)
        caches.append(cache)
    for branch, cache in zip(reversed(branches), reversed(caches), strict=True):
        dxs.insert(0, residual_backward(dxs[0], cache, *branch, place))
    return xs, dxs


def random_blocks(config, number):
    init = get_initializer("lecun", 2, "float64")
    blocks = [FocalNetBlock(config, 0, 0.0, init=init) for _ in range(number)]  # of stage 0, dropping no branch
    branches = []  # norm, branch, gamma
    for block in blocks:
        branches.append((block.norm1, block.modulation, block.gamma_1))
        branches.append((block.norm2, block.mlp, block.gamma_2))
    return blocks, branches


# %% [markdown]
# ## Look: 24 blocks
#
# Four stacks with the same random weights, the last one without any norm and of four blocks only. The root mean square
# (rms) of $x$ is drawn as it goes through the branches, two a block, and that of the gradient as it comes back.

# %%
draw = np.random.default_rng(3)
start, end = draw.standard_normal((2, 2, 6, 5, 16))  # x, and the upstream gradient at the other end: (2, 6, 5, 16)
rms = {}
figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
for name, colour, place, layer_scale, number in (
    ("pre-LN", "#0072B2", "pre", False, 24),
    ("post-LN", "#D55E00", "post", False, 24),
    ("post-LN, layer scale", "#009E73", "post", True, 24),
    ("no norm", "#666666", "none", False, 4),
):
    _, branches = random_blocks(replace(config, embed_dim=16, use_layerscale=layer_scale), number)
    for axes, arrays in zip(panels, there_and_back(start, end, branches, place), strict=True):
        sizes = [np.sqrt(np.mean(array**2)) for array in arrays]
        axes.semilogy(sizes, color=colour, label=name)
        rms[name] = (*rms.get(name, ()), sizes[0], sizes[-1])  # two of x, then two of dx
    x_first, x_last, dx_first, dx_last = rms[name]
    print(f"{name:<21} x from {x_first:.2f} to {x_last:<8.3g} dx from {dx_last:.2f} (at the end) to {dx_first:.3g}")
panels[0].set(title="forward", xlabel="branch", ylabel="rms of x", ylim=(0.5, 2e3))
panels[1].set(title="backward: read from right to left", xlabel="branch", ylabel="rms of dx", ylim=(0.5, 2e3))
panels[0].legend()
plt.show()
assert rms["no norm"][2] > 1e3 > rms["post-LN"][2] > 2 * rms["pre-LN"][2] > 10
np.testing.assert_allclose(rms["post-LN"][1], np.sqrt(1 + 2 * 24), rtol=0.2)
np.testing.assert_allclose(rms["post-LN, layer scale"][2:], 1.0, rtol=0.05)

# %% [markdown]
# Without a norm, degree three lets $x$ explode once it is larger than 1; the steps are the modulations.
#
# With a norm, each of the 48 branches adds a little. With post-LN what it adds has rms 1, since it comes from a norm.
# Vectors that have nothing in common add up by their squares: $\sqrt{1 + 48} = 7$ in all, and 6.5 is found. With pre-LN
# the branches add less.
#
# Both gradients grow most in the first blocks, where $x$ is smallest. With pre-LN the norm multiplies a gradient by the
# reciprocal size of $x$ (tutorial 4). With post-LN it multiplies by the reciprocal size of the branch's output. For a
# modulation that output goes as the cube of $x$, and its slope as the square; their quotient is again of the size of
# $1/x$. Small weights do not lessen it: the norm takes their size away. Layer scale does lessen it: what every branch
# adds, and what comes back through it, starts $10^4$ times smaller.
#
# ## The library does the same
#
# [`block.py`](../minifocal/models/block.py) goes branch by branch too, and can leave out whole branches at random in
# training (drop path). Output, `dx` and all parameters' gradients are compared, and the library's block is checked.

# %%
for place in ("pre", "post"):
    (block,), branches = random_blocks(replace(config, use_postln=place == "post", use_layerscale=True), 1)
    for parameter in block.parameters():
        parameter.data[...] += rng.uniform(-0.5, 0.5, parameter.data.shape)
    dy = rng.standard_normal(x.shape)
    (*_, y), (dx, *_) = there_and_back(x, dy, branches, place)
    gradients = [parameter.grad.copy() for parameter in block.parameters()]
    block.zero_grad()
    y_library, cache = block.forward(x)
    np.testing.assert_allclose(y, y_library, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(dx, block.backward(dy, cache), rtol=1e-11, atol=1e-12)
    for gradient, parameter in zip(gradients, block.parameters(), strict=True):
        np.testing.assert_allclose(gradient, parameter.grad, rtol=1e-11, atol=1e-12)
    assert check_layer(block, x, method="complex", tolerance=1e-12).passed
    print(f"{place}-LN: y, dx and the gradients of {len(gradients)} parameters are equal, and pass check_layer")

# %% [markdown]
# ## Questions
#
# 1. Why can $h$ and proj, both linear, not be merged into one matrix? Can anything be moved from one to the other?
# 2. With $\gamma = 10^{-4}$, which gradients of a branch are small at the start, and is that of $\gamma$ among them?
#
# ## Answers
#
# 1. The query stands between them, another factor for every token and channel. Only a factor for each channel can be
#    moved: multiply column $c$ of $h$ and its bias by 2 and row $c$ of proj by 1/2, and $y$ stays the same.
# 2. All within the branch, and those of its norm, carry the factor $\gamma$. That of $\gamma$ does not: it is the sum
#    over tokens of $\mathrm{d}y$ times what $\gamma$ multiplies. In plain gradient descent $\gamma$ moves first.
