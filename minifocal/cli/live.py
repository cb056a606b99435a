"""`minifocal train --live`: a page in the browser that shows the training while it goes on."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from minifocal.errors import one_line
from minifocal.training.listener import Listeners
from minifocal.training.trainer import Trainer
from minifocal.viz.live import LiveView
from minifocal.viz.live_server import LiveServer

ANY_PORT = 0


def add_live_argument(parser: argparse.ArgumentParser) -> None:
    """Add --live."""
    text = (
        "serve a page with curves and gates while training, on this machine only and at an address that is printed and "
        "secret (default: on a port that is free)"
    )
    parser.add_argument("--live", type=int, nargs="?", const=ANY_PORT, metavar="PORT", help=text)


def live_again(port: int | None) -> str:
    """Give the option as it was given, for a command line."""
    return "" if port is None else f" --live {port}" if port else " --live"


@contextmanager
def live_view(port: int | None) -> Iterator[Callable[[Trainer], AbstractContextManager[None]]]:
    """Serve the page for as long as the `with` block lasts; without a port do nothing.

    The port is taken at once: before the data is read, and before the run has a folder.

    Args:
        port: of --live.
    Returns:
        a function that gives a context: while it lasts, the page follows that trainer's run.
    Raises:
        InputError: the port is no port, or taken.
    """
    if port is None:
        yield lambda trainer: nullcontext()
        return
    view = LiveView()
    with LiveServer(view.document, port) as server:

        @contextmanager
        def following(trainer: Trainer) -> Iterator[None]:
            print(f"live view: {server.url}", flush=True)
            view.title = one_line(str(trainer.folder))
            trainer.listener = Listeners(trainer.listener, view)
            try:
                yield
            except BaseException as error:
                view.fail(error)
                raise
            view.end()

        yield following
