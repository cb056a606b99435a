"""A run: epochs of training steps, validation and checkpoints, which can be stopped and resumed without a trace."""

import json
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minifocal.arrays import Generator, as_floats, is_on_host, overflow_is_looked_for, random_generator
from minifocal.data.dataset import Dataset, Standardize, batch_indices
from minifocal.errors import InputError, check_integer
from minifocal.files import atomic_link, saving, write_bytes
from minifocal.layers.base import Layer
from minifocal.layers.finite import NotFiniteError, check_finite
from minifocal.training.checkpoint import save_checkpoint
from minifocal.training.distributed import BatchDraws, GradientExchange, part_of_batch
from minifocal.training.fingerprint import check_same, digest, fingerprint
from minifocal.training.graphs import StepGraph
from minifocal.training.listener import Listener
from minifocal.training.loss_scale import LossScaler
from minifocal.training.progress import Progress
from minifocal.training.ranks import ALONE, Ranks
from minifocal.training.run_folder import BEST, LAST, METRICS, keep_previous, newest_checkpoint
from minifocal.training.schedule import WarmupCosine
from minifocal.training.signals import first_signal
from minifocal.training.step import Evaluation, StepRecord, evaluate, fetch_records, load_batch, train_step
from minifocal.training.train_config import TrainConfig

FETCH_EVERY = 16
"""Steps on a device between two looks at what they came to: each look waits for it."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says what to try."""


class Trainer:
    """A run: trains, validates after every epoch, and keeps the last and the best weights.

    Everything random comes from config.seed: the order of the images of epoch e from (seed, e), augmentation and drop
    path from one generator whose state is saved. So a run that was stopped and resumed ends with the same bits as one
    that never was.

    Args:
        model: to train, on its device.
        train, validation: images; validation only chooses the best weights and draws a curve.
        standardize: measured on the training images.
        config: how to train.
        folder: where checkpoints and metrics go; None keeps nothing. Two runs in one folder would write over each
            other: `minifocal train` holds `files.only_one` there.
        meta: stored in every checkpoint beside progress, class names, scaling of pixels and configuration.
        listener: hears of every step and epoch.
        graph: replay each step in one launch, as StepGraph does; for a small model on a GPU.
        micro_batch: how many images a thread, or a device, computes at a time at most, their gradients added up; None
            lets the network choose. It changes the memory (but not that of what dropout draws, which is drawn for the
            whole batch), and the numbers by rounding alone.
        ranks: who trains together: as many processes as there are each call this with the same arguments, but for the
            folder, which the first alone has; each computes its part of every batch. The model may be of any seed: all
            begin with the first one's.
        check_finite: look at every number that a layer makes, as `check_finite` does, and end at the first that is
            not finite; in float16, where gradients may overflow, on the way forward alone. It changes no bit.
    Raises:
        InputError: a graph for a model that StepGraph refuses, or together with check_finite or other ranks, a batch
            larger than the data, a warm-up as long as the training, images that do not fit.
    """

    def __init__(
        self,
        model: Layer,
        train: Dataset,
        validation: Dataset,
        standardize: Standardize,
        config: TrainConfig,
        *,
        folder: Path | None = None,
        meta: dict[str, Any] | None = None,
        listener: Listener | None = None,
        graph: bool = False,
        micro_batch: int | None = None,
        ranks: Ranks = ALONE,
        check_finite: bool = False,
    ) -> None:
        if micro_batch is not None:
            check_integer("micro_batch", micro_batch, at_least=1)
        if graph and ranks.size > 1:
            raise InputError("a graph replays a step of one process: leave it out where several train together")
        if graph and check_finite:
            raise InputError(
                "a graph replays a whole step, and check_finite looks at each layer: leave one of them out"
            )
        if config.batch_size > len(train):
            raise InputError(
                f"batch larger than the data: batch_size {config.batch_size}, but only {len(train)} images to train "
                f"on; use a batch_size of at most {len(train)}"
            )
        self.model, self.train, self.validation = model, train, validation
        self.standardize, self.config, self.folder = standardize, config, folder
        self.meta = meta or {}
        self.listener = listener or Listener()
        self.check_finite = check_finite
        self.optimizer = config.make_optimizer(model)
        self.scaler = LossScaler(model) if model.ops.precision == "float16" else None
        self._step_options: dict[str, Any] = {
            "label_smoothing": config.label_smoothing,
            "clip_norm": config.clip_norm or None,
            "scaler": self.scaler,
            "micro_batch": micro_batch,
        }
        self.ranks = ranks
        self._exchange = GradientExchange(model, ranks) if ranks.size > 1 else None
        self._graph = StepGraph(model, self.optimizer, **self._step_options) if graph else None
        self.rng = random_generator(config.seed, 1)
        self.progress = Progress()
        self.steps_per_epoch = math.ceil(len(train) / config.batch_size)
        total = self.steps_per_epoch * config.epochs
        warmup = min(50, total // 10) if config.warmup_steps is None else config.warmup_steps
        self.schedule = WarmupCosine(config.lr, total, warmup)
        self._stop = False
        self.stopped_by: int | None = None  # the signal that asked to stop
        self._pending: deque[tuple[int, StepRecord, int]] = deque()  # number, record and images of steps not settled
        self._fetch_every = 1 if is_on_host(next(model.parameters()).data) else FETCH_EVERY
        self._try_images()

    def _try_images(self) -> None:
        """Infer an image, whole and augmented: sizes that do not fit are refused before anything is kept."""
        one = self.train.images[:1]
        for pixels in (one, self.config.augmentation(one, random_generator(0))):
            images, _ = load_batch(self.model, self.train, self.standardize, pixels, self.train.labels[:1])
            self.model(images)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.progress.epoch >= self.config.epochs

    @property
    def history(self) -> list[dict[str, Any]]:
        """The metrics of each finished epoch."""
        return self.progress.history

    def fit(self) -> bool:
        """Train until the last epoch is done, or Ctrl-C or SIGTERM asks to stop.

        The first signal lets the step under way end, saves and returns, and `stopped_by` is its number; a second one
        does at once what it did before, and the last checkpoint before stands.

        Returns:
            whether the training is finished.
        Raises:
            TrainingError: the loss is no longer finite, or, with check_finite, a number in a layer.
            InputError: the folder cannot be written to; the last checkpoint stands.
        """
        self._stop, self.stopped_by = False, None
        self.listener.on_start(self)
        try:
            with first_signal(self._ask_to_stop), overflow_is_looked_for(), self._look_into_layers():
                self._begin_together()
                self._save()
                while not self.finished and not self.ranks.any(self._stop):
                    self._epoch()
                # Nobody leaves, and is open to signals again, before the first has saved.
                self.stopped_by = next(filter(None, self.ranks.gather(self.stopped_by)), None)
        finally:
            self.listener.on_end()
        return self.finished

    def _ask_to_stop(self, number: int) -> None:
        self._stop, self.stopped_by = True, number

    def _begin_together(self) -> None:
        """Refuse ranks that train something else; let all begin where the first one stands."""
        if self.ranks.size == 1:
            return
        check_same(self.ranks, fingerprint(self.model, self.train, self.validation, self._identity()))
        states = [self.model.state_dict(), self.optimizer.state_dict()]
        states += [] if self.scaler is None else [self.scaler.state_dict()]
        self.ranks.broadcast([array for state in states for array in state.values()])
        standing = self.progress, self.rng.bit_generator.state, self.optimizer.steps
        self.progress, self.rng.bit_generator.state, self.optimizer.steps = self.ranks.from_first(lambda: standing)

    def resume(self) -> str | None:
        """Go on from the last checkpoint in the folder; from the one before, or the best one, where it is damaged.

        Returns:
            one line for a person where it is not the last one, else None.
        Raises:
            InputError: there is none that is whole, or it is of another model, data or training.
        """
        assert self.folder is not None, "only a run with a folder can be resumed"
        checkpoint, message = newest_checkpoint(self.folder)
        if "progress" not in checkpoint.meta:
            raise InputError(f"{checkpoint.path} holds no run to resume; start a new one")
        kept = {**checkpoint.meta, "network": checkpoint.description}
        network = json.loads(json.dumps(self.model.describe()))
        for name, value in {**self._identity(), "network": network}.items():
            if kept.get(name) != value:
                there, here = map(_short, _difference(kept.get(name), value))
                raise InputError(
                    f"{checkpoint.path} is of a run that differs in {name} ({there}, here {here}); start a new run"
                )
        rng = random_generator(self.config.seed, 1)
        try:
            progress = Progress.read(checkpoint.meta["progress"], rng)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"{checkpoint.path} holds no run to resume: {error}") from error
        checkpoint.restore(self.model, self.optimizer, self.scaler)
        self.progress, self.rng = progress, rng
        self._pending.clear()
        if message is not None:  # before anything new is saved: a damaged file must not become the previous one
            with saving(self.folder / LAST):
                atomic_link(checkpoint.path, self.folder / LAST)
        return message

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed, and what predicting needs; as JSON gives it back."""
        identity = {
            "class_names": self.train.class_names,
            "images": len(self.train),
            "standardize": self.standardize.to_dict(),
            "training": self.config.to_dict(),
        }
        return json.loads(json.dumps(identity))

    def _epoch(self) -> None:
        progress, config = self.progress, self.config
        started = time.perf_counter() - progress.seconds
        order = batch_indices(len(self.train), config.batch_size, self._order(progress.epoch))
        for number, batch in enumerate(order):
            if number < progress.step:  # done before the run was stopped
                continue
            self._step(batch)
            progress.step = number + 1
            ends = progress.step == self.steps_per_epoch
            if ends or self._stop or len(self._pending) >= self._fetch_every:
                self._settle()
            progress.seconds = time.perf_counter() - started
            if not ends and self.ranks.any(self._stop):
                self._check_parameters()
                self._save()
                return
        self._end_epoch()

    def _step(self, batch: Any) -> None:
        progress, config = self.progress, self.config
        draws: Any = self.rng
        own, weight = batch, 1.0
        if self._exchange is not None:
            part, weight = part_of_batch(self.ranks, len(batch))
            draws, own = BatchDraws(self.rng, len(batch), part), batch[part]
        pixels = config.augmentation(self.train.images[own], draws)
        images, labels = load_batch(self.model, self.train, self.standardize, pixels, self.train.labels[own])
        step = progress.epoch * self.steps_per_epoch + progress.step
        self.optimizer.lr = self.schedule(step)
        if self._graph is None:
            together = {"weight": weight, "exchange": self._exchange, **self._step_options}
            record = train_step(self.model, self.optimizer, images, labels, draws, **together)
        else:
            record = self._graph(images, labels, self.rng)
        self._pending.append((step + 1, record, len(batch)))

    def _settle(self) -> None:
        """Look at the steps since the last look: end a run that diverged, add them up and tell the listener."""
        fetch_records([record for _, record, _ in self._pending])
        while self._pending:
            step, record, images = self._pending.popleft()
            self._check_finite(record.loss)
            self.progress.loss_sum += record.loss * images
            self.progress.right += round(record.accuracy * images)
            self.listener.on_step(step, self.schedule.total_steps, record, images)

    def _end_epoch(self) -> None:
        progress, count = self.progress, len(self.train)
        if self.ranks.size > 1:
            weights = {"weights": digest(self.model.state_dict().values())}
            check_same(self.ranks, weights, "machines of one kind compute alike")
        validation = self.evaluate(self.validation)
        self._check_finite(validation.loss)
        record = {
            "epoch": progress.epoch + 1,
            "lr": self.optimizer.lr,
            "train_loss": progress.loss_sum / count,
            "train_accuracy": progress.right / count,
            "val_loss": validation.loss,
            "val_accuracy": validation.accuracy,
            "seconds": progress.seconds,
            "images_per_second": count / progress.seconds,
        }
        progress.history.append(record)
        progress.epoch += 1
        progress.step, progress.loss_sum, progress.right, progress.seconds = 0, 0.0, 0, 0.0
        # Best before last: a run killed between the two repeats the epoch and writes the same best again.
        if max(progress.history, key=_goodness) is record:
            self._save(BEST)
        self._save()
        self.listener.on_epoch(record)
        self._warn_at_chance(record)

    def evaluate(self, dataset: Dataset) -> Evaluation:
        """Measure the model on a dataset, all ranks together."""
        return evaluate(self.model, dataset, self.standardize, ranks=self.ranks)

    @contextmanager
    def _look_into_layers(self) -> Iterator[None]:
        """With check_finite, end the run at the first layer that gives a number that is not finite."""
        if not self.check_finite:
            yield
            return
        try:
            with check_finite(self.model, gradients=self.scaler is None):
                yield
        except NotFiniteError as error:
            progress = self.progress
            done = progress.epoch * self.steps_per_epoch + progress.step
            raise TrainingError(f"after {done} steps, in epoch {progress.epoch + 1}: {error}") from error

    def _check_finite(self, value: float, what: str = "the loss") -> None:
        """End a run that has diverged, before anything of it is saved."""
        if not math.isfinite(value):
            hint = "every layer's output was finite" if self.check_finite else "check_finite names the layer"
            raise TrainingError(
                f"{what} is {value} in epoch {self.progress.epoch + 1}; try a smaller learning rate "
                f"(lr {self.config.lr / 3:.2g}), a longer warm-up or another initialisation; the last checkpoint is "
                f"from before; {hint}"
            )

    def _check_parameters(self) -> None:
        for largest in as_floats([abs(parameter.data).max() for parameter in self.model.parameters()]):
            self._check_finite(largest, "a weight")

    def _warn_at_chance(self, record: dict[str, Any]) -> None:
        """Say so, once, when a tenth of the training (three epochs at least) has taught the model nothing."""
        classes = self.train.num_classes
        patience = max(3, self.config.epochs // 10)
        guessing = record["val_loss"] > 0.98 * math.log(classes) and record["val_accuracy"] < 1.5 / classes
        if record["epoch"] == patience and guessing:
            self.listener.on_message(
                f"after {patience} epochs the network still guesses (validation loss {record['val_loss']:.2f} of "
                f"ln {classes} = {math.log(classes):.2f}): see that it can overfit 8 images first, try another "
                'learning rate, or another initialisation ("lecun" suits networks of a few dozen channels)'
            )

    def _save(self, name: str = LAST) -> None:
        self._settle()  # a stop asked for just now, or a run that was interrupted, may have left some
        if self.folder is None:
            return
        self.progress.rng_state = self.rng.bit_generator.state
        meta = {**self.meta, **self._identity(), "progress": asdict(self.progress)}
        if name == LAST:
            keep_previous(self.folder)
        save_checkpoint(self.folder / name, self.model, self.optimizer, self.scaler, **meta)
        if name == LAST:
            lines = "".join(json.dumps(record) + "\n" for record in self.history)
            write_bytes(self.folder / METRICS, lines.encode())

    def _order(self, epoch: int) -> Generator:
        return random_generator(self.config.seed, 0, epoch)


def _goodness(record: dict[str, Any]) -> tuple[float, float]:
    """What the best weights are chosen by: validation accuracy, and the loss where it is equal."""
    return record["val_accuracy"], -record["val_loss"]


def _difference(there: Any, here: Any) -> tuple[Any, Any]:
    """Give what differs in two values: of dictionaries, the entries that do."""
    if not isinstance(there, dict) or not isinstance(here, dict):
        return there, here
    names = [name for name in there | here if there.get(name) != here.get(name)]
    pairs = {name: _difference(there.get(name), here.get(name)) for name in names}
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
