"""Networks of PyTorch that compute what ours do: transformers' FocalNet, and the sigmoid-gate network."""

from importlib import import_module
from typing import Any

from minifocal.models.config import SIGMOID_GATE, FocalNetConfig

# Not by an import statement: with it, the types would be right only where PyTorch is installed, or where it is not.
torch: Any = import_module("torch")
nn: Any = torch.nn

SAME_NAMES = (
    "image_size",
    "patch_size",
    "embed_dim",
    "mlp_ratio",
    "drop_path_rate",
    "use_conv_embed",
    "use_layerscale",
    "layerscale_value",
    "normalize_modulator",
)


def build(config: FocalNetConfig) -> Any:
    """Build the network of a configuration: a module that maps images to logits."""
    return SigmoidGateNet(config) if config.modulation == SIGMOID_GATE else HuggingFaceNet(config)


class HuggingFaceNet(nn.Module):  # type: ignore[misc]
    """transformers' FocalNetForImageClassification, giving the logits alone."""

    def __init__(self, config: FocalNetConfig) -> None:
        super().__init__()
        transformers: Any = import_module("transformers")
        transformers.logging.set_verbosity_error()
        theirs = transformers.FocalNetConfig(
            num_channels=config.in_chans,
            num_labels=config.num_classes,
            hidden_act=config.mlp_act,
            hidden_dropout_prob=config.drop_rate,
            use_post_layernorm=config.use_postln,
            use_post_layernorm_in_modulation=config.use_postln_in_modulation,
            layer_norm_eps=config.ln_eps,
            **{name: list(getattr(config, name)) for name in ("depths", "focal_levels", "focal_windows")},
            **{name: getattr(config, name) for name in SAME_NAMES},
        )
        self.model = transformers.FocalNetForImageClassification(theirs)

    def forward(self, images: Any) -> Any:
        """Map (B, Cin, H, W) to (B, N)."""
        return self.model(images).logits


class SigmoidGateNet(nn.Module):  # type: ignore[misc]
    """The network that `FocalNet.build` makes: one stage, sigmoid gates, a classifier.

    Maps are channels-last, (B, H, W, C), as its linear layers want them; the convolutions see the same memory as
    (B, C, H, W). Its parameters have the names that ours have.
    """

    def __init__(self, config: FocalNetConfig) -> None:
        super().__init__()
        dim, patch = config.embed_dim, config.patch_size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(config.in_chans, dim, patch, stride=patch)})
        blocks = nn.ModuleList([SigmoidGateBlock(config) for _ in range(config.depths[0])])
        self.layers = nn.ModuleList([nn.ModuleDict({"blocks": blocks})])
        self.norm = nn.LayerNorm(dim, eps=config.ln_eps)
        self.head = nn.Linear(dim, config.num_classes)

    def forward(self, images: Any) -> Any:
        """Map (B, Cin, H, W) to (B, N)."""
        x = self.patch_embed["proj"](images).permute(0, 2, 3, 1)
        for block in self.layers[0]["blocks"]:
            x = block(x)
        return self.head(self.norm(x).mean(dim=(1, 2)))


class SigmoidGateBlock(nn.Module):  # type: ignore[misc]
    """Modulation and MLP, each after its norm on a residual branch."""

    def __init__(self, config: FocalNetConfig) -> None:
        super().__init__()
        dim, hidden_dim = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, eps=config.ln_eps)
        self.modulation = SigmoidGateModulation(dim, config.kernel_sizes(0))
        self.norm2 = nn.LayerNorm(dim, eps=config.ln_eps)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden_dim), "fc2": nn.Linear(hidden_dim, dim)})

    def forward(self, x: Any) -> Any:
        """Map (B, H, W, C) to the same shape."""
        x = x + self.modulation(self.norm1(x))
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


class SigmoidGateModulation(nn.Module):  # type: ignore[misc]
    """y = proj(query(x) * sigmoid(gate(x)) * ctx), ctx the sum of chained levels GELU(DWConv(...))."""

    def __init__(self, dim: int, kernel_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.query, self.context, self.gate, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.focal_layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim, bias=False), nn.GELU())
            for k in kernel_sizes
        )

    def forward(self, x: Any) -> Any:
        """Map (B, H, W, C) to the same shape."""
        level: Any = self.context(x).permute(0, 3, 1, 2)
        ctx: Any = None
        for layer in self.focal_layers:
            level = layer(level)
            ctx = level if ctx is None else ctx + level
        return self.proj(self.query(x) * torch.sigmoid(self.gate(x)) * ctx.permute(0, 2, 3, 1))
