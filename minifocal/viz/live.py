"""What a page shows of a training under way: curves, numbers, and the gates of a few images.

Whoever watches changes nothing of the training: gates are taken by an inference between two steps, which draws no
random number and writes to nothing that the training reads.
"""

import base64
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from minifocal.arrays import as_numpy, overflow_is_looked_for
from minifocal.data.dataset import Dataset
from minifocal.errors import one_line
from minifocal.models.config import FOCAL
from minifocal.models.focalnet import FocalNet
from minifocal.threads import one_blas_thread
from minifocal.training.listener import Listener
from minifocal.training.step import StepRecord, load_batch
from minifocal.training.trainer import Trainer
from minifocal.viz.canvas import POSITIVE, SIGNED, as_rgb, colour_table
from minifocal.viz.live_server import Document
from minifocal.viz.maps import GATE, BlockMaps, block_maps

IMAGES = 6
POINTS = 1024  # of a curve by step; of more, each two neighbours become one
TELL_SECONDS = 0.25  # at least, between two messages of steps
GATE_SECONDS = 5.0  # at least, between two looks at the gates within an epoch
GATE_SHARE = 0.05  # of the time, at most, goes into looking at gates
TRAINING, FINISHED, STOPPED, FAILED = "training", "finished", "stopped", "failed"


class LiveView(Listener):
    """Keeps a document up to date with a run.

        view = LiveView()
        with LiveServer(view.document) as server:
            Trainer(..., listener=view).fit()

    Args:
        title: of the page, such as the run's folder; of any letters.
    """

    def __init__(self, title: str = "") -> None:
        self.title = one_line(title)
        self.document = Document(
            run={"title": self.title},
            status={"kind": TRAINING, "text": "preparing"},
            points=[],
            stride=1,
            now=None,
            epochs=[],
            gates=None,
            messages=[],
        )

    def on_start(self, trainer: Trainer) -> None:
        """Tell what the run is, what it did before it was resumed, and the gates as they are."""
        self.trainer = trainer
        self.curve = Curve()
        self.new_points: list[list[float]] = []
        self.now: dict[str, float] | None = None
        self.told = self.looked = time.monotonic()
        self.looked_at = -1  # the step after which the gates were looked at last
        self.chosen = choose_images(trainer.validation)
        self.document.set(
            run=describe_run(self.title, trainer, self.chosen),
            status={"kind": TRAINING, "text": "training"},
            epochs=list(trainer.history),
        )
        self._tell_gates()
        self.pause = 0.0  # seconds until the next look may be; the first look, which may compile, does not count

    def on_step(self, step: int, total: int, record: StepRecord, images: int) -> None:
        """Tell of the steps since the last message, unless that was a moment ago."""
        rate = self.trainer.schedule(step - 1)
        self.now = {"step": step, "loss": record.loss, "accuracy": record.accuracy, "lr": rate}
        point = self.curve.add(step, record.loss, record.accuracy, rate)
        if point is not None:
            self.new_points.append(point)
        now = time.monotonic()
        if now - self.told >= TELL_SECONDS:
            self._tell_steps()
        if now - self.looked >= max(GATE_SECONDS, self.pause):
            self._tell_gates()

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Tell the epoch's numbers, and its gates."""
        self._tell_steps()
        self.document.append(epochs=[record])
        if time.monotonic() - self.looked >= self.pause:
            self._tell_gates()

    def on_message(self, message: str) -> None:
        """Tell it."""
        self.document.append(messages=[one_line(message)])

    def on_end(self) -> None:
        """Tell the last steps."""
        self._tell_steps()

    def end(self) -> None:
        """Tell that the run is over, and the gates that it ends with."""
        self._tell_gates()
        if self.trainer.finished:
            self.document.set(status={"kind": FINISHED, "text": "all epochs are done"})
        else:
            self.document.set(status={"kind": STOPPED, "text": "stopped and saved after a step; it can be resumed"})

    def fail(self, error: BaseException) -> None:
        """Tell that the run is over, and what ended it."""
        if isinstance(error, KeyboardInterrupt):
            text = "stopped within a step; it can be resumed from its last checkpoint"
            self.document.set(status={"kind": STOPPED, "text": text})
        else:
            self.document.set(status={"kind": FAILED, "text": one_line(str(error)) or type(error).__name__})

    def _tell_steps(self) -> None:
        self.told = time.monotonic()
        if self.now is None:
            return
        if self.curve.was_thinned:
            self.curve.was_thinned = False
            self.document.set(now=self.now, points=list(self.curve.points), stride=self.curve.stride)
        else:
            if self.new_points:
                self.document.append(points=self.new_points)
            self.document.set(now=self.now)
        self.new_points = []

    def _tell_gates(self) -> None:
        started = time.monotonic()
        step = steps_done(self.trainer)
        if step == self.looked_at:
            return
        self.document.set(gates={"step": step, **look(self.trainer, self.chosen)})
        self.looked_at = step
        self.looked = time.monotonic()
        self.pause = (self.looked - started) / GATE_SHARE


def steps_done(trainer: Trainer) -> int:
    """Count the steps of a run that are behind its weights."""
    return trainer.progress.epoch * trainer.steps_per_epoch + trainer.progress.step


class Curve:
    """A curve by step that never has more than POINTS points.

    A point is [step, loss, accuracy, learning rate]: of `stride` steps the last one's number and rate, and the means of
    the others.
    """

    def __init__(self) -> None:
        self.points: list[list[float]] = []
        self.stride = 1
        self.was_thinned = False
        self._waiting: list[list[float]] = []

    def add(self, step: int, loss: float, accuracy: float, lr: float) -> list[float] | None:
        """Add a step; give the point that it completes, if any."""
        self._waiting.append([step, loss, accuracy, lr])
        if len(self._waiting) < self.stride:
            return None
        point, self._waiting = _mean_point(self._waiting), []
        self.points.append(point)
        if len(self.points) >= POINTS:
            self.points = [_mean_point(self.points[at : at + 2]) for at in range(0, len(self.points), 2)]
            self.stride *= 2
            self.was_thinned = True
        return point


def _mean_point(points: Sequence[Sequence[float]]) -> list[float]:
    losses, accuracies = ([point[at] for point in points] for at in (1, 2))
    return [points[-1][0], sum(losses) / len(points), sum(accuracies) / len(points), points[-1][3]]


def choose_images(data: Dataset) -> np.ndarray:
    """Choose IMAGES images, always the same ones: the first of classes far apart, then of others, then second ones."""
    seen = [0] * data.num_classes
    ranks = np.empty(len(data), dtype=np.int64)  # how many of its class come before an image
    for at, label in enumerate(data.labels.tolist()):
        ranks[at] = seen[label]
        seen[label] += 1
    order = np.lexsort((data.labels, ranks))
    first = np.count_nonzero(ranks == 0)
    if first > IMAGES:
        order = order[np.linspace(0, first - 1, IMAGES).round().astype(np.int64)]
    return order[:IMAGES]


def describe_run(title: str, trainer: Trainer, chosen: np.ndarray) -> dict[str, Any]:
    """Give what stays the same in a run: its size, its colours, and the images whose gates are shown."""
    data = trainer.validation
    model = trainer.model
    assert isinstance(model, FocalNet)
    height, width = data.image_size
    return {
        "title": title,
        "network": f"{model.config.modulation}, {model.count_parameters():,} parameters, on {model.device}",
        "epochs": trainer.config.epochs,
        "steps_per_epoch": trainer.steps_per_epoch,
        "total_steps": trainer.schedule.total_steps,
        "first_step": steps_done(trainer),
        "colours": {name: _encoded(colour_table(name, 256)) for name in (SIGNED, POSITIVE)},
        "images": [
            {
                "class": one_line(data.class_names[data.labels[at]]),
                "height": height,
                "width": width,
                "pixels": _encoded(rgb_pixels(data.images[at], data.max_value)),
            }
            for at in chosen
        ],
    }


def rgb_pixels(image: np.ndarray, max_value: float) -> np.ndarray:
    """Give an image (C, H, W) as (H, W, 3) bytes; in grey, the mean of its channels, unless it has three of them."""
    return (255 * as_rgb(image / max_value)).round().astype(np.uint8)


def look(trainer: Trainer, chosen: np.ndarray) -> dict[str, Any]:
    """Give what the network makes of the chosen images now: its guesses, and the maps of each block.

    Each row of maps has one scale for all images. Gates of either sign lie around zero, sigmoids' between 0 and 1, and
    norms from zero up.
    """
    model, data = trainer.model, trainer.validation
    assert isinstance(model, FocalNet)
    images, _ = load_batch(model, data, trainer.standardize, data.images[chosen], data.labels[chosen])
    with overflow_is_looked_for(), one_blas_thread():  # so few images are done before threads have met
        logits, cache = model.forward(images)
        guesses = _guesses(as_numpy(logits).astype(np.float64), data.class_names)
        by_image = [block_maps(model, cache, at) for at in range(len(chosen))]
    signed = model.config.modulation == FOCAL
    return {"guesses": guesses, "blocks": [_block(block, signed) for block in zip(*by_image, strict=True)]}


def _guesses(logits: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    guesses = []
    for scores in logits:
        likelihoods = np.exp(scores - scores.max())
        share = float(likelihoods.max() / likelihoods.sum())
        known = np.isfinite(share)
        guesses.append({"class": one_line(names[scores.argmax()]), "probability": share if known else None})
    return guesses


def _block(block: Sequence[BlockMaps], signed_gates: bool) -> dict[str, Any]:
    """Give the maps of one block, for all images."""
    rows = []
    for maps in zip(*(image.maps for image in block), strict=True):
        values = np.stack([seen.values for seen in maps]).astype("<f4")
        finite = values[np.isfinite(values)]
        largest = float(abs(finite).max()) if finite.size else 0.0
        signed = maps[0].kind == GATE and signed_gates
        high = 1.0 if maps[0].kind == GATE and not signed else largest or 1.0
        rows.append(
            {
                "name": maps[0].name,
                "colours": SIGNED if signed else POSITIVE,
                "low": -high if signed else 0.0,
                "high": high,
                "values": [_encoded(image) for image in values],
            }
        )
    height, width = block[0].maps[0].values.shape
    return {"name": block[0].name, "height": height, "width": width, "rows": rows}


def _encoded(array: np.ndarray) -> str:
    """Give the bytes of an array as text."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
