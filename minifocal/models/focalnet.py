"""FocalNet: stem, stages, norm, mean over the map, classifier."""

from functools import partial
from typing import Any, NamedTuple, Protocol

from minifocal.arrays import (
    FLOAT_DTYPES,
    Array,
    Generator,
    check_device,
    check_images,
    device_of,
    float32_linspace,
    get_array_module,
    use_device,
)
from minifocal.errors import InputError, check_integer, check_option_names
from minifocal.functional.drop_path import DropCache
from minifocal.functional.layer_norm import LayerNormCache
from minifocal.functional.linear import LinearCache
from minifocal.functional.mean_pool import MeanPoolCache
from minifocal.layers.base import Layer
from minifocal.layers.drop_path import Dropout
from minifocal.layers.focal_context import FocalContext
from minifocal.layers.initializers import Initializer, get_initializer
from minifocal.layers.layer_norm import LayerNorm
from minifocal.layers.linear import Linear
from minifocal.layers.patch_embed import PatchEmbed, PatchEmbedCache
from minifocal.models.block import FocalNetStage, FocalNetStageCache
from minifocal.models.config import SIGMOID_GATE, FocalNetConfig, check_divisible
from minifocal.models.summary import summarize
from minifocal.ops import Ops, get_ops
from minifocal.threads import one_blas_thread, run_together, shards, thread_count

SHARD_ELEMENTS = 640_000
"""Numbers in the first map of the images that are computed at a time: two images of 224 pixels at 96 channels.

More take more memory; fewer make matrix products of too few rows, and gradients are added up more often.
"""


class FocalNetCache(NamedTuple):
    """What `FocalNet.backward` needs; it mirrors the tree of layers. Its properties are what there is to see."""

    patch_embed: PatchEmbedCache
    dropout: DropCache
    layers: tuple[FocalNetStageCache, ...]
    norm: LayerNormCache
    pool: MeanPoolCache
    head: LinearCache | None

    @property
    def stage_maps(self) -> list[Array]:
        """The last map of each stage before downsampling: (B, H_s, W_s, C_s)."""
        return [stage.features for stage in self.layers]

    @property
    def gates(self) -> list[list[Array]]:
        """The gates of each block of each stage: (B, H, W, L+1), or (B, H, W, C) where a sigmoid makes them."""
        return [[block.modulation.gates for block in stage.blocks] for stage in self.layers]

    @property
    def modulators(self) -> list[list[Array]]:
        """The modulator of each block of each stage: (B, H, W, C)."""
        return [[block.modulation.modulator for block in stage.blocks] for stage in self.layers]


class SavedNetwork(Protocol):
    """What `FocalNet.from_checkpoint` asks of a checkpoint."""

    @property
    def description(self) -> dict[str, Any]:
        """What `FocalNet.describe` gave."""

    def restore(self, model: Layer) -> None:
        """Copy the saved weights into a model."""


class FocalNet(Layer):
    """A focal modulation network.

    Images (B, Cin, H, W) -> stem (B, H/P, W/P, C) -> stages -> LayerNorm -> mean over the map -> classifier (B, N).

        logits, cache = model.forward(images, rng)
        dimages = model.backward(dlogits, cache)      # and every Parameter.grad has grown
        logits = model(images)                        # inference: no cache is kept

    Args:
        config: the shape; the official defaults where none is given.
        seed: of the initialisation.
        init: "official", "glorot", "lecun" (small networks) or "zeros" (to be loaded).
        dtype: "float32" or "float64"; images must have the same.
        device: "cpu", "cuda" or "cuda:N".
        ops: the table of operations: "reference", "numpy", "numba", "cuda", or "auto" for the fastest that is present
            for the device.
        recompute_levels: keep nothing of the focal levels for the way back, but compute them again there: less memory
            in training, more time.
        precision: what the operands of matrix products are rounded to: "float32" (not at all), "tf32", "bfloat16" or
            "float16". Weights, activations, gradients and sums stay float32.
    Raises:
        InputError: an unknown name, a device that is not there, or float64 with operands that are rounded.
    """

    def __init__(
        self,
        config: FocalNetConfig | None = None,
        *,
        seed: int = 0,
        init: str = "official",
        dtype: str = "float32",
        device: str = "cpu",
        ops: str = "auto",
        recompute_levels: bool = False,
        precision: str = "float32",
    ) -> None:
        super().__init__(get_ops(ops, device, precision))
        self.chooses_ops = ops == "auto"
        if dtype not in FLOAT_DTYPES:
            raise InputError(f"dtype must be one of {', '.join(FLOAT_DTYPES)}, got {dtype!r}")
        if dtype != "float32" and precision != "float32":
            raise InputError(
                f'precision "{precision}" is for networks in float32, got dtype "{dtype}": use dtype "float32", or '
                'precision "float32"'
            )
        check_device(device)
        self.config = config = FocalNetConfig() if config is None else config
        if not isinstance(config, FocalNetConfig):
            raise InputError(
                f"config must be a FocalNetConfig, got {type(config).__name__}; see FocalNetConfig.from_dict"
            )
        self.dtype = str(dtype)
        initializer = get_initializer(init, seed, dtype)
        self.patch_embed = _stem(config, initializer, self.ops)
        self.dropout = Dropout(config.drop_rate, ops=self.ops)
        rates = drop_path_rates(config)
        self.layers = [
            FocalNetStage(config, stage, rates[stage], init=initializer, ops=self.ops)
            for stage in range(len(config.depths))
        ]
        dim = config.dims[-1]
        self.norm = LayerNorm(dim, init=initializer, ops=self.ops, eps=config.ln_eps)
        self.head = (
            Linear(dim, config.num_classes, init=initializer, ops=self.ops, kind="head") if config.num_classes else None
        )
        for layer in self.layers_inside():
            if isinstance(layer, FocalContext):
                layer.recompute = recompute_levels
        if device != "cpu":
            self.to_device(device)

    @classmethod
    def build(
        cls,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        hidden_size: int = 256,
        num_layers: int = 4,
        focal_levels: int = 3,
        focal_kernel: int = 3,
        num_classes: int | None = None,
        modulation: str = SIGMOID_GATE,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        init: str = "glorot",
        seed: int = 0,
        dtype: str = "float32",
        device: str = "cpu",
        ops: str = "auto",
        recompute_levels: bool = False,
        precision: str = "float32",
        **unknown: Any,
    ) -> "FocalNet":
        """Build Edifice's network: one stage of `num_layers` blocks on a grid of patches.

        Args:
            image_size: of the square images, in pixels. patch_size: of the square patches; it divides image_size.
            in_channels: of an image. hidden_size: C of a token.
            num_layers: blocks. focal_levels: L, at least 1. focal_kernel: k of the first level; the next are 2 wider.
            num_classes: N outputs; None or 0 gives the pooled features, (B, hidden_size).
            modulation: "sigmoid_gate", "focal" or "box_mean".
            mlp_ratio, drop_path_rate: as in FocalNetConfig.
            init, seed, dtype, device, ops, recompute_levels, precision: as in FocalNet.
        Raises:
            InputError: options that make no network, or that do not exist.
        Source: the documentation of Edifice.Vision.FocalNet 0.2; options and defaults are its own.
        """
        check_option_names(unknown, BUILD_DEFAULTS)
        for name, value in (
            ("in_channels", in_channels),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
            ("focal_kernel", focal_kernel),
        ):
            check_integer(name, value, at_least=1)
        config = FocalNetConfig(
            image_size=image_size,
            patch_size=patch_size,
            in_chans=in_channels,
            num_classes=num_classes or 0,
            embed_dim=hidden_size,
            depths=(num_layers,),
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
            patch_norm=False,
            focal_levels=(focal_levels,),
            focal_windows=(focal_kernel,),
            modulation=modulation,
        )
        return cls(
            config,
            seed=seed,
            init=init,
            dtype=dtype,
            device=device,
            ops=ops,
            recompute_levels=recompute_levels,
            precision=precision,
        )

    @classmethod
    def from_checkpoint(
        cls, checkpoint: "SavedNetwork", *, device: str = "cpu", ops: str = "auto", precision: str = "float32"
    ) -> "FocalNet":
        """Build the network that a checkpoint describes, with its weights; device, ops and precision as in FocalNet.

            model = mf.FocalNet.from_checkpoint(mf.load_checkpoint("runs/digits/best.safetensors"))

        Raises:
            InputError: the checkpoint describes no FocalNet, or holds other weights than it describes.
        """
        description = checkpoint.description
        if description.get("architecture") != "FocalNet" or not {"config", "dtype"} <= description.keys():
            raise InputError(f"the checkpoint does not describe a FocalNet, but {description}")
        config = FocalNetConfig.from_dict(description["config"])
        model = cls(config, init="zeros", dtype=description["dtype"], device=device, ops=ops, precision=precision)
        checkpoint.restore(model)
        return model

    @classmethod
    def build_backbone(cls, **options: Any) -> "FocalNet":
        """Build Edifice's network without a classifier: images to features (B, hidden_size). Options as for build."""
        return cls.build(**{**options, "num_classes": None})

    @classmethod
    def output_size(cls, **options: Any) -> int:
        """Count the outputs of `build` with these options: num_classes where given, else hidden_size."""
        model = cls.build(**{**options, "init": "zeros", "device": "cpu", "ops": "reference"})
        return model.config.num_classes or model.config.dims[-1]

    @classmethod
    def feature_size(cls, **options: Any) -> int:
        """Count the features of `build_backbone` with these options: hidden_size."""
        return cls.output_size(**{**options, "num_classes": None})

    def to_device(self, device: str) -> None:
        """Move every parameter and its gradient to "cpu", "cuda" or "cuda:N"; with ops "auto" the table follows.

        A GPU becomes the one that this thread computes on: of several, the one that was moved to last.
        """
        check_device(device)
        if self.chooses_ops:
            self.use_ops(get_ops("auto", device, self.ops.precision))
        get_ops(self.ops.name, device)
        use_device(device)
        super().to_device(device)

    @property
    def device(self) -> str:
        """Where the parameters live."""
        return device_of(self.norm.weight.data)

    def forward(self, x: Array, rng: Generator | None = None) -> tuple[Array, FocalNetCache]:
        """Classify images, keeping what the way back needs.

        Args:
            x: images (B, in_chans, H, W), in the network's dtype and on its device, of any size that holds a patch.
            rng: source of drop path and dropout while training; None drops nothing.
        Returns:
            logits (B, N), or pooled features (B, C_last) without a classifier; and a FocalNetCache.
        Raises:
            InputError: wrong rank, channels or dtype, values that are not finite, an image smaller than a patch,
                or a size that the patches do not divide where the modulation is not "focal".
        """
        x, patch_embed_cache = self.patch_embed.forward(self._channels_last(x))
        x, dropout_cache = self.dropout.forward(x, rng)
        stages = []
        for stage in self.layers:
            x, stage_cache = stage.forward(x, rng)
            stages.append(stage_cache)
        x, norm_cache = self.norm.forward(x)
        y, pool_cache = self.ops.mean_pool.forward(x)
        head_cache = None
        if self.head is not None:
            y, head_cache = self.head.forward(y)
        return y, FocalNetCache(patch_embed_cache, dropout_cache, tuple(stages), norm_cache, pool_cache, head_cache)

    def backward(self, dy: Array, cache: FocalNetCache) -> Array:
        """Give dimages (B, in_chans, H, W); add to the gradients of all parameters."""
        if self.head is not None:
            dy = self.head.backward(dy, cache.head)  # type: ignore[arg-type]
        dx = self.ops.mean_pool.backward(dy, cache.pool)
        dx = self.norm.backward(dx, cache.norm)
        for stage, stage_cache in zip(reversed(self.layers), reversed(cache.layers), strict=True):
            dx = stage.backward(dx, stage_cache)
        dx = self.dropout.backward(dx, cache.dropout)
        dx = self.patch_embed.backward(dx, cache.patch_embed)
        return dx.transpose(0, 3, 1, 2)

    def forward_features(self, images: Array) -> Array:
        """Infer the last normalised map, (B, H', W', C_last), before it is averaged and classified."""
        x = self.patch_embed(self._channels_last(images))
        for stage in self.layers:
            x = stage(x)
        return self.norm(x)

    def __call__(self, x: Array) -> Array:
        """Infer logits or pooled features: nothing is dropped, no cache is kept."""
        if not self.ops.threaded:
            return self._infer(x)
        self.check_input(x)
        # Threads take equal parts; the images left over go through together, shared out inside each operation.
        equal = len(x) // thread_count() * thread_count()
        tasks = [partial(self._infer_all, x, share) for share in shards(equal, self.shard_size(x.shape))]
        results = run_together(tasks) if tasks else []
        if equal < len(x):
            with one_blas_thread():
                results.append(self._infer(x[equal:]))
        return get_array_module(x).concatenate(results)

    def _infer_all(self, x: Array, parts: list[slice]) -> Array:
        return get_array_module(x).concatenate([self._infer(x[part]) for part in parts])

    def _infer(self, x: Array) -> Array:
        y, _ = self.ops.mean_pool.forward(self.forward_features(x))
        return y if self.head is None else self.head(y)

    def check_input(self, x: Array) -> None:
        """Refuse images that `forward` refuses."""
        check_images(x, self.config.in_chans, beside=self.norm.weight.data)
        check_divisible(self.config, x.shape[2:])

    def shard_size(self, shape: tuple[int, ...]) -> int:
        """Choose how many images to compute at a time: as many as have first maps of SHARD_ELEMENTS together."""
        tokens = shape[2] * shape[3] // self.config.patch_size**2
        return max(1, SHARD_ELEMENTS // max(1, tokens * self.config.embed_dim))

    def summary(self, image_size: int | tuple[int, int] | None = None) -> str:
        """Give a table by layer, for one image: shape, parameters, multiply-adds, cache memory; and training memory."""
        return str(summarize(self, image_size))

    def describe(self) -> dict[str, Any]:
        """Give the configuration and the dtype, for a checkpoint."""
        return {"architecture": "FocalNet", "dtype": self.dtype, "config": self.config.to_dict()}

    def _channels_last(self, images: Array) -> Array:
        self.check_input(images)
        return images.transpose(0, 2, 3, 1)


BUILD_DEFAULTS: dict[str, Any] = dict(FocalNet.build.__kwdefaults__ or {})
"""The options of `FocalNet.build` and their defaults."""


def drop_path_rates(config: FocalNetConfig) -> list[list[float]]:
    """Give the drop path rate of each block of each stage: 0 at the first block, drop_path_rate at the last."""
    rates = iter(float32_linspace(config.drop_path_rate, sum(config.depths)))
    return [[next(rates) for _ in range(depth)] for depth in config.depths]


def _stem(config: FocalNetConfig, init: Initializer, ops: Ops) -> PatchEmbed:
    overlap = config.use_conv_embed
    return PatchEmbed(
        config.in_chans,
        config.embed_dim,
        size=7 if overlap else config.patch_size,
        stride=4 if overlap else config.patch_size,
        padding=2 if overlap else 0,
        pad_to=config.patch_size if config.pad_mode == "pad" else 1,
        norm=config.patch_norm,
        eps=config.ln_eps,
        init=init,
        ops=ops,
    )
