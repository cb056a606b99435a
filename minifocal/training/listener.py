"""Who hears of a run's progress: a bar, lines of text, a page, or several of them."""

from typing import TYPE_CHECKING, Any

from minifocal.training.step import StepRecord

if TYPE_CHECKING:
    from minifocal.training.trainer import Trainer


class Listener:
    """Hears of a run's progress; every method does nothing until it is overridden."""

    def on_start(self, trainer: "Trainer") -> None:
        """A run begins, or goes on."""

    def on_step(self, step: int, total: int, record: StepRecord, images: int) -> None:
        """A step is done: its number from 1, of how many, what it came to, and how many images it took.

        Of steps on a device it hears late, of up to FETCH_EVERY at a time.
        """

    def on_epoch(self, record: dict[str, Any]) -> None:
        """An epoch is done: its line of the metrics."""

    def on_message(self, message: str) -> None:
        """There is something that a person should know: one line."""

    def on_end(self) -> None:
        """The run has ended, however it did."""


class Listeners(Listener):
    """Several that hear of the same run, each in its turn."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def on_start(self, trainer: "Trainer") -> None:
        """Tell all of the start."""
        for listener in self.listeners:
            listener.on_start(trainer)

    def on_step(self, step: int, total: int, record: StepRecord, images: int) -> None:
        """Tell all of the step."""
        for listener in self.listeners:
            listener.on_step(step, total, record, images)

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Tell all of the epoch."""
        for listener in self.listeners:
            listener.on_epoch(record)

    def on_message(self, message: str) -> None:
        """Tell all of the message."""
        for listener in self.listeners:
            listener.on_message(message)

    def on_end(self) -> None:
        """Tell all of the end."""
        for listener in self.listeners:
            listener.on_end()
