"""FocalNetConfig: every number that shapes a network, checked once, when it is made."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from minifocal.arrays import float32_linspace
from minifocal.errors import InputError, check_integer, check_option_names, is_integer, is_real, shown
from minifocal.layers.mlp import ACTIVATIONS

FOCAL, SIGMOID_GATE, BOX_MEAN = "focal", "sigmoid_gate", "box_mean"
MODULATION_NAMES = (FOCAL, SIGMOID_GATE, BOX_MEAN)
PAD_MODES = ("floor", "pad")
# Beyond these nothing could be built; a configuration from a file must not make it tried.
MAX_SIZE, MAX_STAGES, MAX_BLOCKS, MAX_LEVELS = 2**31, 20, 10_000, 100


@dataclass(frozen=True, kw_only=True)
class FocalNetConfig:
    """The shape of a network. Defaults are the official constructor's.

    Attributes:
        image_size: height and width of the images in pixels, or one number for both. The network takes any size;
            this one counts multiply-adds and is checked against patch_size.
        patch_size: P, the stem's patch and stride in pixels.
        in_chans: channels of an image.
        num_classes: N outputs; 0 leaves the classifier out and gives the pooled features.
        embed_dim: C of the first stage; every stage doubles it.
        depths: blocks of each stage.
        mlp_ratio: hidden channels of an MLP, as a multiple of C, rounded down.
        mlp_act: "gelu" (by erf) or "gelu_pytorch_tanh".
        drop_rate: dropout after the stem, the modulation and in the MLP.
        drop_path_rate: of the last block; it grows from 0 at the first.
        patch_norm: LayerNorm after the stem's projection.
        focal_levels: L of each stage.
        focal_windows: kernel of the first level, by stage (for "box_mean" the window of its means).
        focal_factor: by how much the kernel grows from level to level.
        use_conv_embed: overlapping patches: stem 7x7 stride 4, downsampling 3x3 stride 2. The stem's patch_size
            is then not used, as in the official code.
        use_layerscale, layerscale_value: a learned factor per channel on both branches, and where it starts.
        use_postln: LayerNorm after a branch and not before it.
        use_postln_in_modulation: LayerNorm before the modulation's last projection ("focal" only).
        normalize_modulator: divide the aggregate by L + 1 ("focal" only).
        ln_eps: added to the variance of every LayerNorm.
        pad_mode: what happens to pixels that fill no patch: "floor" leaves them out (official, timm), "pad" adds
            zeros (Hugging Face).
        modulation: "focal", "sigmoid_gate" or "box_mean".
    Raises:
        InputError: values that make no network; the message says which and what would.
    """

    image_size: int | tuple[int, int] = 224
    patch_size: int = 4
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    mlp_ratio: float = 4.0
    mlp_act: str = "gelu"
    drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    patch_norm: bool = True
    focal_levels: tuple[int, ...] = (2, 2, 2, 2)
    focal_windows: tuple[int, ...] = (3, 3, 3, 3)
    focal_factor: int = 2
    use_conv_embed: bool = False
    use_layerscale: bool = False
    layerscale_value: float = 1e-4
    use_postln: bool = False
    use_postln_in_modulation: bool = False
    normalize_modulator: bool = False
    ln_eps: float = 1e-5
    pad_mode: str = "floor"
    modulation: str = FOCAL

    def __post_init__(self) -> None:
        # Plain Python numbers: a NumPy float64 among them would turn float32 arrays into float64.
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float and is_real(value):
                object.__setattr__(self, field.name, float(value))
            elif is_integer(value):
                object.__setattr__(self, field.name, int(value))
        for name in ("depths", "focal_levels", "focal_windows"):
            object.__setattr__(self, name, _integers(name, getattr(self, name)))
        if isinstance(self.image_size, list | tuple):
            object.__setattr__(self, "image_size", _integers("image_size", self.image_size))
        self._check_numbers()
        self._check_stages()
        self._check_modulation()

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def dims(self) -> tuple[int, ...]:
        """C of each stage."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.depths)))

    def kernel_sizes(self, stage: int) -> tuple[int, ...]:
        """Give k of each level of a stage."""
        window = self.focal_windows[stage]
        return tuple(window + self.focal_factor * level for level in range(self.focal_levels[stage]))

    def to_dict(self) -> dict[str, Any]:
        """Give all fields, as JSON can hold them."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FocalNetConfig":
        """Make a configuration of named fields.

        Raises:
            InputError: no dict, a name that is no field, or a value that makes no network.
        """
        if not isinstance(values, dict):
            raise InputError(
                f"a network's configuration must be a dict, or a JSON object, of fields, got {shown(values)}"
            )
        check_option_names(values, cls.__dataclass_fields__)
        return cls(**values)

    def to_json(self) -> str:
        """Write all fields as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "FocalNetConfig":
        """Read what `to_json` wrote. Raises InputError as from_dict does, and where the text is no JSON object."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # also of a number with too many digits
            raise InputError(f"a network's configuration must be JSON: {error}") from error
        return cls.from_dict(values)

    def _check_numbers(self) -> None:
        for name, least in (
            ("patch_size", 1),
            ("in_chans", 1),
            ("embed_dim", 1),
            ("num_classes", 0),
            ("focal_factor", 0),
        ):
            check_integer(name, getattr(self, name), least, MAX_SIZE)
        for field in fields(self):
            if field.type is bool:
                self._check(field.name, isinstance(getattr(self, field.name), bool), "True or False")
            elif field.type is float:
                self._check(field.name, is_real(getattr(self, field.name)), "a finite number")
        self._check("mlp_ratio", 1 <= self.embed_dim * self.mlp_ratio < MAX_SIZE, "at least 1/embed_dim")
        self._check("ln_eps", 0 < self.ln_eps <= 1, "above 0 and at most 1")
        for name in ("drop_rate", "drop_path_rate"):
            rate = getattr(self, name)
            self._check(name, 0 <= rate < 1 and float32_linspace(rate, 2)[1] < 1, "in [0, 1)")
        for name, choices in (("mlp_act", tuple(ACTIVATIONS)), ("pad_mode", PAD_MODES)):
            self._check(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        sizes = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        whole = len(sizes) == 2 and all(is_integer(n) and 1 <= n <= MAX_SIZE for n in sizes)
        self._check("image_size", whole, "one or two integers of at least 1")
        if not self.use_conv_embed and min(self.image_hw) < self.patch_size and self.pad_mode == "floor":
            raise InputError(
                f"image_size {self.image_size} is smaller than one patch of {self.patch_size} pixels; "
                "give a smaller patch_size"
            )

    def _check_stages(self) -> None:
        stages = len(self.depths)
        self._check("depths", 0 < stages <= MAX_STAGES, f"at least one stage and at most {MAX_STAGES}")
        self._check("depths", min(self.depths) >= 1, "at least one block in every stage")
        for name, least in (("focal_levels", 0), ("focal_windows", 1)):
            self._check(name, len(getattr(self, name)) == stages, f"one value for each of {stages} stages")
            self._check(name, min(getattr(self, name)) >= least, f"at least {least} in every stage")
        for name, most in (("depths", MAX_BLOCKS), ("focal_levels", MAX_LEVELS), ("focal_windows", MAX_SIZE)):
            self._check(name, max(getattr(self, name)) <= most, f"at most {most} in every stage")
        self._check("embed_dim", self.dims[-1] < MAX_SIZE, f"such that the last stage has less than {MAX_SIZE}")

    def _check_modulation(self) -> None:
        known = self.modulation in MODULATION_NAMES
        self._check("modulation", known, f"one of {', '.join(MODULATION_NAMES)}")
        if self.modulation != BOX_MEAN:
            for stage in range(len(self.depths)):
                kernels = self.kernel_sizes(stage)
                odd = all(k % 2 for k in kernels)
                where = f"stage {stage} has {kernels}; FocalNet.build calls it focal_kernel"
                self._check("focal_windows", odd, f"such that all kernels are odd ({where})")
        if self.modulation == FOCAL:
            return
        for name in ("use_postln_in_modulation", "normalize_modulator"):
            self._check(name, not getattr(self, name), 'False unless modulation is "focal"')
        self._check("focal_levels", min(self.focal_levels) >= 1, f"at least 1 for {self.modulation}")
        check_divisible(self, self.image_hw)

    def _check(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise InputError(f"{name} must be {expected}, got {shown(getattr(self, name))}")


def check_divisible(config: FocalNetConfig, image_hw: tuple[int, int]) -> None:
    """Refuse images that Edifice's networks cannot cut into whole patches; the published one leaves the rest out.

    Raises:
        InputError: the height or the width is no multiple of patch_size.
    """
    exempt = config.modulation == FOCAL or config.use_conv_embed or config.pad_mode == "pad"
    if not exempt and any(n % config.patch_size for n in image_hw):
        raise InputError(
            f"images of {image_hw[0]} x {image_hw[1]} pixels do not divide into patches of {config.patch_size}; "
            "crop or resize them, or choose another patch_size"
        )


def _integers(name: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not all(map(is_integer, values)):
        raise InputError(f"{name} must be a tuple of integers, got {shown(values)}")
    return tuple(int(value) for value in values)
