"""Training steps that a GPU replays: one launch in place of hundreds."""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np

from minifocal.arrays import Array, Generator, beside, device_of, get_array_module
from minifocal.errors import InputError
from minifocal.fused import gpu
from minifocal.layers.base import Layer
from minifocal.layers.finite import is_looked_into
from minifocal.ops import GPU_TABLE
from minifocal.training.loss_scale import LossScaler
from minifocal.training.optim import Optimizer
from minifocal.training.step import StepOutcome, StepRecord, step_gradients, train_step


class StepGraph:
    """`train_step` for a GPU, recorded once for each size of batch and then replayed.

        step = StepGraph(model, optimizer, clip_norm=5.0)
        record = step(images, labels, rng)

    In a small network the host takes longer to launch a kernel than the device to run it. Recorded is all but the
    update: its learning rate changes from step to step, and it is one launch anyway. What comes from the host, a batch
    and the draws of drop path and dropout, is brought to fixed places before. The first step of a size is an ordinary
    one, from which the draws are learned; the second is recorded. The numbers are those of `train_step`, bit for bit.

    Args:
        model: to train, on a GPU; it must stay there. optimizer: made for it.
        label_smoothing, clip_norm, scaler, micro_batch: as in train_step.
    Raises:
        InputError: the model is not on a GPU, or computes with another table than "cuda": the readable functions bring
            numbers from the host (CuPy's `stack` of many arrays brings their addresses), which a replay would not.
    """

    def __init__(
        self,
        model: Layer,
        optimizer: Optimizer,
        *,
        label_smoothing: float = 0.0,
        clip_norm: float | None = None,
        scaler: LossScaler | None = None,
        micro_batch: int | None = None,
    ) -> None:
        device = device_of(next(model.parameters()).data)
        if device == "cpu":
            raise InputError('a graph records the work of a GPU, but the model is on the CPU; use device "cuda"')
        if model.ops.name != GPU_TABLE:
            raise InputError(f'a graph records the table "{GPU_TABLE}", not "{model.ops.name}"; use ops "auto"')
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.options: dict[str, Any] = {
            "label_smoothing": label_smoothing,
            "clip_norm": clip_norm,
            "scaler": scaler,
            "micro_batch": micro_batch,
        }
        self.recorder = gpu.Recorder()
        self._draws: dict[Any, list[tuple[int, ...]]] = {}  # by size of the batch: shapes that a step draws
        self._recordings: dict[Any, _Recording] = {}

    def __call__(self, images: Array, labels: Array, rng: Generator | None) -> StepRecord:
        """Make one step. Arguments and result as for train_step.

        Raises:
            InputError: an array of the model was replaced since a step of this size was recorded, or check_finite is
                to look into the model, which a replay goes past.
        """
        if is_looked_into(self.model):
            raise InputError("check_finite cannot look into a step that a graph replays; use train_step in its place")
        size = (images.shape, rng is None)
        if size not in self._draws:
            watched: Any = None if rng is None else _Watched(rng)
            record = train_step(self.model, self.optimizer, images, labels, watched, **self.options)
            self._draws[size] = [] if watched is None else watched.shapes
            return record
        if size not in self._recordings:
            self._recordings[size] = self._record(images, labels, None if rng is None else self._draws[size])
        recording = self._recordings[size]
        recording.check(self.model)
        with self.recorder.in_stream():
            recording.images[...] = images
            recording.labels[...] = labels
            if rng is not None and self._draws[size]:
                drawn = np.concatenate([rng.random(shape).reshape(-1) for shape in self._draws[size]])
                recording.draws[...] = beside(drawn, recording.draws)
            recording.replay()
            # Copies: the next replay writes to the same places.
            record = StepRecord(recording.outcome.loss.copy(), recording.outcome.accuracy.copy())
            self.optimizer.step(recording.outcome.skip)
        return record

    def _record(self, images: Array, labels: Array, shapes: list[tuple[int, ...]] | None) -> "_Recording":
        xp = get_array_module(images)
        images, labels = images.copy(), labels.copy()
        draws = xp.zeros((sum(map(prod, shapes or [])),), dtype="float64")

        def go() -> StepOutcome:
            handed_out: Any = None if shapes is None else _HandedOut(draws, shapes)
            return step_gradients(self.model, images, labels, handed_out, **self.options)

        kept = [] if self.scaler is None else [array.copy() for array in self.scaler.state_dict().values()]
        outcome, replay = self.recorder.record(go)
        if self.scaler is not None:  # the rehearsal was no step
            for array, before in zip(self.scaler.state_dict().values(), kept, strict=True):
                array[...] = before
        return _Recording(images, labels, draws, outcome, replay, _arrays(self.model))


class _Recording(NamedTuple):
    """A step of one size: where its input goes, and where what it comes to will be."""

    images: Array
    labels: Array
    draws: Array  # all draws of a step, one after the other
    outcome: StepOutcome
    replay: Callable[[], None]
    arrays: list[Array]  # of the model's parameters

    def check(self, model: Layer) -> None:
        """Refuse a model whose arrays are others than those that were recorded."""
        if any(now is not then for now, then in zip(_arrays(model), self.arrays, strict=True)):
            raise InputError("the model's arrays are others than when its step was recorded; make a new StepGraph")


def _arrays(model: Layer) -> list[Array]:
    return [array for parameter in model.parameters() for array in (parameter.data, parameter.grad)]


class _Watched:
    """A generator's `random`, which notes what is drawn."""

    def __init__(self, rng: Generator) -> None:
        self.rng = rng
        self.shapes: list[tuple[int, ...]] = []

    def random(self, shape: Any) -> np.ndarray:
        draw = self.rng.random(shape)
        self.shapes.append(draw.shape)
        return draw


class _HandedOut:
    """A generator's `random` whose draws lie on the device already, one after the other."""

    def __init__(self, draws: Array, shapes: list[tuple[int, ...]]) -> None:
        self.draws, self.shapes = draws, iter(shapes)
        self.start = 0

    def random(self, shape: Any) -> Array:
        shape = next(self.shapes)
        start, self.start = self.start, self.start + prod(shape)
        return self.draws[start : self.start].reshape(shape)
