"""How to train: the options of a run."""

from dataclasses import asdict, dataclass, field
from typing import Any

from minifocal.errors import InputError, check_integer, check_option_names, is_real
from minifocal.layers.base import Layer
from minifocal.training.augment import Augmentation
from minifocal.training.optim import OPTIMIZERS, Optimizer


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes over the training images. batch_size: images a step.
        optimizer: "sgd" or "adamw". lr: peak learning rate. momentum: of SGD, Nesterov's.
        weight_decay: of everything but vectors; decay_all: of vectors too.
        warmup_steps: steps of rising learning rate, then half a cosine to zero; None is 50, or a tenth of a training
            of fewer than 500 steps.
        clip_norm: largest norm of all gradients together; 0 does not clip.
        label_smoothing: of the loss, in [0, 1).
        augmentation: what is done to each batch.
        seed: of the order of images, augmentation and drop path.
    Raises:
        InputError: values that cannot train; the message says which.
    """

    epochs: int = 30
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 2e-3
    decay_all: bool = False
    warmup_steps: int | None = None
    clip_norm: float = 5.0
    label_smoothing: float = 0.1
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            check_integer(name, getattr(self, name), least)
        if self.warmup_steps is not None:
            check_integer("warmup_steps", self.warmup_steps, at_least=0)
        for name in ("lr", "weight_decay", "clip_norm"):
            if not is_real(getattr(self, name)) or getattr(self, name) < 0.0:
                raise InputError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InputError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")

    def to_dict(self) -> dict[str, Any]:
        """Give all values, as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """Read what `to_dict` gave.

        Raises:
            InputError: a name that is missing or unknown.
        """
        fields = cls.__dataclass_fields__
        check_option_names(values, fields)
        if missing := sorted(fields.keys() - values.keys()):
            raise InputError(f"the settings of a training lack {', '.join(missing)}")
        augmentation = dict(values["augmentation"])
        check_option_names(augmentation, Augmentation.__dataclass_fields__)
        if augmentation.get("crop") is not None:
            augmentation["crop"] = tuple(augmentation["crop"])
        return cls(**{**values, "augmentation": Augmentation(**augmentation)})

    def make_optimizer(self, model: Layer) -> Optimizer:
        """Make the optimizer that is named."""
        options = {"momentum": self.momentum} if self.optimizer == "sgd" else {}
        optimizer: Optimizer = OPTIMIZERS[self.optimizer](
            model, self.lr, weight_decay=self.weight_decay, decay_all=self.decay_all, **options
        )
        return optimizer
