# %% [markdown]
# # 9. The whole network: overfit 8 images, then train
#
# *Before this:* tutorials 1 to 8. *Time:* 45 minutes.
#
# *Afterwards you can* make a training step by hand, find out in seconds whether a network can learn at all, and read
# the curves of a run.
#
# *Explains* [`minifocal/models/focalnet.py`](../minifocal/models/focalnet.py),
# [`minifocal/training/step.py`](../minifocal/training/step.py) and
# [`minifocal/training/trainer.py`](../minifocal/training/trainer.py).
#
# A network is the parts of tutorials 1 to 8 in a row. $B$ images, channels first, become a map of tokens
# $(B, H, W, C)$; blocks change the map and keep its shape; a LayerNorm and the mean over all tokens make one vector of
# $C$ *features* an image; a linear map, the *head*, makes $N$ *logits* of it, one a class. The class with the largest
# logit is the network's answer. (`FocalNet.build` makes a single stage, and its stem has no LayerNorm.)
#
# The loss of an image with label $n$ is the *cross-entropy* $-\log p_n$ with the softmax
# $p_n = e^{\ell_n} / \sum_m e^{\ell_m}$ (tutorial 2) of its logits $\ell$; that of a batch is the mean over its images.

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np

import minifocal as mf
from minifocal.data import Standardize, digits_splits, stratified_split
from minifocal.functional.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minifocal.training.augment import Augmentation
from minifocal.training.step import load_batch
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import Trainer

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
rng = np.random.default_rng(9)
B, N = 6, 3
images, labels = rng.standard_normal((B, 1, 10, 10)), np.array([0, 2, 1, 1, 0, 2])
shape = {"image_size": 10, "patch_size": 2, "in_channels": 1, "hidden_size": 4, "num_layers": 2, "focal_levels": 1}
by_hand, library = (  # twins: the same seed, so the same weights; "reference": the functions that you have read
    mf.FocalNet.build(**shape, num_classes=N, modulation="focal", dtype="float64", ops="reference") for _ in range(2)
)
print(by_hand.summary())

# %% [markdown]
# ## Forward, part by part
#
# The last two parts are loops: the mean over the $T = HW$ tokens, and the head.

# %%
x, stem_cache = by_hand.patch_embed.forward(images.transpose(0, 2, 3, 1))  # channels last from here on
block_caches = []
for block in by_hand.layers[0].blocks:
    x, cache = block.forward(x)
    block_caches.append(cache)
normal, norm_cache = by_hand.norm.forward(x)
_, H, W, C = normal.shape

weight, bias = by_hand.head.weight.data, by_hand.head.bias.data
features, logits = np.zeros((B, C)), np.zeros((B, N))
for b in range(B):
    for c in range(C):
        features[b, c] = sum(normal[b, i, j, c] for i in range(H) for j in range(W)) / (H * W)
    for n in range(N):
        logits[b, n] = sum(features[b, c] * weight[c, n] for c in range(C)) + bias[n]
print("map", normal.shape, " features", features.shape, " logits", logits.shape)

logits_library, library_cache = library.forward(images)
np.testing.assert_allclose(logits, logits_library, rtol=1e-12, atol=1e-14)

# %% [markdown]
# ## The loss and its gradient
#
# $\log p_n = \ell_n - \log \sum_m e^{\ell_m}$, so $\partial(-\log p_n)/\partial \ell_m = p_m - [m = n]$: the
# probabilities, less 1 at the label. The mean over the batch divides by $B$, which is easily forgotten: all gradients
# are $B$ times too large then, and the network may learn all the same, with a smaller learning rate. With the logits of
# the batch in an array $(B, N)$, the gradient has the same shape:
#
# $$\mathrm{d}\ell_{bm} = \frac1B \bigl(p_{bm} - [m = \text{label}_b]\bigr)$$


# %%
def loss_forward(logits):
    """Mean cross-entropy, and the probabilities as cache."""
    p, loss = np.zeros_like(logits), np.zeros((), logits.dtype)
    for b in range(B):
        p[b] = np.exp(logits[b]) / np.exp(logits[b]).sum()  # the library subtracts the largest logit first
        loss = loss - np.log(p[b, labels[b]]) / B
    return loss, p


def loss_backward(dloss, p, divide_by=B):
    dlogits = p.copy()
    for b in range(B):
        dlogits[b, labels[b]] -= 1.0
    return dlogits * dloss / divide_by


for name, count in (("divided by B", B), ("not divided", 1)):
    backward = partial(loss_backward, divide_by=count)
    report = mf.check_gradients(loss_forward, backward, {"logits": logits}, method="complex", elementwise=True)
    print(f"{name:<13} {'pass' if report.passed else 'FAIL'}  relative error {report.relative_error:.0e}")
    assert report.passed == (count == B)

loss, p = loss_forward(logits)
dlogits = loss_backward(1.0, p)
loss_library, loss_cache = cross_entropy_forward(logits_library, labels)
np.testing.assert_allclose(loss, loss_library, rtol=1e-12)
np.testing.assert_allclose(dlogits, cross_entropy_backward(loss_cache), rtol=1e-12, atol=1e-15)

# %% [markdown]
# ## Backward: the same parts, last first
#
# Every part takes the upstream gradient of its output and its cache, adds to the gradients of its parameters, and
# gives the gradient of its input. The gradient of the mean is spread evenly: $1/T$ of it to each token.

# %%
by_hand.zero_grad()
dnormal = np.zeros_like(normal)
for b in range(B):
    for n in range(N):
        by_hand.head.bias.grad[n] += dlogits[b, n]
        for c in range(C):
            by_hand.head.weight.grad[c, n] += features[b, c] * dlogits[b, n]
            dnormal[b, :, :, c] += weight[c, n] * dlogits[b, n] / (H * W)
dx = by_hand.norm.backward(dnormal, norm_cache)
for block, cache in zip(reversed(by_hand.layers[0].blocks), reversed(block_caches), strict=True):
    dx = block.backward(dx, cache)
dimages = by_hand.patch_embed.backward(dx, stem_cache).transpose(0, 3, 1, 2)

library.zero_grad()
np.testing.assert_allclose(dimages, library.backward(dlogits, library_cache), rtol=1e-11, atol=1e-15)
theirs = dict(library.named_parameters())
for name, parameter in by_hand.named_parameters():
    np.testing.assert_allclose(parameter.grad, theirs[name].grad, rtol=1e-11, atol=1e-15, err_msg=name)
assert mf.check_layer(library, images).passed
library.backward(dlogits, library_cache)  # without zero_grad a second backward pass doubles what is there (tutorial 1)
np.testing.assert_allclose(library.head.weight.grad, 2 * by_hand.head.weight.grad, rtol=1e-11)

# %% [markdown]
# ## The update
#
# Stochastic gradient descent with Nesterov's momentum keeps a velocity $v$ for each parameter, zero at first. With
# the gradient $g$, the learning rate $\eta$ and the momentum $m$:
#
# $$v \leftarrow m v + g, \qquad \text{parameter} \leftarrow \text{parameter} - \eta\,(g + m v)$$
#
# *Weight decay* $\lambda$ first adds $\lambda$ times the parameter to $g$, but not for vectors (biases, norms).
# Zero the gradients, forward, loss, backward, update: that is all of `train_step`.

# %%
lr, momentum, decay = 0.1, 0.9, 5e-4
for _, parameter in by_hand.named_parameters():
    g = parameter.grad + (decay * parameter.data if parameter.data.ndim > 1 else 0.0)
    v = momentum * 0.0 + g  # the velocity was zero
    parameter.data[...] = parameter.data - lr * (g + momentum * v)

optimizer = mf.SGD(library, lr=lr, momentum=momentum, weight_decay=decay)
record = mf.train_step(library, optimizer, images, labels, None)
np.testing.assert_allclose(record.loss, loss, rtol=1e-12)
for name, parameter in by_hand.named_parameters():
    np.testing.assert_allclose(parameter.data, theirs[name].data, rtol=1e-11, atol=1e-14, err_msg=name)

# %% [markdown]
# ## First overfit 8 images
#
# Before any long run: take 8 images and make steps until the loss is almost 0. A network that cannot learn 8 images
# by heart will not learn a thousand, and this takes a moment. Here are two that differ in nothing but their
# initialisation. `"lecun"` draws the weights of a linear map with variance 1/(number of its inputs), so that signals
# keep their size. `"official"` draws them with standard deviation 0.02, as the published networks do (though not those
# of patches, depthwise kernels and $h$). Learning 8 images by heart is called *overfitting* them. The loss is in
# *nats*, since its logarithm is the natural one.

# %%
splits = digits_splits()
train, validation = stratified_split(splits.train, 144, seed=0)
standardize = Standardize.fit(train)
shape = {"image_size": 8, "patch_size": 2, "in_channels": 1, "hidden_size": 32, "num_layers": 3, "focal_levels": 2}
COLOURS = {"lecun": BLUE, "official": ORANGE}


def digits_network(init):
    return mf.FocalNet.build(**shape, num_classes=10, modulation="focal", init=init)


figure, axes = plt.subplots(figsize=(6, 3.4))
losses = {}
for init, colour in COLOURS.items():
    network = digits_network(init)
    pixels, digits = load_batch(network, train, standardize, train.images[:8], train.labels[:8])
    optimizer = mf.SGD(network, lr=0.02)
    losses[init] = [mf.train_step(network, optimizer, pixels, digits, None).loss for _ in range(100)]
    axes.plot(losses[init], color=colour, label=init)
axes.axhline(np.log(8), color=GREY, linestyle=":", label="ln 8")
axes.set(title=f"overfitting 8 digits: {digits}", xlabel="step", ylabel="loss (nats)")
axes.legend()
figure.tight_layout()
plt.show()
print({init: round(values[-1], 4) for init, values in losses.items()})
assert losses["lecun"][-1] < 0.05
assert losses["official"][-1] > 0.5

# %% [markdown]
# Both begin near $\ln 10 = 2.30$, what ten equal probabilities cost. The official one soon comes to $\ln 8 = 2.08$ and
# from there on it creeps. The 8 images have 8 different labels, and the head's bias alone can learn which labels occur:
# then it gives each of the 8 a probability of 1/8, at a loss of $\ln 8$, whatever the image. A loss that stays there is
# that of a network which does not see its input.
#
# Here the reason is size: compare the map after the stem with what the first modulation of a fresh network adds.

# %%
share = {}
for init in COLOURS:
    network = digits_network(init)
    x, block = network.patch_embed(pixels.transpose(0, 2, 3, 1)), network.layers[0].blocks[0]
    y, seen = block.modulation.forward(block.norm1(x))
    share[init] = y.std() / x.std()
    sizes = {"map": x, "query": seen.q, "modulator": seen.modulator, "added": y}
    print(f"{init:<9}", *(f"{name} {array.std():.4f}  " for name, array in sizes.items()))
assert share["lecun"] > 100 * share["official"]

# %% [markdown]
# (Printed is the standard deviation of each array.) At 32 channels, 0.02 is a ninth of the $1/\sqrt{32} = 0.18$ that
# keeps a signal's size, and a modulation multiplies a query by a modulator, both small, before one more small matrix.
# So the branches add next to nothing. What is left of the network is a mean over normalised patches, which does not
# know where a patch was. The gradients of the branches meet the same small factors, and plain SGD (stochastic gradient
# descent) does not find the way out in time. (The published networks are wider: at $C = 768$, $1/\sqrt C$ is 0.036. And
# they are trained by AdamW, an optimizer whose steps do not shrink with the gradient.)
#
# ## Then train
#
# `Trainer` adds order to what you have seen. In each *epoch*, one pass over the training images, it shuffles them and
# takes 64 at a time: it shifts half of these by up to a pixel (an *augmentation*), sets the learning rate (rising at
# first, then half a cosine down to zero), and calls `train_step`. At the end of the epoch it measures the validation
# images, which are never trained on.

# %%
EPOCHS = 10
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
runs = {}
for init, colour in COLOURS.items():
    config = TrainConfig(epochs=EPOCHS, lr=0.1, weight_decay=1e-3, augmentation=Augmentation(shift=1))
    runs[init] = Trainer(digits_network(init), train, validation, standardize, config)
    runs[init].fit()
    print(f"{init:<9} validation accuracy {runs[init].history[-1]['val_accuracy']:.3f}")
    for axis, what in zip(axes, ("loss", "accuracy"), strict=True):
        for part, line in (("train", "-"), ("val", "--")):
            values = [record[f"{part}_{what}"] for record in runs[init].history]
            axis.plot(range(1, EPOCHS + 1), values, line, color=colour, label=f"{init}, {part}")
for axis, what, guess in zip(axes, ("loss (nats)", "accuracy"), (np.log(10), 0.1), strict=True):
    axis.axhline(guess, color=GREY, linestyle=":", label="guessing")
    axis.set(title=what, xlabel="epoch", ylabel=what)
axes[0].legend(fontsize=8)
figure.tight_layout()
plt.show()
assert runs["lecun"].history[-1]["val_accuracy"] > 0.8
assert runs["official"].history[-1]["val_accuracy"] < 0.5

# %% [markdown]
# How to read such curves:
#
# - **Flat at $\ln N$**: it guesses. Overfit 8 images; look at sizes and gradients, as above.
# - **Training loss above validation loss**, as here: no cause for alarm. The training loss is measured while the
#   network still learns, on shifted images, and with *label smoothing* $s = 0.1$: the target is $1 - s + s/N$ for
#   the label and $s/N$ for the others. The validation loss has none of this.
# - **Training falls, validation rises**: it learns the images by heart. Fewer epochs, more augmentation or decay.
# - **Flat in the end**: means little, since the learning rate has come down to zero. Only a longer run tells.
# - **Leaps upward**, as in the first figure, **or NaN**: steps are too long. Lower the learning rate, let it rise more
#   slowly, or limit the norm of the gradients (`clip_norm=1.0` in `train_step` takes that leap away).
#
# ## What it still gets wrong
#
# The test images are looked at once, now.

# %%
network = runs["lecun"].model
pixels, digits = load_batch(network, splits.test, standardize, splits.test.images, splits.test.labels)
answers = network(pixels).argmax(axis=1)
wrong = np.flatnonzero(answers != digits)
print(f"test accuracy {100 * (1 - len(wrong) / len(digits)):.1f} % of {len(digits)} images")
assert len(wrong) < 0.2 * len(digits)
figure, axes = plt.subplots(2, 6, figsize=(8, 3.6))
for axis in axes.flat:
    axis.axis("off")
for axis, index in zip(axes.flat, wrong, strict=False):
    axis.imshow(splits.test.images[index, 0], cmap="cividis")
    axis.set_title(f"a {digits[index]}, said {answers[index]}", fontsize=9)
figure.suptitle("test images that it gets wrong (twelve at most)")
figure.tight_layout()
plt.show()

# %% [markdown]
# Ten epochs are a beginning. `minifocal train --modulation focal` trains a network of two stages for 36 epochs and gets
# more than 99 %; the label of the nearest training image is right for 98.9 %, so digits are easy. It draws the
# same curves, and keeps checkpoints from which a stopped run goes on.
#
# ## Questions
#
# 1. You shuffle the labels among the images. What do the loss of 8 images and the curves of a long run look like?
# 2. With label smoothing $s = 0.1$ and $N = 10$, how low can the training loss get?
#
# ## Answers
#
# 1. The 8 images are learned as before: any labels can be learned by heart, so that test shows that gradients work,
#    not that there is something to learn. In a long run the validation loss stays near $\ln 10$ at first and then
#    rises, while the training loss falls, but slowly. Ten epochs show two nearly flat lines.
# 2. To the entropy of the target: $-0.91 \ln 0.91 - 9 \cdot 0.01 \ln 0.01 = 0.500$, reached when the probabilities
#    equal the target. A network that was surer than that would pay more.
