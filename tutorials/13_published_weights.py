# %% [markdown]
# # 13. Loading published weights
#
# *Before this:* tutorials 2, 5, 6, 8 and 9. *Time:* 45 minutes.
#
# *Afterwards you can* translate weights from one implementation to another, prove that two implementations are the
# same function, and say which mistakes a look at the accuracy would miss.
#
# *Explains* [`minifocal/interop/layouts.py`](../minifocal/interop/layouts.py),
# [`minifocal/interop/pretrained.py`](../minifocal/interop/pretrained.py) and
# [`minifocal/interop/torch_file.py`](../minifocal/interop/torch_file.py).
#
# Weights are published as a *state dict*: arrays by name. Names and shapes are those of the implementation that
# trained them, its *layout*. To have some without a download, a small network learns the digits (tutorial 9; every
# pixel twice as wide and high, for patches of 4 pixels) and is written to a file in the layout of the official code,
# that of the authors of FocalNet. Two more layouts occur below: `hf` is that of Hugging Face's transformers, and timm
# is a collection of image networks.

# %%
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import ndtr

import minifocal as mf
from minifocal.data import digits_splits
from minifocal.interop.torch_file import read_torch
from minifocal.safe_pickle import run_pickle

C = 12
one_stage = {"depths": (1,), "focal_levels": (2,), "focal_windows": (3,), "mlp_ratio": 1.5}
config = mf.FocalNetConfig(image_size=16, in_chans=1, num_classes=10, embed_dim=C, **one_stage)
splits = digits_splits()
double = np.ones((2, 2))  # np.kron puts this in place of every pixel; pixels lie between 0 and 16
train = (np.kron(splits.train.images / 16, double) - 0.3) / 0.4  # roughly mean 0 and variance 1; (1437, 1, 16, 16)
test = (np.kron(splits.test.images / 16, double) - 0.3) / 0.4
trained = mf.FocalNet(config, init="lecun", dtype="float64", ops="numpy")
optimizer = mf.SGD(trained, lr=0.1, momentum=0.9, nesterov=True)
rng = np.random.default_rng(13)
for _ in range(10):
    for batch in rng.permutation(len(train))[:1408].reshape(-1, 64):  # 22 batches of 64 images
        mf.train_step(trained, optimizer, train[batch], splits.train.labels[batch], None)
print(f"test accuracy {(trained(test).argmax(axis=1) == splits.test.labels).mean():.1%}")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "published.pth"
    mf.interop.save_pretrained(trained, path, layout="official")
    published = {name: np.array(tensor.read()) for name, tensor in read_torch(path)["model"].items()}

# %% [markdown]
# ## Names and shapes
#
# Each layout has its own names. The shapes differ too: PyTorch's linear map is `(out, in)` and computes $W x$, here it
# is `(in, out)` and the code reads `x @ weight`. A depthwise kernel is `(C, 1, k, k)` there and `(k, k, C)` here; the
# convolution of patches `(out, in, P, P)` there and, as in tutorial 5, a matrix of `(in * P * P, out)` here. `h` is a
# 1 × 1 convolution in all three, and timm makes every linear map but the classifier one.

# %%
for layout in ("minifocal", "official", "hf", "timm"):
    print(layout)
    state = list(mf.interop.state_dict(trained, layout=layout).items())
    for number in (0, 6, 9, 10, 22):  # patches, f, a depthwise kernel, h, classifier
        name, array = state[number]
        print(f"    {name:<72} {array.shape}")

# %% [markdown]
# `layouts.py` holds these names as one table, read in both directions. Now the translation by hand, number by number.
# Then the weights go into files of three layouts; `load_pretrained` finds out by itself which layout it reads.


# %%
def by_hand(name, stored):
    """Give an array of the official layout in this package's shape."""
    if stored.ndim == 1:  # biases, and the weights of LayerNorms
        return stored
    if "focal_layers" in name:  # (C, 1, k, k) to (k, k, C)
        ours = np.zeros((*stored.shape[2:], C))
        for i, j, c in np.ndindex(ours.shape):
            ours[i, j, c] = stored[c, 0, i, j]
        return ours
    if stored.ndim == 2:  # a linear map: as if of patches of 1 x 1
        stored = stored[:, :, None, None]
    outputs, inputs, P, _ = stored.shape
    ours = np.zeros((inputs * P * P, outputs))
    for o, c, i, j in np.ndindex(stored.shape):
        ours[(c * P + i) * P + j, o] = stored[o, c, i, j]
    return ours


model = mf.FocalNet(config, init="zeros", dtype="float64", ops="numpy")
mf.interop.load_state_dict(model, published, layout="official")
for name, parameter in model.named_parameters():
    np.testing.assert_array_equal(parameter.data, by_hand(name, published[name]))

with tempfile.TemporaryDirectory() as folder:
    for layout, file in (("official", "net.pth"), ("hf", "net"), ("timm", "net.safetensors")):
        mf.interop.save_pretrained(model, Path(folder) / file, layout=layout)
        for name, parameter in mf.interop.load_pretrained(Path(folder) / file, ops="numpy").named_parameters():
            np.testing.assert_array_equal(parameter.data, by_hand(name, published[name]))

# %% [markdown]
# ## Another implementation
#
# That the arrays fit proves little: `proj` is square, and fits transposed as well. The proof is another implementation
# that takes the published arrays as they are. Here is one, with maps channels-first as in PyTorch, $(B, C, H, W)$. The
# letters of `einsum` are the axes; it multiplies, and sums over those that the result lacks.


# %%
def norm(x, state, name):
    centred = x - x.mean(axis=1, keepdims=True)
    x_hat = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    return x_hat * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def linear(x, state, name):
    weight = state[f"{name}.weight"].reshape(-1, x.shape[1])
    return np.einsum("oc,bchw->bohw", weight, x) + state[f"{name}.bias"][:, None, None]


def gelu(x):
    return x * ndtr(x)  # x Φ(x)


def official_forward(images, state):
    B, Cin, height, width = images.shape
    patches = images.reshape(B, Cin, height // 4, 4, width // 4, 4)
    x = np.einsum("ocij,bchiwj->bohw", state["patch_embed.proj.weight"], patches)
    x = norm(x + state["patch_embed.proj.bias"][:, None, None], state, "patch_embed.norm")
    block = "layers.0.blocks.0"
    f = linear(norm(x, state, f"{block}.norm1"), state, f"{block}.modulation.f")
    q, ctx, gates = f[:, :C], f[:, C : 2 * C], f[:, 2 * C :, None]
    aggregate = 0.0
    for level in range(2):
        kernels = state[f"{block}.modulation.focal_layers.{level}.0.weight"][:, 0]  # (C, k, k)
        k = kernels.shape[1]
        margin = (k // 2, k // 2)
        padded = np.pad(ctx, ((0, 0), (0, 0), margin, margin))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(2, 3))  # (B, C, H, W, k, k)
        ctx = gelu(np.einsum("cij,bchwij->bchw", kernels, windows))
        aggregate = aggregate + gates[:, level] * ctx
    aggregate = aggregate + gates[:, 2] * gelu(ctx.mean(axis=(2, 3), keepdims=True))
    x = x + linear(q * linear(aggregate, state, f"{block}.modulation.h"), state, f"{block}.modulation.proj")
    x = x + linear(gelu(linear(norm(x, state, f"{block}.norm2"), state, f"{block}.mlp.fc1")), state, f"{block}.mlp.fc2")
    return norm(x, state, "norm").mean(axis=(2, 3)) @ state["head.weight"].T + state["head.bias"]


images = rng.standard_normal((3, 1, 20, 12))  # a grid of 5 x 3 tokens, so that H and W cannot be confused
np.testing.assert_allclose(official_forward(images, published), model(images), rtol=1e-11, atol=1e-11)

# %% [markdown]
# Same outputs; and the same gradients? `state_dict(..., grads=True)` gives the library's under official names, in
# official shapes. `check_gradients` takes them as the backward pass of the *other* implementation's forward pass.


# %%
def backward(dlogits, cache):
    model.zero_grad()
    dimages = model.backward(dlogits, model.forward(images)[1])
    grads = mf.interop.state_dict(model, layout="official", grads=True)
    return dimages, *(grads[name] for name in published)


def other_forward(images, *arrays):
    return official_forward(images, dict(zip(published, arrays, strict=True))), None


report = mf.check_gradients(other_forward, backward, {"images": images, **published}, method="complex")
print(f"{len(report.checks)} gradients, largest relative error {report.relative_error:.0e}")
assert report.passed

# %% [markdown]
# ## What mistakes do to the numbers
#
# Nine mistakes that no check of names and shapes notices, and for comparison the right network in float32. Each mistake
# is a pair: fields of the configuration that are changed, and what is done to arrays of the modulation. *Top-1
# agreement* is the share of test images whose largest logit is that of the right network. Differences of logits are
# relative to the largest logit; those of gradients to the length of each array's gradient, and the worst array counts.

# %%
KERNELS = ("focal_layers.0.0.weight", "focal_layers.1.0.weight")
BOTH_F, BOTH_H = ("f.weight", "f.bias"), ("h.weight", "h.bias")


def swap_q_and_ctx(w):
    return np.concatenate([w[C : 2 * C], w[:C], w[2 * C :]])


def global_gate_first(w):
    return np.concatenate([w[: 2 * C], np.roll(w[2 * C :], 1, axis=0)])


mistakes = {
    "proj not transposed": ({}, {"proj.weight": lambda w: w.T}),
    "h not transposed": ({}, {"h.weight": lambda w: w.swapaxes(0, 1)}),
    "q and ctx swapped": ({}, dict.fromkeys(BOTH_F, swap_q_and_ctx)),
    "global gate first": ({}, dict.fromkeys(BOTH_F, global_gate_first)),
    "kernels: rows for columns": ({}, dict.fromkeys(KERNELS, lambda w: w.swapaxes(2, 3))),
    "kernels: turned by half a turn": ({}, dict.fromkeys(KERNELS, lambda w: w[:, :, ::-1, ::-1])),
    "GELU of the MLP by tanh": ({"mlp_act": "gelu_pytorch_tanh"}, {}),
    "eps 1e-6 for 1e-5": ({"ln_eps": 1e-6}, {}),
    "h doubled, proj halved": ({}, dict.fromkeys(BOTH_H, lambda w: 2 * w) | {"proj.weight": lambda w: w / 2}),
}


def measure(fields, edits, dtype="float64"):
    """Give the logits of a network with changed fields and weights, and its gradients by official names."""
    net = mf.FocalNet(replace(config, **fields), init="zeros", dtype=dtype, ops="numpy")
    edited = {}
    for name, w in published.items():
        short = name.rpartition("modulation.")[2]  # "f.weight" and the like
        edited[name] = (edits[short](w) if short in edits else w).astype(dtype)
    mf.interop.load_state_dict(net, edited, layout="official")
    logits, cache = net.forward(test.astype(dtype))
    net.backward(mf.cross_entropy_backward(mf.cross_entropy_forward(logits, splits.test.labels)[1]), cache)
    return logits, mf.interop.state_dict(net, layout="official", grads=True)


logits, grads = measure({}, {})
table = {}
for label, (fields, edits) in {**mistakes, "none, in float32": ({}, {})}.items():
    found, found_grads = measure(fields, edits, "float32" if "float32" in label else "float64")
    agreement = (found.argmax(axis=1) == logits.argmax(axis=1)).mean()
    by_logits = abs(found - logits).max() / abs(logits).max()
    by_grads = max(np.linalg.norm(found_grads[n] - g) / np.linalg.norm(g) for n, g in grads.items())
    table[label] = agreement, by_logits, by_grads
    print(f"{label:<31} top-1 agreement {agreement:6.1%}, logits {by_logits:.0e}, gradients {by_grads:.0e}")
agreeing = [label for label, (agreement, _, _) in table.items() if agreement == 1]
assert agreeing == list(table)[6:]  # the last three mistakes, and float32

_, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
for column, colour, label in ((1, "#0072B2", "logits"), (2, "#D55E00", "gradients")):
    axes.plot([max(row[column], 1e-9) for row in table.values()], range(len(table)), "o", color=colour, label=label)
axes.axvline(1e-4, color="#666666", ls=":", label="a usual tolerance")
axes.set(xscale="log", xlabel="relative difference (left edge: none)", title="in brackets: top-1 agreement")
axes.set_yticks(range(len(table)), [f"{name} ({row[0]:.0%})" for name, row in table.items()])
axes.invert_yaxis()
axes.legend()
plt.show()

# %% [markdown]
# Three mistakes agree on every image, and their logits pass a usual tolerance of $10^{-4}$. In float64 a tolerance of
# $10^{-10}$ tells them from rounding, all but the last of the three: there the logits have the same bits, and only the
# gradients show that the weights are others. Hence: float64, random images, outputs *and* gradients.
#
# ## A file is not a program
#
# The names and shapes in a `.pth` file stand in a pickle, and a pickle is a program: it may name any function that
# Python can import, and have it called while the file is being read. So may a stranger's file of weights.
# `torch_file.py` has the instructions run by `safe_pickle.py`, gives it the few names that weights need, each with a
# stand-in of its own, and all others are refused. Below it is given none. (A `.safetensors` file has no program in it:
# names and shapes, then numbers.)


# %%
class Trap:
    def __reduce__(self):
        return print, ("this line was printed by a pickle that was read",)


pickle.loads(pickle.dumps(Trap()))
try:
    run_pickle(pickle.dumps(Trap()), names={})
except mf.InputError as error:
    refusal = str(error)
print(refusal)
assert "builtins.print" in refusal

# %% [markdown]
# ## Questions
#
# 1. An importer orders the rows of `patch_embed.proj` as (i, j, c) in place of (c, i, j). Why would nothing in this
#    tutorial notice? What would?
# 2. With `h` doubled and `proj` halved the network is the same function of the images. Is anything wrong with it?
#
# ## Answers
#
# 1. These images have one channel, and both orders are the same. With three, the shape still fits either order, and
#    only images sent through both implementations show it. A proof holds for the options that it was made with.
# 2. Not as long as it only predicts. But the gradient of `h` is halved and that of `proj` doubled: after one step of
#    SGD it is another function than the published network would have become.
