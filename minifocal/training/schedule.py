"""The learning rate by step."""

import math
from dataclasses import dataclass

from minifocal.errors import InputError, check_integer


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up from zero to `peak`, then half a cosine down to `final`.

    Attributes:
        peak: the largest learning rate.
        total_steps: of the training. warmup_steps: of the warm-up, fewer than total_steps.
        final: the learning rate after the last step.
    Raises:
        InputError: a negative warm-up, or one as long as the training.
    Source: Loshchilov and Hutter 2017 (arXiv:1608.03983).
    """

    peak: float
    total_steps: int
    warmup_steps: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        check_integer("warmup_steps", self.warmup_steps, at_least=0)
        if self.warmup_steps >= self.total_steps:
            raise InputError(
                f"warm-up must be shorter than the training: got {self.warmup_steps} of {self.total_steps} steps; "
                "train for more epochs or warm up for fewer steps"
            )

    def __call__(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        progress = min((step - self.warmup_steps) / (self.total_steps - self.warmup_steps), 1.0)
        return self.final + (self.peak - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))
