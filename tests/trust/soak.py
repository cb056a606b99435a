"""Long runs that are measured while they go on: nothing grows with the steps, and nothing stays when they are over.

    python tests/trust/soak.py                     # all cases, some minutes; goes on where it was stopped
    python tests/trust/soak.py numba --steps 2000

Each case trains a small network on the digits, in a process of its own, and is looked at a hundred times: the blocks of
memory that Python has given to objects, the process's resident memory, the objects that the garbage collector follows,
open files and threads. Medians of the second and the last tenth of the looks are compared. Numbers
go into soak.json, next to this file.
"""

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from tqdm import tqdm

import minifocal as mf
from minifocal.data import Standardize
from minifocal.data.digits import digits_splits
from minifocal.threads import thread_count
from minifocal.training.checkpoint import save_checkpoint
from minifocal.training.listener import Listener, Listeners
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import Trainer
from minifocal.viz import live, live_server
from minifocal.viz.live import LiveView
from minifocal.viz.live_server import LiveServer

RECORD = Path(__file__).with_name("soak.json")
LOOKS = 100
IMAGES, BATCH = 1_200, 3  # 400 steps an epoch
SAVE_EVERY = 25  # steps, where checkpoints are saved often

# What may grow: whatever is kept, at each step or at every second, takes a block each time at least. An epoch
# leaves a record: a dictionary of eight numbers. Python's lists of free floats and tuples go on filling for a while.
FILLING_BLOCKS, BLOCKS_PER_STEP, BLOCKS_PER_EPOCH = 300.0, 0.25, 16.0
OBJECTS_PER_STEP = 0.25
RESIDENT_BYTES = 2**20


class Case(NamedTuple):
    """What runs: a table of operations, for how many steps, and what goes on beside the training."""

    ops: str
    steps: int
    live: bool = False
    checkpoints: bool = False


CASES = {
    "reference": Case("reference", 10_000),
    "numpy": Case("numpy", 10_000),
    "numba": Case("numba", 10_000),
    "live": Case("numpy", 10_000, live=True),
    "checkpoints": Case("numba", 10_000, checkpoints=True),
}


class Looks(Listener):
    """Looks at the process after every `every` steps; keeps the numbers in memory that it has from the start."""

    NAMES = ("blocks", "resident", "objects", "files", "threads")

    def __init__(self, count: int, every: int) -> None:
        self.table = np.zeros((count, len(self.NAMES)))
        self.every, self.taken = every, 0

    def on_step(self, step: int, total: int, record: Any, images: int) -> None:
        if step % self.every == 0 and self.taken < len(self.table):
            gc.collect()
            self.table[self.taken] = (
                sys.getallocatedblocks(),
                resident_bytes(),
                len(gc.get_objects()),
                len(open_files()),
                threading.active_count(),
            )
            self.taken += 1

    def growth(self) -> dict[str, float]:
        """The median of the last tenth less that of the second."""
        assert self.taken == len(self.table), "the run was too short"
        tenth = len(self.table) // 10
        grown = np.median(self.table[-tenth:], axis=0) - np.median(self.table[tenth : 2 * tenth], axis=0)
        return dict(zip(self.NAMES, grown.tolist(), strict=True))


class Saving(Listener):
    """Saves a checkpoint often."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_start(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_step(self, step: int, total: int, record: Any, images: int) -> None:
        if step % SAVE_EVERY == 0:
            save_checkpoint(self.path, self.trainer.model, self.trainer.optimizer, step=step)


def resident_bytes() -> int:
    """Give the memory that the process holds, in bytes; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> set[tuple[str, str]]:
    """Give the open files, by number and by what they are; none where the system does not tell."""
    found = set()
    with suppress(OSError):
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # the folder itself, which was open while it was read
                found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


def make_trainer(case: Case, steps: int, folder: Path, listener: Listener | None = None) -> Trainer:
    """Make a run of at least so many steps."""
    digits = digits_splits().train
    some = digits.subset(np.arange(min(IMAGES, BATCH * steps)))
    model = mf.FocalNet.build(
        image_size=8,
        patch_size=2,
        in_channels=1,
        hidden_size=6,
        num_layers=1,
        focal_levels=2,
        num_classes=10,
        ops=case.ops,
        seed=1,
    )
    per_epoch = len(some) // BATCH
    config = TrainConfig(epochs=-(-steps // per_epoch), batch_size=BATCH, lr=0.01, seed=2)
    few = digits.subset(np.arange(IMAGES, IMAGES + 20))
    return Trainer(model, some, few, Standardize.fit(some), config, folder=folder, listener=listener)


@contextmanager
def watched(view: LiveView) -> Iterator[None]:
    """Serve a view whose memory is full early, to one reader that stays and others that come and go."""

    def read_on() -> None:
        with suppress(OSError):
            while not over.is_set():
                with ask("events") as staying:
                    while staying.recv(2**16):
                        pass

    def come_and_go() -> None:
        with suppress(OSError):
            while not over.wait(0.02):
                for path in ("", "events", "not-there"):
                    with ask(path) as connection:
                        connection.recv(2**16)

    def ask(path: str) -> socket.socket:
        connection = socket.create_connection(server.server_address, timeout=20)
        host = f"Host: 127.0.0.1:{server.server_port}"
        connection.sendall(f"GET {server.prefix}{path} HTTP/1.1\r\n{host}\r\n\r\n".encode())
        return connection

    over = threading.Event()
    readers = [threading.Thread(target=target) for target in (read_on, come_and_go)]
    with patch.multiple(live_server, RECENT_BYTES=2**17), patch.multiple(live, POINTS=64, GATE_SECONDS=0.2):
        with LiveServer(view.document) as server:
            for reader in readers:
                reader.start()
            yield
            over.set()
        for reader in readers:
            reader.join()


def soak(case: Case, steps: int, looks: int = LOOKS, beside: Listener | None = None) -> dict[str, Any]:
    """Train, and give what grew and what stayed.

    Args:
        case: what to run.
        steps: to train. looks: at the process, in equal distances.
        beside: a listener that is told of every step; for tests.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        _run(make_trainer(case, 12, folder), None)  # threads and caches that stay for good
        gc.collect()
        gc.freeze()  # what is there already is looked through no more
        stack.callback(gc.unfreeze)
        files, threads = open_files(), set(threading.enumerate())
        watching = Looks(looks, steps // looks)
        listeners = [watching, *([beside] if beside else [])]
        if case.checkpoints:
            listeners.append(Saving(folder / "often.safetensors"))
        trainer = make_trainer(case, steps, folder, Listeners(*listeners))
        epochs = trainer.config.epochs
        _run(trainer, LiveView() if case.live else None)
        model = weakref.ref(trainer.model)
        del trainer, listeners
        gc.collect()
        return {
            "case": case._asdict(),
            "computed_by_threads": thread_count(),
            "steps": steps,
            "steps_between": steps * 8 // 10,  # from the middle of the second tenth to the middle of the last
            "epochs": epochs,
            "growth": watching.growth(),
            "left": {
                "files": sorted(target for _, target in open_files() - files),
                "threads": sorted(thread.name for thread in set(threading.enumerate()) - threads),
                "model": model() is not None,
            },
        }


def _run(trainer: Trainer, view: LiveView | None) -> None:
    if view is None:
        trainer.fit()
        return
    trainer.listener = Listeners(trainer.listener, view)
    with watched(view):
        trainer.fit()
        view.end()


def complaints(found: dict[str, Any], names: Sequence[str] = Looks.NAMES) -> list[str]:
    """Say what grew more than it may, and what stayed.

    Args:
        found: what `soak` gave.
        names: of what must not grow.
    """
    steps, growth = found["steps_between"], found["growth"]
    passing = 4.0 if found["case"]["live"] else 0.0  # readers come and go
    bounds = {
        "blocks": FILLING_BLOCKS + BLOCKS_PER_STEP * steps + BLOCKS_PER_EPOCH * found["epochs"],
        "resident": RESIDENT_BYTES,
        "objects": OBJECTS_PER_STEP * steps,
        "files": passing,
        "threads": passing,
    }
    said = [
        f"{name} grew by {growth[name]:.0f}, more than {bounds[name]:.0f}"
        for name in names
        if growth[name] > bounds[name]
    ]
    return said + [f"left behind: {name} {what}" for name, what in found["left"].items() if what]


def _in_a_child(name: str, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, name, "--steps", str(steps), "--child"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main(arguments: list[str] | None = None, child: Callable[[str, int], dict[str, Any]] = _in_a_child) -> int:
    """Run the cases that are not on record yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)} (default: all)")
    parser.add_argument("--steps", type=int, help="to train (default: as many as the case has)")
    parser.add_argument("--again", action="store_true", help="also what is on record")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if unknown := set(given.cases) - set(CASES):
        parser.error(f"there is no case {', '.join(sorted(unknown))}")
    if given.steps is not None and given.steps < LOOKS:
        parser.error(f"--steps must be at least {LOOKS}")
    if given.child:
        print(json.dumps(soak(CASES[given.cases[0]], given.steps)))
        return 0
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    failed = False
    for name in tqdm(given.cases or CASES, unit="case"):
        steps = given.steps or CASES[name].steps
        if given.again or record.get(name, {}).get("steps") != steps:
            record[name] = child(name, steps)
            ordered = {case: record[case] for case in CASES if case in record}
            RECORD.write_text(json.dumps(ordered, indent=2) + "\n")
        for said in complaints(record[name]):
            failed = True
            tqdm.write(f"{name}: {said}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
