"""Kills trainings at random moments, resumes them, and holds the ends against runs that were never killed.

    python tests/trust/kills.py --kills 200 --out tests/trust/kills.json

After every kill (SIGKILL, which no program hears) the folder is looked at: its last checkpoint loads, and of the files
that a dead writer left there is at most one. Half of the kills wait until a temporary file is seen, so that they fall
into saving. At the end weights, optimizer, progress and metrics equal those of the uninterrupted run, bit for bit.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from crash_runs import command, differences, finish, look, options, start, warm_up
from tqdm import tqdm

from minifocal.training.run_folder import CONFIG, LAST

OPTIMIZERS = ("sgd", "adamw")
MICROSECONDS = 1e-6


class Survey:
    """What has been seen: kills by where they fell, ends of runs, and what went wrong."""

    def __init__(self) -> None:
        self.kills: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []


def straight(folder: Path, settings: list[str]) -> float:
    """Train without a kill; give the seconds that it took."""
    begun = time.perf_counter()
    status = finish(start(command(folder, settings), folder.with_suffix(".log")))
    if status:
        raise SystemExit(f"the uninterrupted run failed with status {status}: see {folder.with_suffix('.log')}")
    return time.perf_counter() - begun


def writing(folder: Path) -> bool:
    """Whether a temporary file is there."""
    try:
        return any(".part" in name for name in os.listdir(folder))
    except FileNotFoundError:
        return False


def ended(child: int) -> bool:
    """Whether a process has ended; it can still be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill_at_some_moment(child: int, folder: Path, seconds: float, rng: random.Random) -> None:
    """Send SIGKILL after a random time; every other time only once something is being written after it."""
    until = time.perf_counter() + rng.uniform(0.0, 0.7 * seconds)
    into_saving = rng.random() < 0.5
    after = rng.choice((0.0, rng.uniform(0.0, 3000 * MICROSECONDS)))
    while time.perf_counter() < until and not ended(child):
        time.sleep(100 * MICROSECONDS)
    if into_saving:
        while not writing(folder) and not ended(child):
            time.sleep(20 * MICROSECONDS)
        time.sleep(after)
    os.kill(child, signal.SIGKILL)  # of a process that has ended too: it has not been waited for


def where(folder: Path) -> str:
    """Name the moment of a kill by what it left."""
    if writing(folder):
        return "a file half written"
    if not (folder / CONFIG).exists():
        return "before the settings were kept"
    return "between two saves" if (folder / LAST).exists() else "before the first checkpoint"


def survive(
    folder: Path, reference: Path, settings: list[str], seconds: float, rng: random.Random, left: int, survey: Survey
) -> int:
    """Train with kills until the run ends, or has been killed `left` times and then ends; give how often it was."""
    killed = 0
    while True:
        child = start(command(folder, settings), folder.with_suffix(".log"))
        if killed < left:
            kill_at_some_moment(child, folder, seconds, rng)
        status = finish(child)
        if status == 0:
            break
        if status != -signal.SIGKILL:
            survey.wrong.append(f"{folder.name}: lost with status {status} after {killed} kills")
            return killed
        killed += 1
        survey.kills[where(folder)] += 1
        try:
            look(folder)
        except (AssertionError, ValueError) as error:  # an InputError is a ValueError
            survey.wrong.append(f"{folder.name}: {error}")
    found = differences(reference, folder)
    survey.ends["of other bits" if found else "the same bits"] += 1
    survey.wrong += [f"{folder.name}: other {name}" for name in found]
    return killed


def main(argv: list[str] | None = None) -> int:
    """Kill, resume and compare; exit with status 1 where anything was lost or differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.splitlines()[2].strip())
    parser.add_argument("--kills", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--epochs", type=int, default=8, help="of each run: more of them, more saving (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--work", type=Path, help="folder for the runs, which is kept (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="where to write the record, as JSON")
    args = parser.parse_args(argv)
    work = args.work or Path(tempfile.mkdtemp(prefix="kills"))
    work.mkdir(parents=True, exist_ok=True)
    rng, survey = random.Random(args.seed), Survey()
    settings = {name: options(name, args.epochs, seed=3) for name in OPTIMIZERS}
    warm_up(work)
    seconds = {name: straight(work / name, settings[name]) for name in OPTIMIZERS}
    by_optimizer: Counter[str] = Counter()
    number = 0
    with tqdm(total=args.kills, unit=" kills", disable=not sys.stderr.isatty()) as bar:
        while (left := args.kills - sum(survey.kills.values())) > 0:
            optimizer = OPTIMIZERS[number % len(OPTIMIZERS)]
            folder = work / f"run-{number}"
            killed = survive(folder, work / optimizer, settings[optimizer], seconds[optimizer], rng, left, survey)
            by_optimizer[optimizer] += killed
            bar.update(killed)
            if not survey.wrong:
                shutil.rmtree(folder)
            number += 1
    if args.work is None and not survey.wrong:
        shutil.rmtree(work)
    record = {
        "command": f"python tests/trust/kills.py --kills {args.kills} --epochs {args.epochs} --seed {args.seed}",
        "kills": sum(survey.kills.values()),
        "kills by what they left": dict(sorted(survey.kills.items())),
        "kills by optimizer": dict(sorted(by_optimizer.items())),
        "runs": number,
        "ends": dict(sorted(survey.ends.items())),
        "wrong": survey.wrong,
    }
    text = json.dumps(record, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    return 1 if survey.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
