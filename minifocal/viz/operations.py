"""What the step-through page says of each operation: its formulas, and which result and gradient is which.

The formulas are LaTeX. Browsers show MathML, which `pages/equations.json` holds for each of them.
"""

from dataclasses import dataclass, replace

from minifocal.models.focalnet import FocalNet


@dataclass(frozen=True)
class Card:
    """An operation in the words of its file.

    Attributes:
        title: what it is called. says, says_back: one sentence on what it does, and what its way back does.
        formulas, formulas_back: LaTeX.
        outputs: names of what forward returns before the cache.
        upstream: names of the arguments of backward before the cache: one for each output, in their order.
        gradients: names of what backward returns; "dx" is the gradient with respect to forward's argument "x".
    """

    title: str
    says: str
    says_back: str
    formulas: tuple[str, ...]
    formulas_back: tuple[str, ...]
    outputs: tuple[str, ...] = ("y",)
    upstream: tuple[str, ...] = ("dy",)
    gradients: tuple[str, ...] = ("dx",)


CONTEXT = r"\text{ctx}_l = \text{GELU}\left(\text{DWConv}_l(\text{ctx}_{l-1})\right)"
CONTEXT_BACK = (
    r"\text{d}\text{ctx}_{l-1} = \text{DWConv}_l^{\mathsf{T}}\left(\text{GELU}' \odot \text{d}\text{ctx}_l\right)"
)

CARDS: dict[str, Card] = {
    "linear": Card(
        "Linear map",
        "One matrix for every position: each output channel is a weighted sum of all input channels, plus a bias.",
        "The matrix transposed carries the gradient back; its own gradient sums over all positions, since all used it.",
        (r"y_{b,h,w,o} = \sum_i x_{b,h,w,i}\, W_{i,o} + \beta_o",),
        (
            r"\text{d}x = \text{d}y\, W^{\mathsf{T}}",
            r"\text{d}W_{i,o} = \sum_{b,h,w} x_{b,h,w,i}\, \text{d}y_{b,h,w,o}",
            r"\text{d}\beta_o = \sum_{b,h,w} \text{d}y_{b,h,w,o}",
        ),
        gradients=("dx", "dweight", "dbias"),
    ),
    "layer_norm": Card(
        "LayerNorm",
        "Over the channels of each token: mean 0 and variance 1, then a learned scale and shift for each channel.",
        "Every channel moved the mean and the variance, so two terms come back beside the plain one.",
        (
            r"\hat{x}_c = r\,(x_c - \mu), \quad \mu = \frac{1}{C}\sum_c x_c, "
            r"\quad r = \left(\frac{1}{C}\sum_c (x_c - \mu)^2 + \varepsilon\right)^{-\frac{1}{2}}",
            r"y_c = \gamma_c\, \hat{x}_c + \beta_c",
        ),
        (
            r"\text{d}\hat{x}_c = \gamma_c\, \text{d}y_c",
            r"\text{d}x_c = r\left(\text{d}\hat{x}_c - \frac{1}{C}\sum_j \text{d}\hat{x}_j "
            r"- \hat{x}_c\, \frac{1}{C}\sum_j \hat{x}_j\, \text{d}\hat{x}_j\right)",
            r"\text{d}\gamma_c = \sum_{b,h,w} \hat{x}_c\, \text{d}y_c, \quad "
            r"\text{d}\beta_c = \sum_{b,h,w} \text{d}y_c",
        ),
        gradients=("dx", "dweight", "dbias"),
    ),
    "gelu": Card(
        "GELU",
        "A smooth gate on each number by itself: large ones pass, negative ones are held back.",
        "Each gradient is multiplied by the slope, which the forward pass has kept.",
        (r"y = x\, \Phi(x), \quad \Phi(x) = \frac{1}{2}\left(1 + \text{erf}\,\frac{x}{\sqrt{2}}\right)",),
        (r"\text{d}x = \text{d}y \left(\Phi(x) + x\, \varphi(x)\right)",),
    ),
    "gelu_tanh": Card(
        "GELU, by tanh",
        "GELU with its error function approximated by a hyperbolic tangent.",
        "Each gradient is multiplied by the slope, which the forward pass has kept.",
        (r"y = \frac{x}{2}\left(1 + \tanh u\right), \quad u = \sqrt{\frac{2}{\pi}}\left(x + 0.044715\, x^3\right)",),
        (r"\text{d}x = \text{d}y \left(\frac{1 + \tanh u}{2} + \frac{x}{2}\,(1 - \tanh^2 u)\, u'\right)",),
    ),
    "sigmoid": Card(
        "Sigmoid",
        "Each number becomes a gate between 0 and 1.",
        "The slope is known from the result alone: it is largest where the gate stands half open.",
        (r"y = \frac{1}{1 + e^{-x}} = \frac{1}{2}\left(1 + \tanh \frac{x}{2}\right)",),
        (r"\text{d}x = \text{d}y\; y\,(1 - y)",),
    ),
    "depthwise_conv": Card(
        "Depthwise convolution",
        "A k × k neighbourhood of every token, weighted and added up, one channel at a time.",
        "Each token takes back from every token that saw it: the kernel turned by half a turn.",
        (
            r"z_{b,h,w,c} = \sum_{i,j} K_{i,j,c}\; "
            r"x_{b,\,h+i-\lfloor k/2 \rfloor,\,w+j-\lfloor k/2 \rfloor,\,c}",
        ),
        (
            r"\text{d}x_{b,h,w,c} = \sum_{i,j} K_{i,j,c}\; "
            r"\text{d}z_{b,\,h-i+\lfloor k/2 \rfloor,\,w-j+\lfloor k/2 \rfloor,\,c}",
            r"\text{d}K_{i,j,c} = \sum_{b,h,w} \text{d}z_{b,h,w,c}\; "
            r"x_{b,\,h+i-\lfloor k/2 \rfloor,\,w+j-\lfloor k/2 \rfloor,\,c}",
        ),
        outputs=("z",),
        upstream=("dz",),
        gradients=("dx", "dweight"),
    ),
    "focal_level": Card(
        "Focal level",
        "The context grows wider by one depthwise convolution and GELU; the gate says how much of it each token takes.",
        "The context is used twice, by the sum and by the next level: their gradients add up before they go on.",
        (
            CONTEXT,
            r"a_l = a_{l-1} + g_l \odot \text{ctx}_l",
        ),
        (
            r"\text{d}\text{ctx}_l \leftarrow \text{d}\text{ctx}_l + g_l \odot \text{d}a, \quad "
            r"\text{d}g_l = \sum_c \text{d}a_c\, \text{ctx}_{l,c}",
            CONTEXT_BACK,
        ),
        outputs=("ctx", "aggregate"),
        upstream=("dctx", "daggregate"),
        gradients=("dctx_before", "dweight", "dgate"),
    ),
    "global_level": Card(
        "Global level",
        "The widest context of all: the mean of the whole map, the same for every token, behind a gate of its own.",
        "The mean spreads its gradient evenly over all tokens.",
        (
            r"\text{ctx}_{\text{global}} = \text{GELU}\left(\frac{1}{HW} \sum_{h,w} \text{ctx}_{L,h,w}\right)",
            r"a_{L+1} = a_L + g_{L+1} \odot \text{ctx}_{\text{global}}",
        ),
        (
            r"\text{d}g_{L+1} = \sum_c \text{d}a_c\, \text{ctx}_{\text{global},c}",
            r"\text{d}\text{ctx}_{L,h,w} = \frac{1}{HW}\, \text{GELU}' \odot "
            r"\sum_{h',w'} g_{L+1} \odot \text{d}a",
        ),
        outputs=("aggregate",),
        upstream=("daggregate",),
        gradients=("dctx", "dgate"),
    ),
    "box_mean": Card(
        "Box mean",
        "The mean of neighbours in reading order, the end of a row beside the start of the next. Nothing is learned.",
        "The same mean with its window turned round.",
        (r"y_{t,c} = \frac{1}{n} \sum_{i<n} x_{t+i-\lfloor (n-1)/2 \rfloor,\,c}, \quad t = hW + w",),
        (r"\text{d}x_{t,c} = \frac{1}{n} \sum_{i<n} \text{d}y_{t-i+\lfloor (n-1)/2 \rfloor,\,c}",),
    ),
    "patches": Card(
        "Patches",
        "The map is cut into patches, each laid out as a row of numbers: with a matrix behind it, a convolution.",
        "Every number returns to its place; where patches overlap, their gradients add up.",
        (r"y_{b,h,w,(c,i,j)} = x_{b,\,sh+i-p,\,sw+j-q,\,c}, \quad p, q \;\text{zeros above and at the left}",),
        (r"\text{d}x_{b,u,v,c} = \sum_{sh+i-p=u,\; sw+j-q=v} \text{d}y_{b,h,w,(c,i,j)}",),
        outputs=("patches",),
        upstream=("dpatches",),
    ),
    "layer_scale": Card(
        "Layer scale",
        "A learned factor for each channel, small at first, so that a deep network starts near the identity.",
        "The factor carries the gradient back; its own sums over all positions.",
        (r"y_c = \gamma_c\, x_c",),
        (r"\text{d}x_c = \gamma_c\, \text{d}y_c, \quad \text{d}\gamma_c = \sum_{b,h,w} x_c\, \text{d}y_c",),
        gradients=("dx", "dgamma"),
    ),
    "mean_pool": Card(
        "Mean over the map",
        "One vector for the whole image: the mean of all tokens.",
        "Every token gets an equal share of the gradient.",
        (r"y_{b,c} = \frac{1}{HW} \sum_{h,w} x_{b,h,w,c}",),
        (r"\text{d}x_{b,h,w,c} = \frac{1}{HW}\, \text{d}y_{b,c}",),
    ),
    "modulate": Card(
        "Query times modulator",
        "Two maps multiplied, number by number: each decides what becomes of the other.",
        "Each factor carries the other's gradient.",
        (r"y = x \odot m",),
        (r"\text{d}x = \text{d}y \odot m, \quad \text{d}m = \text{d}y \odot x",),
        gradients=("dx", "dmodulator"),
    ),
    "split": Card(
        "Split",
        "What one matrix product gave for several purposes is taken apart: the query, the first context and the gates.",
        "The gradients are laid beside each other again.",
        (r"x = \left[\,q \mid \text{ctx}_0 \mid g\,\right]",),
        (r"\text{d}x = \left[\,\text{d}q \mid \text{d}\text{ctx}_0 \mid \text{d}g\,\right]",),
        outputs=("q", "ctx", "gates"),
        upstream=("dq", "dctx", "dgates"),
    ),
    "add": Card(
        "Sum",
        "Two maps of one shape added up, where a branch joins.",
        "Where a map forked on the way forward, its two gradients add up on the way back.",
        (r"x + y",),
        (r"\text{d}x_{\text{total}} = \text{d}x_1 + \text{d}x_2",),
        outputs=("sum",),
    ),
    "cross_entropy": Card(
        "Loss",
        "How surprised the network is by the right class: minus the logarithm of the probability that it gave it.",
        "Probability minus target: what is too likely is pushed down, the right class up.",
        (r"p = \text{softmax}(\text{logits}), \quad \text{loss} = -\log p_{\text{label}}",),
        (r"\text{d}\text{logits} = p - t, \quad t_n = [\,n = \text{label}\,]",),
        outputs=("loss",),
        upstream=("dloss",),
        gradients=("dlogits",),
    ),
}

UNGATED_LEVEL = replace(
    CARDS["focal_level"],
    says="The context grows wider by one depthwise convolution and GELU, and is added as it is: the gate comes later.",
    formulas=(CONTEXT, r"a_l = a_{l-1} + \text{ctx}_l"),
    formulas_back=(r"\text{d}\text{ctx}_l \leftarrow \text{d}\text{ctx}_l + \text{d}a", CONTEXT_BACK),
)
"""A focal level of a modulation that gates the sum of its levels, and no level by itself."""

PARTS = {
    "": "The network",
    "patch_embed": "Stem: patches to tokens",
    "norm": "Last LayerNorm",
    "head": "Classifier",
    "downsample": "Downsampling",
    "norm1": "LayerNorm before the modulation",
    "norm2": "LayerNorm before the MLP",
    "modulation": "Modulation",
    "mlp": "MLP",
    "fc1": "MLP, first linear map",
    "fc2": "MLP, second linear map",
    "f": "Linear map f: query, context and gates",
    "h": "Linear map h: the modulator",
    "ln": "LayerNorm in the modulation",
    "proj": "Linear map proj",
    "query": "Linear map: the query",
    "context": "Focal levels",
    "gather": "Context",
    "gate": "Linear map: the gates",
    "levels": "Levels",
}
"""What parts of a network are called, by the last name of their path."""


def part_title(path: str, model: FocalNet) -> str:
    """Name a layer for a person, from its path."""
    names = path.split(".")
    last = names[-1]
    if last.isdigit():
        if names[-2] == "layers":
            return f"Stage {int(last) + 1}"
        if names[-2] == "blocks":
            return f"Block {int(last) + 1}"
        return f"Linear map of level {int(last) + 1}"
    if model.config.use_postln and last in ("norm1", "norm2"):
        return PARTS[last].replace("before", "after")
    if last == "proj" and "modulation" not in names:
        return "Linear map of the patches"
    if last == "context" and "gather" in names:
        return "Linear map: the first context"
    if last == "norm" and len(names) > 1:
        return "LayerNorm of the tokens"
    return PARTS.get(last, last)


def all_formulas() -> list[str]:
    """Every formula on any page, as LaTeX."""
    return [tex for card in (*CARDS.values(), UNGATED_LEVEL) for tex in (*card.formulas, *card.formulas_back)]
