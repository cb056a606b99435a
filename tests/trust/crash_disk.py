"""Lets disks run full and folders be read-only: an error of one line, the last checkpoint stands, the run goes on.

    python tests/trust/crash_disk.py --out tests/trust/crash_disk.json

A limit on the size of files (RLIMIT_FSIZE) stands for a full disk anywhere. As root, small file systems in memory run
full as well, at many sizes, and are mounted read-only. After every failure the run is resumed with room, and its end
held against a run that never met one, bit for bit.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from crash_runs import command, differences, finish, look, options, start, warm_up
from tqdm import tqdm

from minifocal.training.run_folder import LAST, holds_checkpoint

EPOCHS = 4
SETTINGS = options("sgd", EPOCHS, seed=3)
ENOUGH = "64m"


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond a size; Python ignores the signal, so writing fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def failed_well(status: int, folder: Path, log: Path) -> str:
    """Name how a training failed for want of room: well, or what is wrong."""
    said = log.read_text().splitlines()
    line = said[-1] if said else ""
    if status != 2 or not line.startswith("minifocal train: cannot write "):
        return f"WRONG: status {status}, {line!r}"
    if any("Traceback" in text for text in said):
        return "WRONG: a traceback"
    if folder.is_dir() and any(".part" in path.name for path in folder.iterdir()):
        return "WRONG: a file half written is left"
    look(folder)
    stands = holds_checkpoint(folder)
    if stands and "the last checkpoint stands, go on with: " not in line and "curves.png" not in line:
        return f"WRONG: nothing said of the checkpoint: {line!r}"
    return "refused in one line, a checkpoint stands" if stands else "refused in one line, before the first checkpoint"


def goes_on(reference: Path, folder: Path, log: Path) -> str:
    """Begin again or resume, now with room; say whether the run ends as the reference does."""
    status = finish(start(command(folder, SETTINGS), log))
    found = [f"status {status}"] if status else differences(reference, folder)
    return f"WRONG: {found}" if found else "then ends with the same bits"


def limited(reference: Path, folder: Path, size: int) -> list[str]:
    """Train with a limit on files of `size` bytes, then without."""
    log = folder.with_suffix(".log")
    status = finish(start(command(folder, SETTINGS), log, lambda: limit_files(size)))
    seen = [failed_well(status, folder, log), goes_on(reference, folder, log)]
    shutil.rmtree(folder)
    log.unlink()
    return seen


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """Mount a file system in memory of a size."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def remount(place: Path, what: str) -> None:
    """Change how a file system is mounted."""
    subprocess.run(["mount", "-o", f"remount,{what}", str(place)], check=True)


def full_disk(reference: Path, place: Path, kilobytes: int) -> list[str]:
    """Train on a disk of a size, then make room and go on."""
    log = place.with_suffix(".log")
    folder = place / "run"
    with small_disk(place, f"{kilobytes}k"):
        status = finish(start(command(folder, SETTINGS), log))
        if status == 0:
            seen = ["enough room"]
        else:
            seen = [failed_well(status, folder, log)]
            remount(place, f"size={ENOUGH}")
            seen.append(goes_on(reference, folder, log))
    log.unlink()
    return seen


def read_only(reference: Path, place: Path) -> list[str]:
    """Begin, resume and evaluate a run in a folder that nothing can be written to; then go on."""
    log = place.with_suffix(".log")
    seen = []
    with small_disk(place, ENOUGH):
        shutil.copytree(reference, place / "run")
        remount(place, "ro")
        for folder in (place / "new", place / "run"):
            status = finish(start(command(folder, SETTINGS), log))
            line = log.read_text().splitlines()[-1]
            well = status == 2 and "cannot write" in line and "Read-only file system" in line
            seen.append("refused in one line" if well else f"WRONG: status {status}, {line!r}")
        status = finish(start(["evaluate", str(place / "run")], log))
        seen.append(f"WRONG: evaluate gave status {status}" if status else "evaluated without writing")
        remount(place, "rw")
        seen.append(goes_on(reference, place / "run", log))
    return seen


def main(argv: list[str] | None = None) -> int:
    """Fill disks; exit with status 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.splitlines()[2].strip())
    parser.add_argument("--times", type=int, default=20, help="of each kind (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the sizes (default: 0)")
    parser.add_argument("--no-mounts", action="store_true", help="only the limits on files, also as root")
    parser.add_argument("--out", type=Path, help="where to write the record, as JSON")
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    seen: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="disk") as temporary:
        work = Path(temporary)
        warm_up(work)
        reference = work / "reference"
        assert finish(start(command(reference, SETTINGS), work / "reference.log")) == 0
        # Checkpoints grow by a line of history an epoch: a limit a little below the last one's size ends the run in
        # an epoch; one anywhere below, before the first.
        largest = (reference / LAST).stat().st_size
        sizes = [largest - 1 - rng.randrange(900) if n % 2 else rng.randrange(2000, largest) for n in range(args.times)]
        seen["files limited in size"] = Counter()
        for size in tqdm(sizes, disable=not sys.stderr.isatty()):
            seen["files limited in size"].update(limited(reference, work / "run", size))
        if not args.no_mounts and os.geteuid() == 0:
            needed = sum(path.stat().st_size for path in reference.iterdir()) // 1024
            seen["full disk"], seen["read-only"] = Counter(), Counter()
            for kilobytes in tqdm(rng.sample(range(8, needed + 40), args.times), disable=not sys.stderr.isatty()):
                seen["full disk"].update(full_disk(reference, work / "disk", kilobytes))
            seen["read-only"].update(read_only(reference, work / "disk"))
    shown = f"python tests/trust/crash_disk.py --times {args.times} --seed {args.seed}"
    counts = {name: dict(sorted(counter.items())) for name, counter in seen.items()}
    text = json.dumps({"command": shown, **counts}, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    return 1 if "WRONG" in text else 0


if __name__ == "__main__":
    sys.exit(main())
