"""Which tests run a line, and whether one of them fails when there is a mistake in it."""

import gc
import importlib
import importlib.machinery
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))  # this checkout's package, whichever is installed

import pytest
from forked import Ended, Say, in_children, limit_seconds
from mutant_coverage import LineCoverage, run_pytest
from mutant_record import Record
from mutants import ROOT, Mutant
from tqdm import tqdm

Done = Callable[[Mutant, str, str], None]
LEAST_S = 5.0  # that a test may take, however short it was
HARNESS = ("__main__", "forked", "mutant_coverage", "mutant_kinds", "mutant_record", "mutant_runs", "mutants")


class Runner:
    """Runs mutants.

    Args:
        jobs: processes at a time. budget: seconds of tests for one mutant.
    """

    def __init__(self, jobs: int, budget: float) -> None:
        self.jobs, self.budget = jobs, budget
        self.killers: dict[tuple[str, str], list[str]] = {}  # by module and function: the tests that killed last

    def run(self, mutants: list[Mutant], record: Record, *, only_recorded: bool = False) -> list[Mutant]:
        """Run mutants, keep the record and give those that survive.

        Args:
            only_recorded: run nothing but the test that the record names; the record is left as it is.
        """
        survivors: list[Mutant] = []
        passing = LineCoverage(self.jobs, self.budget)
        if not only_recorded:
            passing.update()
        tests = {m: [record.test(m)] if only_recorded else passing.tests_for(m) for m in mutants}
        with tqdm(total=len(mutants), unit="mutant", desc="mutants") as bar:

            def done(mutant: Mutant, outcome: str, test: str) -> None:
                if outcome == "survived":
                    survivors.append(mutant)
                bar.set_postfix(survived=len(survivors), refresh=False)
                bar.update()
                if not only_recorded:
                    record.set(mutant, outcome, test)
                    if bar.n % 50 == 0:
                        record.save()

            try:
                now = {m: tests[m] for m in mutants if not passing.imports(m)}
                later = self.exchanged(now, passing.times, done, again=only_recorded)
                anew = {m: tests[m] for m in mutants if passing.imports(m) or m in later}
                self.imported_anew(anew, passing.times, done)
            finally:
                if not only_recorded:
                    record.save()
        return sorted(survivors, key=mutants.index)

    def exchanged(
        self, tests: dict[Mutant, list[str]], times: dict[str, float], done: Done, again: bool = False
    ) -> set[Mutant]:
        """Run mutants of functions, whose code is exchanged in place.

        Returns:
            those with which that cannot be done; and, where `again`, those that survive.
        """
        later = set()

        def loop(session: pytest.Session) -> None:
            items = {item.nodeid: item for item in session.items}
            gc.freeze()  # no child copies what it only looks through

            def work(mutant: Mutant, say: Say, folder: Path) -> None:
                try:
                    exchange(mutant)
                except LookupError:
                    say("anew")
                    return
                session.config._tmp_path_factory._given_basetemp = folder / "tmp"  # type: ignore[attr-defined]
                chosen = [items[test] for test in self._in_order(mutant, tests[mutant]) if test in items]
                run_until_one_fails(session, chosen, times, say)

            for ended in in_children(tests, work, self.jobs):
                outcome, test = ("", "") if ended.said == ["anew"] else self._judge(ended)
                if not outcome or (outcome == "survived" and again):
                    later.add(ended.task)
                else:
                    done(ended.task, outcome, test)

        if tests:
            run_pytest(files_of(tests), loop)
        return later

    def imported_anew(self, tests: dict[Mutant, list[str]], times: dict[str, float], done: Done) -> None:
        """Run mutants in processes that import the package with the mistake in it."""

        def work(mutant: Mutant, say: Say, folder: Path) -> None:
            order = self._in_order(mutant, tests[mutant])

            def loop(session: pytest.Session) -> None:
                say("collected")
                items = {item.nodeid: item for item in session.items}
                run_until_one_fails(session, [items[test] for test in order if test in items], times, say)

            forget_imports()
            sys.meta_path.insert(0, MutatedModule(mutant))
            limit_seconds(60)
            run_pytest(files_of({mutant: order}), loop, "--basetemp", str(folder / "tmp"))
            say("end")

        for ended in in_children(tests, work, self.jobs):
            if ended.said == ["end"] or (ended.said and "collected" not in ended.said):
                done(ended.task, "killed", "import")
            else:
                done(ended.task, *self._judge(ended))

    def _in_order(self, mutant: Mutant, tests: list[str]) -> list[str]:
        first = [test for test in self.killers.get(mutant.name[:2], []) if test in tests]
        return [*first, *(test for test in tests if test not in first)]

    def _judge(self, ended: Ended) -> tuple[str, str]:
        begun = [line.removeprefix("begin\t") for line in ended.said if line.startswith("begin\t")]
        test = begun[-1] if begun else ""
        if ended.signal in (signal.SIGPROF, signal.SIGALRM):
            outcome = "timeout"
        elif ended.signal is not None or "failed" in ended.said:
            outcome = "killed"
        elif any(line.startswith("error\t") for line in ended.said):
            raise RuntimeError(f"{' | '.join(ended.task.name)}: {ended.said[-1]}")
        else:
            outcome, test = "survived", ""
        if test:
            killers = self.killers.setdefault(ended.task.name[:2], [])
            killers[:] = [test, *(other for other in killers if other != test)][:5]
        return outcome, test


def run_until_one_fails(session: pytest.Session, items: list[pytest.Item], times: dict[str, float], say: Say) -> None:
    """Run tests one after the other; say each that begins, and when one has failed."""
    for item, following in zip_longest(items, items[1:]):
        say(f"begin\t{item.nodeid}")
        limit_seconds(LEAST_S + 10 * times.get(item.nodeid, LEAST_S))
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            say("failed")
            return


def exchange(mutant: Mutant) -> None:
    """Give a function the mutant's code, wherever it was imported to.

    Raises:
        LookupError: the function is not to be found, or its code does not fit it.
    """
    module = importlib.import_module(module_name(mutant))
    owner: Any = module
    for part in mutant.function.split("."):
        owner = vars(owner)[part]
        for wrapped in ("__func__", "fget", "func", "__wrapped__"):
            owner = getattr(owner, wrapped, owner)
    codes = [code for code in codes_in(mutant_code(mutant)) if code.co_qualname == mutant.function]
    if not isinstance(owner, FunctionType) or len(codes) != 1 or codes[0].co_freevars != owner.__code__.co_freevars:
        raise LookupError
    owner.__code__ = codes[0]


def mutant_code(mutant: Mutant) -> CodeType:
    """Compile the module with the mistake in it."""
    return compile(mutant.tree(), str(ROOT / mutant.path), "exec")


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """Go through the code of all functions in a module's."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from codes_in(constant)


class MutatedModule:
    """Finds one module, with the mistake in it, before the others look."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != module_name(self.mutant):
            return None
        file = str(ROOT / self.mutant.path)
        return importlib.util.spec_from_file_location(name, file, loader=_Loader(name, file, self.mutant))


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, file: str, mutant: Mutant) -> None:
        super().__init__(name, file)
        self.mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        return mutant_code(self.mutant)


def forget_imports() -> None:
    """Let the package and the tests be imported anew."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if name.split(".")[0] == "minifocal" or (file.startswith(str(ROOT / "tests")) and name not in HARNESS):
            del sys.modules[name]


def files_of(tests: dict[Mutant, list[str]]) -> list[str]:
    """The files in which tests stand."""
    return sorted({test.split("::")[0] for chosen in tests.values() for test in chosen if "::" in test})


def module_name(mutant: Mutant) -> str:
    """As Python imports it."""
    return mutant.path.removesuffix(".py").replace("/", ".")
