# %% [markdown]
# # 10. Three modulations under one budget
#
# *Before this:* tutorials 1 to 9. *Time:* 45 minutes.
#
# *Afterwards you can* say what a description promises and what its code does, compare three networks fairly, and
# say what the outcome does not show.
#
# *Explains* [`minifocal/models/modulation.py`](../minifocal/models/modulation.py),
# [`minifocal/functional/box_mean.py`](../minifocal/functional/box_mean.py) and
# [`minifocal/models/complexity.py`](../minifocal/models/complexity.py).
#
# Three modulations go by the name FocalNet. All multiply a query $q$ by gated context, then project; $x$ is the map
# $(B, H, W, C)$ that comes in, after the block's LayerNorm. Linear maps have biases, depthwise kernels none. Two of the
# three come from Edifice, a library of networks for the language Elixir; it calls a linear map Dense.
#
# - **`"focal"`**, published (tutorials 7 and 8):
#   $\text{ctx}_l = \mathrm{GELU}(\mathrm{DWConv}_l(\text{ctx}_{l-1}))$ in a chain, and
#   $q \odot h(\sum_l g_l\, \text{ctx}_l + g_{L+1}\, \text{ctx}_g)$. A gate is one number for each level and token, not
#   bounded.
# - **`"sigmoid_gate"`**, the page of Edifice's `Vision.FocalNet` taken at its word. The page says "hierarchical
#   depthwise convolutions and gated aggregation", a `focal_kernel` as "base kernel size for focal convolutions", and
#   `ctx += gelu(conv_l)`, `gate = sigmoid(Dense(x))`, `out = q * gate * ctx`. So: the same chain, with a Dense of $x$
#   as $\text{ctx}_0$. But the context is the plain sum $\sum_l \text{ctx}_l$; each token has one sigmoid gate a channel
#   for all of it; and there is no global level and no $h$. What the page leaves open is filled in as published: two
#   dimensions, kernels that grow by 2, a Dense before the chain and one at the end.
# - **`"box_mean"`**, what the code of Edifice 0.2 does. Its query and gate are the page's. Its levels are not. With a
#   linear map for each level, $W_l$ of shape $(C, C)$ and $b_l$ of shape $(C,)$, and $A_0(z) = z$:
#
# $$\mathrm{ctx} = \sum_{l=0}^{L-1} A_l\bigl(\mathrm{GELU}(x W_l + b_l)\bigr), \qquad
# A_l(z)_t = \frac1{k_l} \sum_{i=0}^{k_l - 1} z_{t + i - \lfloor (k_l - 1)/2 \rfloor}, \qquad
# k_l = \texttt{focal\_kernel} \cdot (l + 1) \quad \text{for } l \ge 1 .$$
#
# No kernel is learned: all $A_l$ but the first are plain means. The levels are not hierarchical: each begins with $x$.
# And $t$ counts tokens row by row, so that a window runs along a row and on into the next one, and never down a column.
# Tokens before the first and after the last count as zero, and the divisor stays $k_l$. (Like the others, the code ends
# with a Dense; the page does not show it.)

# %%
import functools
import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from scipy import stats

import minifocal as mf
from minifocal.data import Standardize, digits_splits, nearest_neighbour_accuracy, shapes_splits, stratified_split
from minifocal.files import write_bytes
from minifocal.functional.box_mean import box_mean_backward, box_mean_forward
from minifocal.models.complexity import multiply_adds
from minifocal.training.augment import Augmentation
from minifocal.training.step import evaluate
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import Trainer

LONG = False  # True repeats all recorded runs and writes them anew: 96 networks
COLOURS = {"focal": "#0072B2", "sigmoid_gate": "#D55E00", "box_mean": "#009E73"}
rng = np.random.default_rng(10)

# %% [markdown]
# ## The box mean by hand, and its way back
#
# Forward, token $t$ collects from its window of $k_l$ tokens (`width`). Backward, it gives its gradient to the same
# tokens. It is tempting to collect `dy` with the window of the forward pass instead. For an odd width that is right,
# since the window is symmetric. For an even one there is one token more on the right, and on the way back it must be
# on the left.

# %%
T, C = 7, 2


def tokens_of_window(t, width):
    first = t - (width - 1) // 2
    return [s for s in range(first, first + width) if 0 <= s < T]


def mean_forward(x, width):
    y = np.zeros_like(x)
    for t in range(T):
        for s in tokens_of_window(t, width):
            y[t] += x[s] / width
    return y, width


def mean_backward(dy, width):
    dx = np.zeros_like(dy)
    for t in range(T):
        for s in tokens_of_window(t, width):
            dx[s] += dy[t] / width
    return dx


x, dy = rng.standard_normal((T, C)), rng.standard_normal((T, C))
for width in (3, 6):
    for name, backward in (("gives", mean_backward), ("collects", lambda dy, width: mean_forward(dy, width)[0])):
        forward = functools.partial(mean_forward, width=width)
        passed = mf.check_gradients(forward, backward, {"x": x}, elementwise=True, method="complex").passed
        print(f"width {width}, {name:<9}{'pass' if passed else 'FAIL'}")
        assert passed == (name == "gives" or width % 2 == 1)
    y_library, cache = box_mean_forward(x.reshape(1, 1, T, C), width)
    np.testing.assert_allclose(mean_forward(x, width)[0], y_library[0, 0], rtol=1e-12, atol=1e-15)
    dx_library = box_mean_backward(dy.reshape(1, 1, T, C), cache)[0, 0]
    np.testing.assert_allclose(mean_backward(dy, width), dx_library, rtol=1e-12, atol=1e-15)

# %% [markdown]
# ## Look: whom one token sees
#
# One modulation of each kind, two levels, on a grid of $8 \times 8$ tokens. Send an upstream gradient to the token in
# row 3, column 6 alone: `dx` shows the tokens that its output depends on, and how much.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.4))
seen = {}
for axis, name in zip(axes, COLOURS, strict=True):
    network = mf.FocalNet.build(
        image_size=8, patch_size=1, hidden_size=5, num_layers=1, focal_levels=2, modulation=name, dtype="float64"
    )
    modulation = network.layers[0].blocks[0].modulation
    _, cache = modulation.forward(rng.standard_normal((1, 8, 8, 5)))
    dy = np.zeros((1, 8, 8, 5))
    dy[0, 3, 6] = rng.standard_normal(5)
    size = np.linalg.norm(modulation.backward(dy, cache)[0], axis=-1)
    seen[name] = size > 0
    image = axis.imshow(np.where(seen[name], size, np.nan), cmap="viridis", norm=LogNorm(1e-3 * size.max(), size.max()))
    axis.set(title=f"{name}: {seen[name].sum()} tokens", xlabel="column")
    figure.colorbar(image, ax=axis, fraction=0.046)
axes[0].set_ylabel("row")
figure.suptitle("norm of dx, for a gradient at row 3, column 6 (white: exactly 0)")
figure.tight_layout()
plt.show()
assert seen["focal"].all()
assert seen["sigmoid_gate"].sum() == 7 * 5  # kernels of 3 and 5 in a chain: 7 x 7, less what the edge cuts off
assert set(np.flatnonzero(seen["box_mean"])) == set(range(28, 34))  # six tokens, two of them at the start of row 4

# %% [markdown]
# ## One budget
#
# A comparison says something about the modulation only if nothing else differs. All networks have two stages of two
# blocks, with two focal levels each; the widths of the MLPs even out the parameters. Images, epochs, batches, schedule,
# augmentation and decay are the same. The learning rate is *not*: what suits one modulation may hurt another, so each
# gets the best of the same four, found on validation images with two seeds of their own. Test images are looked at
# with the rate chosen, by seeds 0 to 7. Had the rates been chosen on test images, the winner's lead would be luck in
# part.

# %%
RATES, CHOOSING_SEEDS, TEST_SEEDS = (0.025, 0.05, 0.1, 0.2), (100, 101), tuple(range(8))
NETWORKS = {
    "digits": {"image_size": 8, "patch_size": 1, "in_chans": 1, "num_classes": 10, "embed_dim": 16},
    "shapes": {"image_size": 32, "patch_size": 4, "in_chans": 3, "num_classes": 4, "embed_dim": 32},
}
MLP_HIDDEN = {  # channels inside the MLPs of the first stage; the second has twice as many
    "digits": {"focal": 32, "sigmoid_gate": 33, "box_mean": 35},
    "shapes": {"focal": 64, "sigmoid_gate": 65, "box_mean": 59},
}
TRAINING = {
    "digits": TrainConfig(epochs=30, weight_decay=1e-3, augmentation=Augmentation(shift=1)),
    "shapes": TrainConfig(epochs=30, weight_decay=1e-3, augmentation=Augmentation(shift=2, flip=True)),
}


def build(data, modulation, seed):
    config = mf.FocalNetConfig(
        **NETWORKS[data],
        depths=(2, 2),
        mlp_ratio=MLP_HIDDEN[data][modulation] / NETWORKS[data]["embed_dim"],
        drop_path_rate=0.05,
        focal_levels=(2, 2),
        focal_windows=(3, 3),
        modulation=modulation,
    )
    return mf.FocalNet(config, seed=seed, init="lecun")


for data in NETWORKS:
    networks = {name: build(data, name, seed=0) for name in COLOURS}
    counts = {name: network.count_parameters() for name, network in networks.items()}
    for name, network in networks.items():
        print(f"{data}  {name:<13}{counts[name]:>8,} parameters {sum(multiply_adds(network.config).values()):>10,}")
    assert max(counts.values()) < 1.02 * min(counts.values())

# %% [markdown]
# The last column counts multiply-adds of an image (`network.summary()` lists them by layer): they come out even, too,
# within 2 %.
#
# The *shapes* are made on the spot: coloured circles, squares, triangles and crosses over clutter that is cut from
# edges of the same shapes. A single patch does not tell; only how edges go on around a shape does.


# %%
@functools.cache
def images(data):
    """Training, validation and test images; a fifth of what there is to train on goes to validation."""
    splits = digits_splits() if data == "digits" else shapes_splits(train=3000, test=2000)
    return *stratified_split(splits.train, len(splits.train) // 5, seed=0), splits.test


def run(data, modulation, lr, seed, measured_on, epochs=None):
    """Train one network and measure it on "validation" or "test" images: one line of the record."""
    train, validation, test = images(data)
    training = replace(TRAINING[data], lr=lr, seed=seed)
    training = replace(training, epochs=epochs or training.epochs)
    network, standardize = build(data, modulation, seed), Standardize.fit(train)
    Trainer(network, train, validation, standardize, training).fit()
    accuracy = evaluate(network, validation if measured_on == "validation" else test, standardize).accuracy
    names = ("dataset", "modulation", "lr", "seed", "epochs", "parameters", "measured_on", "accuracy")
    values = (data, modulation, lr, seed, training.epochs, network.count_parameters(), measured_on, accuracy)
    return dict(zip(names, values, strict=True))


def accuracies(runs, **wanted):
    """Give the accuracies of the runs in which everything wanted is so."""
    return np.array([run["accuracy"] for run in runs if all(run[key] == value for key, value in wanted.items())])


def best_rate(runs, data, modulation):
    wanted = {"dataset": data, "modulation": modulation, "measured_on": "validation"}
    return max(RATES, key=lambda lr: accuracies(runs, **wanted, lr=lr).mean())


def record_path():
    """Find ablation.json: in the folder `data` beside the tutorials, or beside a notebook that stands alone."""
    here = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
    for folder in (here / "data", here.parent / "data", here):
        if (folder / "ablation.json").exists():
            return folder / "ablation.json"
    raise FileNotFoundError("put tutorials/data/ablation.json of the repository beside this notebook")


if LONG:
    from tqdm import tqdm

    runs, baselines = [], {}
    plan = [(data, modulation) for data in NETWORKS for modulation in COLOURS]
    with tqdm(total=len(plan) * (len(RATES) * len(CHOOSING_SEEDS) + len(TEST_SEEDS)), unit=" runs") as bar:
        for data, modulation in plan:
            train, _, test = images(data)
            baselines[data] = nearest_neighbour_accuracy(train, test)
            for lr in RATES:
                for seed in CHOOSING_SEEDS:
                    runs.append(run(data, modulation, lr, seed, "validation"))
                    bar.update()
            for seed in TEST_SEEDS:
                runs.append(run(data, modulation, best_rate(runs, data, modulation), seed, "test"))
                bar.update()
    record = {"numpy": np.__version__, "nearest_neighbour": baselines, "runs": runs}
    write_bytes(record_path(), json.dumps(record, indent=1).encode())

# %% [markdown]
# ## A short one, live
#
# The same code with eight epochs and one seed, on the digits. This shows that all three learn. It ranks nothing.

# %%
for modulation in COLOURS:
    short = run("digits", modulation, lr=0.1, seed=0, measured_on="test", epochs=8)
    print(f"{modulation:<13} {100 * short['accuracy']:.1f} % of the test images after 8 epochs, chance 10 %")
    assert short["accuracy"] > 0.3

# %% [markdown]
# ## The long one, recorded
#
# `ablation.json` has every run. First see that it is of these networks, and that the rates were chosen as promised.

# %%
record = json.loads(record_path().read_text())
runs = record["runs"]
print(f"{len(runs)} runs, NumPy {record['numpy']}; validation accuracy in % by learning rate, mean of two seeds")
print(" " * 22 + "".join(f"{lr:>8}" for lr in RATES))
for data in NETWORKS:
    for name in COLOURS:
        wanted = {"dataset": data, "modulation": name}
        rows = [accuracies(runs, **wanted, measured_on="validation", lr=lr) for lr in RATES]
        best = best_rate(runs, data, name)
        print(f"{data:<8} {name:<13}" + "".join(f"{100 * row.mean():8.1f}" for row in rows) + f"   {best} chosen")
        assert all(len(row) == len(CHOOSING_SEEDS) for row in rows)
        assert len(accuracies(runs, **wanted, measured_on="test", lr=best)) == len(TEST_SEEDS)
        parameters = build(data, name, 0).count_parameters()
        same = accuracies(runs, **wanted, parameters=parameters, epochs=TRAINING[data].epochs)
        assert len(same) == len(accuracies(runs, **wanted))
train, _, test = images("digits")
assert record["nearest_neighbour"]["digits"] == nearest_neighbour_accuracy(train, test)

# %% [markdown]
# Then the outcome. Error bars are 95 % intervals of the mean over seeds: with the standard deviation $s$ of $n = 8$
# runs (divisor $n - 1$), $\pm\, t\, s / \sqrt n$, where $t = 2.36$ is the 97.5 % point of Student's distribution with
# $n - 1$ degrees of freedom. Differences of two means have intervals of their own (Welch's, for unequal spreads): one
# that does not contain zero says that the two means differ.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.8))
n = len(TEST_SEEDS)
outcome = {data: {} for data in NETWORKS}
for axis, data in zip(axes, NETWORKS, strict=True):
    for x, name in enumerate(COLOURS):
        values = outcome[data][name] = 100 * accuracies(runs, dataset=data, modulation=name, measured_on="test")
        deviation = values.std(ddof=1)
        half = stats.t.ppf(0.975, n - 1) * deviation / np.sqrt(n)
        axis.plot(x + np.linspace(-0.12, 0.12, n), values, "o", color=COLOURS[name], markersize=4, alpha=0.6)
        axis.errorbar(x + 0.25, values.mean(), half, color=COLOURS[name], marker="s", capsize=4)
        print(
            f"{data}  {name:<13} {values.mean():5.1f} ± {half:4.1f}   standard deviation {deviation:4.1f}   "
            f"median {np.median(values):5.1f}   worst {values.min():5.1f}"
        )
    nearest = 100 * record["nearest_neighbour"][data]
    axis.set(title=f"{data} (nearest neighbour {nearest:.1f} %)", ylabel="test accuracy in %", xlim=(-0.5, 2.6))
    axis.set_xticks(range(3), list(COLOURS))
figure.suptitle("dots: seeds; squares: mean and 95 % interval")
figure.tight_layout()
plt.show()

difference = {}
for data in NETWORKS:
    for one, other in (("focal", "sigmoid_gate"), ("focal", "box_mean"), ("sigmoid_gate", "box_mean")):
        welch = stats.ttest_ind(outcome[data][one], outcome[data][other], equal_var=False)
        low, high = difference[data, one, other] = welch.confidence_interval()
        print(f"{data}  {one} - {other}: {low:+.1f} to {high:+.1f} points")
assert min(difference[data, "sigmoid_gate", "box_mean"][0] for data in NETWORKS) > 5
assert all(low < 0 < high for low, high in (difference[data, "focal", "sigmoid_gate"] for data in NETWORKS))
assert (outcome["digits"]["focal"] < 50).sum() == 1

# %% [markdown]
# ## What the numbers show
#
# - **The page's modulation learns better than the code's**, by 5.6 to 8.7 points on digits and 8.7 to 14.5 on shapes,
#   under this budget and in 30 epochs. They differ in their levels (and in the MLPs' widths, which even out the
#   parameters): chained, with learned windows, in two dimensions; or none of the three. Which it is, cannot be told.
# - **Between the published one and the page's no difference is shown**: zero lies within both intervals. Nor is it
#   shown that there is none; on digits the interval is 42 points wide.
# - **One published run failed**: 26.7 % on digits, which its validation images would have told as well (33.1 %). The
#   others have a median of 98.6. Its rate, 0.2, was the best for both choosing seeds, and the largest on the list; 0.1
#   was nearly as good. Two seeds did not show how close to the edge it is. The run stays: to choose again, now that
#   the test images have been looked at, is to choose on them. Failing once in eight *is* the recipe's result.
# - **An interval up to 110 %** says that mean and Student's $t$ do not describe such runs. Look at the dots.
# - **Digits are the wrong test**: the nearest of the 1,150 training images has the right label for 99.2 % of them. On
#   shapes it has for 49.7 %.
#
# What they do not show: other sizes, other images, longer training (question 1). The bars hold what initialisation,
# order and augmentation change, and nothing else: all seeds share their images. Another 360 digits would move an
# accuracy of 99 % by some $\sqrt{0.99 \cdot 0.01 / 360} = 0.5$ points, up or down; one image is 0.28 points. And if
# nothing differed at all, at least one of the six intervals would miss zero in more than a fifth of such studies.
#
# ## Questions
#
# 1. Might `"box_mean"` only learn more slowly? Which run would tell, and on which images do you measure it?
# 2. Without its worst seed, what is the mean of `"focal"` on digits, and why is that number not the one to report?
#
# ## Answers
#
# 1. One of more epochs, measured on the validation images: `run("digits", "box_mean", 0.1, 100, "validation", 120)`.
#    There, four times the epochs give a mean of 98.3 % on digits and 98.4 % on shapes (seeds 100 and 101), where 30
#    gave 93.4 and 85.8. `"sigmoid_gate"` gets 98.8 and 98.9 with as many. So most of the gap is speed: it shows what
#    30 epochs do, not what the modulation can represent.
# 2. 97.8 %, ± 2.5 from seven seeds. It answers another question: how good are runs that went well? A user does not
#    know beforehand which will. Had a run of another modulation failed, it would be left out by the same right; leaving
#    out afterwards what one dislikes makes every method look good.
