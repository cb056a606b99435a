"""How a run's progress is shown: a bar on a terminal, lines elsewhere."""

import shutil
import sys
from typing import Any

from tqdm import tqdm

from minifocal.training.listener import Listener
from minifocal.training.step import StepRecord
from minifocal.training.trainer import Trainer


class ProgressBar(Listener):
    """A bar of images with loss, accuracy, images/s and time left, for a terminal."""

    def on_start(self, trainer: Trainer) -> None:
        """Draw the bar, as far as the run has come."""
        images, progress = len(trainer.train), trainer.progress
        self.epochs, self.steps_per_epoch = trainer.config.epochs, trainer.steps_per_epoch
        self.validation = ""
        columns, lines = shutil.get_terminal_size()  # tqdm draws nothing where a terminal says that it has no size
        self.bar = tqdm(
            total=self.epochs * images,
            initial=progress.epoch * images + min(progress.step * trainer.config.batch_size, images),
            unit=" img",
            file=sys.stderr,
            ncols=columns,
            nrows=lines,
            bar_format="{desc} {percentage:3.0f}% |{bar:4}| {rate_fmt}, {remaining} left{postfix}",
        )

    def on_step(self, step: int, total: int, record: StepRecord, images: int) -> None:
        """Move the bar."""
        epoch = (step - 1) // self.steps_per_epoch + 1
        self.bar.set_description_str(f"epoch {epoch}/{self.epochs}", refresh=False)
        self._show(f"loss {record.loss:.2f}, {100 * record.accuracy:.0f} %{self.validation}")
        self.bar.update(images)

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Show the validation accuracy from now on."""
        self.validation = f", val {100 * record['val_accuracy']:.1f} %"
        self._show(f"loss {record['train_loss']:.2f}, {100 * record['train_accuracy']:.0f} %{self.validation}")
        self.bar.refresh()

    def on_message(self, message: str) -> None:
        """Print above the bar."""
        self.bar.write(message, file=sys.stderr)

    def on_end(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()

    def _show(self, text: str) -> None:
        self.bar.set_postfix_str(text, refresh=False)


class PlainLines(Listener):
    """A line an epoch, for files and pipes."""

    def on_start(self, trainer: Trainer) -> None:
        """Remember how many epochs there are."""
        self.epochs = trainer.config.epochs

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Print the epoch's line."""
        print(
            f"epoch {record['epoch']:>3}/{self.epochs}  loss {record['train_loss']:.4f}  "
            f"accuracy {100 * record['train_accuracy']:6.2f} %  validation {100 * record['val_accuracy']:6.2f} %  "
            f"{record['images_per_second']:.0f} images/s",
            flush=True,
        )

    def on_message(self, message: str) -> None:
        """Print to standard error."""
        print(message, file=sys.stderr)
