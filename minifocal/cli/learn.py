"""`minifocal learn`: exercises to solve, check, and look up."""

import argparse
import os
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from minifocal.cli.common import progress_bar, table
from minifocal.errors import InputError, one_line
from minifocal.files import cannot_read, write_bytes
from minifocal.learn.grading import as_csv, grade
from minifocal.learn.judge import ABSENT, PASSED, Finding, Verdict, judge
from minifocal.learn.process import TIME_LIMIT
from minifocal.learn.progress import load_progress
from minifocal.learn.registry import EXERCISES, HINTS, Exercise, find_exercise

HELP = "learn by doing: exercises with hints, and checks that say what is wrong"
EXAMPLE = "minifocal learn start 06   (then edit exercises/06_layer_norm_backward.py, and minifocal learn check 06)"

FOLDER = Path("exercises")
POLL_SECONDS = 0.3
WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, example: str) -> argparse.ArgumentParser:
        action: argparse.ArgumentParser = actions.add_parser(
            name, help=text, description=f"{text}.", epilog=f"example: minifocal learn {example}", allow_abbrev=False
        )
        action.set_defaults(do=run)
        if name != "grade":
            action.add_argument(
                "--folder", type=Path, default=FOLDER, help=f"where the answers lie (default: {FOLDER})"
            )
        return action

    def add_limit(action: argparse.ArgumentParser) -> None:
        action.add_argument(
            "--time-limit",
            type=float,
            default=TIME_LIMIT,
            metavar="SECONDS",
            help=f"for an answer (default: {TIME_LIMIT:g})",
        )

    def add_exercise(action: argparse.ArgumentParser) -> None:
        action.add_argument("exercise", metavar="NN", help="number or name of an exercise")

    add("list", _list, "list the exercises and how far you are", "list")
    start = add("start", _start, "put exercises into the folder", "start 06")
    start.add_argument("exercises", nargs="+", metavar="NN", help="numbers or names of exercises")
    check = add("check", _check, "check answers: what is wrong, where, and why", "check 06")
    check.add_argument("exercises", nargs="*", metavar="NN", help="which (default: all that were started)")
    add_limit(check)
    watch = add("watch", _watch, "check an answer again whenever it is saved, until it passes", "watch 06")
    add_exercise(watch)
    add_limit(watch)
    add_exercise(add("hint", _hint, f"show the next hint; there are {HINTS} for every exercise", "hint 06"))
    add_exercise(add("solution", _solution, "show the solution, when asked for a second time", "solution 06"))
    text = "put an exercise back as it was; the answer so far is kept beside it"
    add_exercise(add("reset", _reset, text, "reset 06"))
    grades = add(
        "grade", _grade, "check many submissions and write a CSV table", "grade submissions/* --out grades.csv"
    )
    grades.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="one a submission")
    grades.add_argument("--exercise", action="append", default=[], metavar="NN", help="only this one (may be repeated)")
    grades.add_argument("--out", type=Path, default=Path("grades.csv"), help="CSV file (default: grades.csv)")
    grades.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="answers checked at a time (default: one a core)"
    )
    add_limit(grades)


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    if "time_limit" in args and not 0.0 < args.time_limit <= 3600.0:
        raise InputError(f"--time-limit must lie between 0 and 3600 seconds, got {args.time_limit:g}")
    status: int = args.do(args)
    return status


def _list(args: argparse.Namespace) -> int:
    progress = load_progress(args.folder)
    rows = []
    for exercise in EXERCISES:
        record = progress.records.get(exercise.number)
        started = (args.folder / exercise.file_name).exists()
        state = (record.state if record and started else "") or ("started" if started else "")
        rows.append([exercise.number, exercise.function, exercise.title, f"tutorial {exercise.tutorial}", state])
    print(table(["", "write", "what it is about", "see", "you"], rows, left=5))
    done = sum(row[-1] == PASSED for row in rows)
    print(f"{done} of {len(EXERCISES)} passed; minifocal learn start NN begins one, in any order")
    return 0


def _start(args: argparse.Namespace) -> int:
    chosen = [find_exercise(name) for name in args.exercises]
    for exercise in chosen:
        path = args.folder / exercise.file_name
        if path.exists():
            print(f"{path} is there already and stays as it is; minifocal learn reset {exercise.number} begins anew")
            continue
        write_bytes(path, exercise.stub.encode())
        print(f"{path}: {exercise.title}; edit it, then minifocal learn check {exercise.number}")
    return 0


def _check(args: argparse.Namespace) -> int:
    if args.exercises:
        chosen = [find_exercise(name) for name in args.exercises]
    else:
        chosen = [exercise for exercise in EXERCISES if (args.folder / exercise.file_name).exists()]
        if not chosen:
            raise InputError(f"there are no exercises in {args.folder}; minifocal learn start 01 begins one")
    states = [_check_one(exercise, args) for exercise in chosen]
    return 0 if all(state == PASSED for state in states) else 1


def _check_one(exercise: Exercise, args: argparse.Namespace) -> str:
    progress = load_progress(args.folder)
    verdict = judge(exercise, args.folder / exercise.file_name, args.time_limit)
    print("\n".join(_describe(exercise, verdict)))
    if verdict.state != ABSENT:
        progress[exercise.number].state = verdict.state
        progress[exercise.number].checks += 1
        progress.save()
    return verdict.state


def _describe(exercise: Exercise, verdict: Verdict) -> list[str]:
    lines = [f"{exercise.number} {exercise.function}: {verdict.state}"]
    if verdict.reason:
        lines += _wrapped(verdict.reason)
    for finding in verdict.findings:
        lines += _describe_finding(finding)
    if verdict.case:
        passed = f"; {' and '.join(verdict.other_cases)} passed" if verdict.other_cases else ""
        lines += _wrapped(f"with {verdict.case}{passed}")
    if verdict.printed.strip():
        lines += [
            "  your code printed, in its first call:",
            *(f"    {one_line(line)}" for line in verdict.printed.splitlines()[:20]),
        ]
    if verdict.findings:
        lines.append(f"  stuck? minifocal learn hint {exercise.number}")
    return lines


def _describe_finding(finding: Finding) -> list[str]:
    check = finding.check
    lines = [""]
    if check.entries:
        truth = "numeric" if finding.numeric else "expected"
        worst, wrong = check.entries[0], sum(entry.relative_error > check.tolerance for entry in check.entries)
        lines += [
            f"  {check.name} {check.shape}: {wrong} of {len(check.entries)} elements wrong",
            f"    {'index':<16} {'yours':>14} {truth:>14} {'relative error':>15}",
            f"    {worst.index!s:<16} {worst.analytic:14.6g} {worst.numeric:14.6g} {worst.relative_error:15.1e}",
        ]
    else:
        lines.append(f"  {check.name}:")
    return [*lines, *_wrapped(f"diagnosis: {finding.diagnosis}", 4)]


def _wrapped(text: str, indent: int = 2) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2))


def _watch(args: argparse.Namespace) -> int:
    exercise = find_exercise(args.exercise)
    path = args.folder / exercise.file_name
    print(f"watching {path}: save it to check it, Ctrl-C ends")
    seen = None
    while True:
        now = _stamp(path)
        if now != seen:
            seen = now
            if _check_one(exercise, args) == PASSED:
                return 0
        time.sleep(POLL_SECONDS)


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is saved; None while an editor has it away."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot_read(path, error) from error
    return status.st_mtime_ns, status.st_size


def _hint(args: argparse.Namespace) -> int:
    exercise, progress = find_exercise(args.exercise), load_progress(args.folder)
    record = progress[exercise.number]
    record.hints = min(record.hints + 1, HINTS)
    for number, hint in enumerate(exercise.hints[: record.hints], start=1):
        print("\n".join(textwrap.wrap(f"hint {number} of {HINTS}: {hint}", WIDTH, subsequent_indent="  ")))
    if record.hints == HINTS:
        print(f"That was the last one; minifocal learn solution {exercise.number} shows an answer.")
    progress.save()
    return 0


def _solution(args: argparse.Namespace) -> int:
    exercise, progress = find_exercise(args.exercise), load_progress(args.folder)
    record = progress[exercise.number]
    record.solution_asked += 1
    progress.save()
    if record.solution_asked == 1 and record.state != PASSED:
        left = HINTS - min(record.hints, HINTS)
        rest = f"there {'is' if left == 1 else 'are'} {left} hint{'s' * (left != 1)} left" if left else "sure?"
        print(f"{rest}; ask once more to see the solution: minifocal learn solution {exercise.number}")
        return 0
    print(exercise.solution, end="")
    return 0


def _reset(args: argparse.Namespace) -> int:
    exercise = find_exercise(args.exercise)
    path = args.folder / exercise.file_name
    if path.exists():
        kept = _unused(path)
        os.replace(path, kept)
        print(f"your answer so far is {kept}")
    write_bytes(path, exercise.stub.encode())
    progress = load_progress(args.folder)
    if exercise.number in progress.records:
        progress[exercise.number].state = ""
        progress.save()
    print(f"{path} is as it was handed out")
    return 0


def _unused(path: Path) -> Path:
    """A name beside a file that is not taken: 06_name.py.1, .2, and so on."""
    number = 1
    while (kept := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return kept


def _grade(args: argparse.Namespace) -> int:
    exercises = list(dict.fromkeys(map(find_exercise, args.exercise))) or list(EXERCISES)
    if args.jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {args.jobs}")
    if missing := [str(folder) for folder in args.folders if not folder.is_dir()]:
        raise InputError(f"{', '.join(missing)}: no such folder; give one folder a submission")
    names = [one_line(folder.resolve().name) for folder in args.folders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"two submissions are called {', '.join(twice)}: rename one, or the table cannot tell them apart"
        )
    folders = [folder.resolve() for folder in args.folders]
    grades = []
    with progress_bar(len(folders) * len(exercises), " answers") as bar:
        for one in grade(folders, exercises, time_limit=args.time_limit, jobs=args.jobs):
            grades.append(one)
            bar.update()
    write_bytes(args.out, as_csv(grades).encode())
    rows = []
    for name in names:
        states = [one.verdict.state for one in grades if one.submission == name]
        rows.append([name, str(states.count(PASSED)), str(len(states) - states.count(PASSED) - states.count(ABSENT))])
    print(table(["submission", f"passed of {len(exercises)}", "not yet"], rows))
    print(f"{args.out}: a line for each of {len(grades)} answers")
    return 0
