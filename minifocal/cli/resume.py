"""What `minifocal train --resume` goes on with: the folder, and the settings with which its run began."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minifocal.cli.common import RUNS, newest_run
from minifocal.errors import InputError
from minifocal.interop.descriptions import read_json
from minifocal.training.run_folder import CHECKPOINTS, CONFIG, newest_checkpoint


def resumed_settings(args: argparse.Namespace, execution: Iterable[str]) -> tuple[Path, dict[str, Any]]:
    """Give the folder in --out, or the newest under runs, and the settings of its run.

    Args:
        args: of `minifocal train`. execution: the options that a run may be resumed with.
    Raises:
        InputError: other options were given, or there is no run, or nothing there says its settings.
    """
    free = ("resume", "out", "command", "run", "live", *execution)
    given = [name for name, value in vars(args).items() if name not in free and value is not None]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"--resume goes on as the run began: leave {names} out, or start a new run")
    folder = args.out or newest_run((*CHECKPOINTS, CONFIG))  # a run that was killed early has no checkpoint yet
    if folder is None:
        raise InputError(f"there is no run under {RUNS} to resume; name its folder with --out")
    path = folder / CONFIG
    try:
        return folder, read_json(path)
    except InputError as error:
        problem = f"{folder} holds no run to resume ({error}); name a run's folder with --out, or start a new run"
        settings = _settings_of_checkpoint(folder, problem, error)
    print(f"minifocal train: {path} is lost or damaged: taking the settings that the checkpoint keeps", file=sys.stderr)
    return folder, settings


def _settings_of_checkpoint(folder: Path, problem: str, cause: Exception) -> dict[str, Any]:
    """Give the settings that stand in a run's checkpoints too; without them, raise an error of the problem."""
    try:
        settings = newest_checkpoint(folder)[0].meta["settings"]
    except (InputError, KeyError):
        raise InputError(problem) from cause
    if not isinstance(settings, dict):
        raise InputError(problem) from cause
    return settings
