"""Which tests pass through which lines, and how long each takes; measured once for each file of tests."""

import hashlib
import inspect
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from forked import Say, in_children
from mutants import ROOT, Mutant, sources
from tqdm import tqdm

TESTS = (
    "tests/test_functional_forward.py", "tests/test_functional_gradients.py", "tests/test_functional_corners.py",
    "tests/test_functional_refusals.py", "tests/test_layers.py", "tests/test_layers_corners.py",
    "tests/trust/test_check_finite.py", "tests/trust/test_check_finite_words.py", "tests/test_focalnet.py",
    "tests/test_focalnet_corners.py",
    "tests/test_config.py", "tests/test_zoo.py", "tests/test_gradcheck.py", "tests/test_precision.py",
    "tests/test_device_agnostic.py", "tests/training/test_optim.py", "tests/training/test_optim_corners.py",
    "tests/training/test_schedule.py", "tests/training/test_schedule_corners.py", "tests/training/test_augment.py",
    "tests/training/test_loss_scale.py", "tests/training/test_shards.py", "tests/test_config_corners.py",
    "tests/test_zoo_corners.py", "tests/test_complexity_corners.py", "tests/test_summary_corners.py",
    "tests/training/test_augment_corners.py", "tests/training/test_loss_scale_corners.py",
    "tests/training/test_shards_corners.py", "tests/distributed/test_exchange.py",
    "tests/distributed/test_ranks_agree.py",
)  # fmt: skip
# Left out for the time they take; what they see, others see too.
SLOW = (
    "test_every_gradient_of_any_network_is_right", "test_the_seeds_defaults_turn_images_into_features",
    "test_inference_is_the_forward_pass_bit_for_bit", "test_everything_has_the_dtype_of_the_network",
)  # fmt: skip
OPTIONS = ("-s", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=")
FOLDER = Path(tempfile.gettempdir()) / "minifocal-mutants"


class LineCoverage:
    """The tests by line.

    Args:
        jobs: processes at a time.
        budget: seconds of tests for one mutant, by the time that they take without a mistake.
    """

    def __init__(self, jobs: int, budget: float) -> None:
        self.jobs, self.budget = jobs, budget
        self.files: dict[str, dict[str, Any]] = {}  # by file: "tests": {name: [seconds, lines]}, "import": lines
        self.times: dict[str, float] = {}

    def update(self) -> None:
        """Run the files of tests that changed since, or all where a source did."""
        FOLDER.mkdir(exist_ok=True)
        wanted = {file: FOLDER / f"{_digest(file)}.json" for file in test_files()}
        missing = [file for file, store in wanted.items() if not store.exists()]
        if missing:
            failed: list[str] = []
            bar = tqdm(in_children(missing, _measure, self.jobs), total=len(missing), unit="file", desc="tests")
            for ended in bar:
                if ended.signal is not None or not ended.said or ended.said[-1] != "end":
                    failed.append(f"{ended.task}: {ended.said[-1] if ended.said else ended.signal}")
                    continue
                measured = json.loads(ended.said[0])
                store = wanted[ended.task]
                store.with_suffix(".part").write_text(json.dumps(measured), encoding="utf-8")
                os.replace(store.with_suffix(".part"), store)
            if failed:
                raise RuntimeError(f"tests that fail without a mistake: {failed}")
        self.files = {file: json.loads(store.read_text(encoding="utf-8")) for file, store in wanted.items()}
        left_out = [name for file in self.files.values() for name in file.get("failed", ())]
        if left_out:
            print("left out, since they fail when lines are traced:", *left_out)
        self.times = {name: test[0] for file in self.files.values() for name, test in file["tests"].items()}
        self._lines = {
            name: {path: set(numbers) for path, numbers in test[1].items()}
            for file in self.files.values()
            for name, test in file["tests"].items()
        }
        self._breadth = {name: sum(map(len, lines.values())) for name, lines in self._lines.items()}
        self._imported: dict[str, set[int]] = {}
        for file in self.files.values():
            for path, numbers in file["import"].items():
                self._imported.setdefault(path, set()).update(numbers)

    def imports(self, mutant: Mutant) -> bool:
        """Whether its line may have run before a test begins, so that it must be imported anew."""
        return not mutant.body or bool(self.files and self._imported.get(mutant.path, set()) & _span(mutant))

    def tests_for(self, mutant: Mutant) -> list[str]:
        """The tests that pass through a mutant's line, for as long as the budget lasts.

        First come those that are short and pass through little else.

        For what runs at import these are the tests that pass through anything of its module.
        """
        span = _span(mutant)
        passing = {name: lines[mutant.path] for name, lines in self._lines.items() if mutant.path in lines}
        found = [name for name, lines in passing.items() if span & lines]
        if not found and self.imports(mutant):
            found = list(passing)
        found.sort(key=lambda name: (self.times[name] * self._breadth[name], name))
        chosen, total = [], 0.0
        for name in found:
            total += self.times[name]
            if len(chosen) >= 3 and total > self.budget:
                break
            chosen.append(name)
        return chosen


def test_files() -> list[str]:
    """The files of tests that are run, as paths from the root."""
    found = []
    for test in TESTS:
        path = ROOT / test
        found += sorted(path.glob("test_*.py")) if path.is_dir() else [path]
    return [path.relative_to(ROOT).as_posix() for path in found]


def run_pytest(files: list[str], loop: Callable[[pytest.Session], None], *options: str) -> None:
    """Collect the tests of some files, and let `loop` do what it likes with the session.

    Raises:
        RuntimeError: the tests cannot be collected, or `loop` has failed; pytest has said why.
    """
    done: list[bool] = []

    class Loop:
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtestloop(self, session: pytest.Session) -> bool:
            if session.testsfailed:
                raise session.Failed("tests cannot be collected")
            loop(session)
            done.append(True)
            return True

    pytest.main([*OPTIONS, *options, "--rootdir", str(ROOT), *(str(ROOT / file) for file in files)], plugins=[Loop()])
    if not done:
        raise RuntimeError(f"the tests were not run: {' '.join(files)}")


def _measure(file: str, say: Say, folder: Path) -> None:
    recorder = _Recorder()
    tests: dict[str, Any] = {}

    def loop(session: pytest.Session) -> None:
        tests["import"] = recorder.take()
        passed = {}
        items = [
            item for item in session.items if item.originalname not in SLOW and not item.get_closest_marker("skip")
        ]
        for item, following in zip_longest(items, items[1:]):
            start = time.process_time()
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                tests.setdefault("failed", []).append(item.nodeid)
                session.testsfailed = 0
                continue
            passed[item.nodeid] = [round(time.process_time() - start, 4), recorder.take()]
        tests["tests"] = passed

    threading.settrace(recorder.enter)
    sys.settrace(recorder.enter)
    run_pytest([file], loop, "--basetemp", str(folder / "tmp"))
    sys.settrace(None)
    if "tests" in tests:
        say(json.dumps(tests))
        say("end")


class _Recorder:
    """Notes the lines of functions, in the modules that are mutated, that Python passes through."""

    def __init__(self) -> None:
        self.paths = {str(ROOT / path): path for path in sources()}
        self.seen: set[tuple[str, int]] = set()

    def enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        path = self.paths.get(frame.f_code.co_filename)
        if path is None or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # the bodies of modules and classes
            return None

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            self.seen.add((path, frame.f_lineno))
            return line

        return line

    def take(self) -> dict[str, list[int]]:
        """Give the lines since the last time, by module."""
        seen, self.seen = self.seen, set()
        lines: dict[str, list[int]] = {}
        for path, number in sorted(seen):
            lines.setdefault(path, []).append(number)
        return lines


def _span(mutant: Mutant) -> set[int]:
    return set(range(mutant.at[0], mutant.at[1] + 1))


def _digest(file: str) -> str:
    """A name for what was measured: of this file of tests, over these sources."""
    digest = hashlib.sha256(sys.version.encode())
    for path in [file, "tests/conftest.py", *sources()]:
        digest.update((ROOT / path).read_bytes())
    return digest.hexdigest()[:24]
