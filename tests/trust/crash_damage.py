"""Cuts and flips bytes in the files of a run: nothing damaged is loaded silently, and the run goes on to the same end.

    python tests/trust/crash_damage.py --out tests/trust/crash_damage.json

A damaged last checkpoint is given to every reader: `load_checkpoint`, `open_pretrained` (which evaluate and the others
use) and resuming. Each refuses it in one line, or goes on from the checkpoint before; a byte of padding whose change
alters nothing may be read as before. The settings and the metrics are cut as well.
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crash_runs import command, differences, finish, options, parts, start, warm_up
from tqdm import tqdm

from minifocal import InputError, load_checkpoint
from minifocal.cli import main as minifocal
from minifocal.cli import make_parser
from minifocal.cli.resume import resumed_settings
from minifocal.cli.train import EXECUTION_OPTIONS
from minifocal.interop import open_pretrained
from minifocal.training.run_folder import CONFIG, LAST, METRICS, PREVIOUS, newest_checkpoint

EPOCHS = 3
KINDS = ("cut", "flipped byte")


def damages(content: bytes, each: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Give damaged contents: cut somewhere, then with one byte changed somewhere."""
    for _ in range(each):
        yield KINDS[0], content[: rng.randrange(len(content))]
    for _ in range(each):
        place = rng.randrange(len(content))
        yield KINDS[1], content[:place] + bytes([content[place] ^ rng.randrange(1, 256)]) + content[place + 1 :]


def outcome(read: Callable[[], Any], right: Any) -> str:
    """Read something that is damaged: say whether it was refused, or came out the same, or otherwise."""
    try:
        value = read()
    except InputError as error:
        return "refused in one line" if str(error).isprintable() else f"refused in other than a line: {error!r}"
    return "read as before" if value == right else "WRONG NUMBERS"


def weights(path: Path) -> dict[str, bytes]:
    """Build the network from a file of weights; give its numbers."""
    return {name: array.tobytes() for name, array in open_pretrained(path).build().state_dict().items()}


def resumed_from(folder: Path) -> str:
    """Name the checkpoint that a run would go on from."""
    checkpoint, message = newest_checkpoint(folder)
    assert (message is None) == (checkpoint.path.name == LAST)
    assert message is None or message.isprintable()
    return checkpoint.path.name


def ends_as(reference: Path, folder: Path) -> str:
    """Resume a run in a process of its own; say whether it ends as the reference does."""
    status = finish(start(command(folder, []), folder.with_suffix(".log")))
    found = [f"status {status}"] if status else differences(reference, folder)
    return f"WRONG: {found}" if found else "ends with the same bits"


def damage_checkpoints(reference: Path, folder: Path, each: int, whole: int, rng: random.Random) -> dict[str, Any]:
    """Damage the last checkpoint of a finished run; count what its readers make of it."""
    content = (reference / LAST).read_bytes()
    right, numbers = parts(load_checkpoint(reference / LAST)), weights(reference / LAST)
    seen: dict[str, Counter[str]] = {f"{kind}, {reader}": Counter() for kind in KINDS for reader in READERS}
    for count, (kind, damaged) in enumerate(tqdm(list(damages(content, each, rng)), disable=not sys.stderr.isatty())):
        shutil.copytree(reference, folder)
        (folder / LAST).write_bytes(damaged)
        seen[f"{kind}, {READERS[0]}"][outcome(lambda: parts(load_checkpoint(folder / LAST)), right)] += 1
        seen[f"{kind}, {READERS[1]}"][outcome(lambda: weights(folder / LAST), numbers)] += 1
        source = resumed_from(folder)
        seen[f"{kind}, {READERS[2]}"][f"from {source}"] += 1
        assert source in (LAST, PREVIOUS)
        if count % max(1, 2 * each // whole) == 0:
            seen[f"{kind}, {READERS[3]}"][_evaluated(folder / LAST)] += 1
            seen[f"{kind}, {READERS[2]}"][ends_as(reference, folder)] += 1
        shutil.rmtree(folder)
    return {name: dict(sorted(counter.items())) for name, counter in seen.items()}


READERS = ("load_checkpoint", "open_pretrained", "resume", "minifocal evaluate")


def _evaluated(path: Path) -> str:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        status = minifocal(["evaluate", str(path)])
    lines = said.getvalue().count("\n")
    return "refused in one line" if (status, lines) == (2, 1) else f"status {status}, {lines} lines"


def cut_texts(reference: Path, folder: Path, step: int, whole: int, rng: random.Random) -> dict[str, Any]:
    """Cut the settings at every `step`th byte, and settings and metrics at some before resuming."""
    seen: dict[str, Counter[str]] = {name: Counter() for name in (CONFIG, METRICS)}
    text = (reference / CONFIG).read_bytes()
    right = json.loads(text)
    args = make_parser().parse_args(["train", "--resume", "--out", str(folder)])
    shutil.copytree(reference, folder)
    for length in range(0, len(text), step):
        (folder / CONFIG).write_bytes(text[:length])
        with contextlib.redirect_stderr(io.StringIO()):
            seen[CONFIG][outcome(lambda: resumed_settings(args, EXECUTION_OPTIONS)[1], right)] += 1
    shutil.rmtree(folder)
    for name in (CONFIG, METRICS):
        content = (reference / name).read_bytes()
        for length in sorted(rng.sample(range(len(content)), whole)):
            shutil.copytree(reference, folder)
            (folder / name).write_bytes(content[:length])
            seen[name][ends_as(reference, folder)] += 1
            shutil.rmtree(folder)
    return {f"cut {name}": dict(sorted(counter.items())) for name, counter in seen.items()}


def main(argv: list[str] | None = None) -> int:
    """Damage, read and resume; exit with status 1 where numbers were wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.splitlines()[2].strip())
    parser.add_argument("--each", type=int, default=100, help="cuts, and as many flipped bytes (default: 100)")
    parser.add_argument("--whole", type=int, default=10, help="of them, runs that go on to the end (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the places (default: 0)")
    parser.add_argument("--out", type=Path, help="where to write the record, as JSON")
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="damage") as temporary:
        work = Path(temporary)
        warm_up(work)
        reference, folder = work / "reference", work / "damaged"
        status = finish(start(command(reference, options("adamw", EPOCHS, seed=3)), work / "reference.log"))
        assert status == 0, (work / "reference.log").read_text()
        seen = damage_checkpoints(reference, folder, args.each, args.whole, rng)
        seen |= cut_texts(reference, folder, max(1, 100 // args.each), max(1, args.whole // 3), rng)
    shown = f"python tests/trust/crash_damage.py --each {args.each} --whole {args.whole} --seed {args.seed}"
    text = json.dumps({"command": shown, **seen}, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    return 1 if "WRONG" in text or "other than a line" in text else 0


if __name__ == "__main__":
    sys.exit(main())
