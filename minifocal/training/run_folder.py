"""The folder of a run: what its files are called, and which checkpoint to go on from when one is lost or damaged."""

from pathlib import Path

from minifocal.errors import InputError
from minifocal.files import atomic_link, remove_partials, saving
from minifocal.training.checkpoint import Checkpoint, DamagedCheckpointError, load_checkpoint

LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"
CHECKPOINTS = (LAST, PREVIOUS, BEST)  # in the order in which a run is resumed from them
METRICS, CONFIG, CURVES = "metrics.jsonl", "config.json", "curves.png"
LOCK = "run.lock"


def holds_checkpoint(folder: Path) -> bool:
    """Whether a run in a folder has come as far as to save something."""
    return any((folder / name).exists() for name in CHECKPOINTS)


def keep_previous(folder: Path) -> None:
    """Let the last checkpoint stand as the previous one too, before a new last one is written.

    It is another name of the same file. So at every moment the last checkpoint is there, and once the new one is
    written, the one before as well.

    Raises:
        InputError: the folder cannot be written to.
    """
    if (folder / LAST).exists():
        with saving(folder / PREVIOUS):
            atomic_link(folder / LAST, folder / PREVIOUS)


def newest_checkpoint(folder: Path) -> tuple[Checkpoint, str | None]:
    """Read the last checkpoint of a run; where it is lost or damaged the previous one, then the best one.

    Returns:
        the checkpoint, and one line that says why it is not the last one; None where it is.
    Raises:
        InputError: none can be read; or the last one is whole, but not for this version or this user to read.
    """
    problem = None
    for name in CHECKPOINTS:
        path = folder / name
        if not path.exists():
            problem = problem or InputError(f"there is no checkpoint {path}")
            continue
        try:
            checkpoint = load_checkpoint(path)
        except DamagedCheckpointError as error:
            problem = problem if isinstance(problem, DamagedCheckpointError) else error
        else:
            return checkpoint, None if problem is None else f"{problem}; going on from {path.name}, which is whole"
    assert problem is not None
    raise problem


def remove_leftovers(folder: Path) -> None:
    """Remove half-written files of runs that were killed; call it when no other run can be writing here."""
    for name in (*CHECKPOINTS, METRICS, CONFIG, CURVES):
        remove_partials(folder / name)
