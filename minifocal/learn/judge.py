"""Is a learner's answer right, and if not, why: a verdict from what the function gave for the cases of an exercise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minifocal.arrays import Array
from minifocal.files import read_bytes
from minifocal.gradcheck import ArrayCheck, compare_arrays
from minifocal.learn.case import Case
from minifocal.learn.diagnoses import diagnose, same
from minifocal.learn.process import TIME_LIMIT, Answers, Failure, Result, call
from minifocal.learn.registry import Exercise

PASSED, FAILED, TODO, ABSENT = "passed", "not yet", "TODO", "not started"
TOLERANCE = 1e-7
SINGLE_TOLERANCE = 1e-3  # of float32 results beside those of float64: only a wrong computation is that far off
LARGEST_ANSWER = 2**20  # bytes of a learner's file
SHAPE_WORDS = ("shape", "broadcast", "mismatch", "dimension")  # in NumPy's errors about arrays that do not fit


@dataclass(frozen=True)
class Finding:
    """One wrong array: the comparison, element by element, and what is known of the cause."""

    check: ArrayCheck
    diagnosis: str
    numeric: bool  # whether the right numbers are differences of the forward pass


@dataclass(frozen=True)
class Verdict:
    """The judgement of one answer.

    Attributes:
        state: PASSED, FAILED, TODO or ABSENT.
        reason: one line; empty where it passed.
        findings: the wrong arrays of one case that failed.
        case: the sizes of that case. other_cases: the sizes of those that passed.
        printed: what the learner's code printed.
    """

    state: str
    reason: str = ""
    findings: tuple[Finding, ...] = ()
    case: str = ""
    other_cases: tuple[str, ...] = ()
    printed: str = ""


def judge(exercise: Exercise, path: Path, time_limit: float = TIME_LIMIT) -> Verdict:
    """Judge the answer in a file.

    Every case is computed four times: as it is, once more, with the upstream gradient doubled, and in float32. The
    right numbers are differences of the library's forward pass (`numeric_gradients`), or the library's own values;
    the comparison is that of `check_gradients`. Nothing of it happens in the process that runs the learner's code.

    Args:
        exercise: which. path: the learner's file. time_limit: seconds for running it.
    Raises:
        InputError: the file cannot be read, or is larger than any answer.
    """
    if not path.exists():
        place = Path(path.parent.name, path.name)
        return Verdict(ABSENT, f"there is no {place}; minifocal learn start {exercise.number} puts it there")
    text = read_bytes(path, LARGEST_ANSWER)
    if text.split() == exercise.stub.encode().split():
        return Verdict(TODO, f"{exercise.function} is still as it was handed out")
    cases = exercise.make_cases()
    calls = [list(arguments.values()) for case in cases for arguments in _variants(case)]
    answers = call(path, exercise.function, calls, time_limit)
    with np.errstate(all="ignore"):  # a learner's numbers may overflow wherever they are compared
        verdict = _judge_answers(exercise, cases, answers)
    return replace(verdict, printed=answers.printed)


def _variants(case: Case) -> Sequence[Mapping[str, Any]]:
    def convert(value: Any) -> Any:
        is_float = isinstance(value, np.ndarray) and value.dtype == "float64"
        return value.astype("float32") if is_float else value

    doubled = {name: 2.0 * value if name in case.upstream else value for name, value in case.arguments.items()}
    single = {name: convert(value) for name, value in case.arguments.items()}
    return case.arguments, case.arguments, doubled, single


def _judge_answers(exercise: Exercise, cases: Sequence[Case], answers: Answers) -> Verdict:
    if answers.failure is not None:
        return Verdict(FAILED, f"the file cannot be loaded: {answers.failure}")
    if answers.trouble:
        return Verdict(FAILED, answers.trouble)
    passed: list[str] = []
    failed: list[tuple[Case, Verdict]] = []
    results = list(answers.results)
    for case in cases:
        variants = _variants(case)
        verdict = _judge_case(exercise, case, variants, results[: len(variants)])
        results = results[len(variants) :]
        if verdict is None:
            passed.append(case.title)
        else:
            failed.append((case, verdict))
            if not results:  # the learner's code raised in this case
                break
    if len(passed) == len(cases):
        return Verdict(PASSED)
    case, verdict = min(failed, key=_how_little_it_says)
    return replace(verdict, case=case.title, other_cases=tuple(passed))


def _how_little_it_says(failed: tuple[Case, Verdict]) -> tuple[bool, bool, bool]:
    """Order the cases that failed, the most telling first.

    Where one gave two results for the same arguments, no number of any case can be trusted. Otherwise numbers that are
    wrong say most, and most of all where no axis has length 1: a missing sum or a swapped axis cannot pass for
    something else there.
    """
    case, verdict = failed
    return verdict.reason != UNREPEATABLE, not verdict.findings, min(case.sizes.values()) == 1


def _judge_case(
    exercise: Exercise, case: Case, variants: Sequence[Mapping[str, Any]], results: Sequence[Result]
) -> Verdict | None:
    """Give what is wrong in a case, the call as it is first; None where all is right."""
    values = []
    for arguments, result in zip(variants, results, strict=False):  # fewer results where one raised
        if result.failure is not None:
            return _raised(exercise, result.failure)
        named, fault = _name_results(case, result.value)
        if fault:
            return Verdict(FAILED, fault)
        if len(result.after) != len(arguments):
            return Verdict(FAILED, NOT_ITS_OWN)
        for name, value, after in zip(arguments, arguments.values(), result.after, strict=True):
            if isinstance(value, np.ndarray) and not np.array_equal(value, after, equal_nan=True):
                return Verdict(FAILED, f"{name} was changed in place: write into arrays of your own only")
        values.append(named)
    if len(values) < len(variants):
        return Verdict(FAILED, NOT_ITS_OWN)
    plain, again, doubled, single = values
    if not all(_repeats(again[name], plain[name]) for name in plain):
        return Verdict(FAILED, UNREPEATABLE)
    findings = tuple(_find(case, plain, doubled))
    if findings:
        return Verdict(FAILED, _headline(case, findings), findings)
    if case.upstream and not all(same(doubled[name], 2.0 * plain[name]) for name in _linear(case)):
        return Verdict(FAILED, f"twice the {' and '.join(case.upstream)} did not give twice the gradients")
    for name, value in single.items():
        if value.dtype != "float32":
            return Verdict(
                FAILED,
                f"{name} is {value.dtype} for float32 arguments: a constant of NumPy's, or an array made without a "
                "dtype, changes the type; take Python's numbers (math.sqrt, not np.sqrt) and zeros_like",
            )
        if not np.abs(value - plain[name]).max(initial=0.0) <= SINGLE_TOLERANCE * np.abs(plain[name]).max(initial=1.0):
            return Verdict(FAILED, f"{name} is right in float64 but not in float32: something overflows or cancels")
    return None


def _repeats(again: Array, first: Array) -> bool:
    return same(again, first) or np.array_equal(again, first, equal_nan=True)  # a NaN again is no other result


def _raised(exercise: Exercise, failure: Failure) -> Verdict:
    if failure.kind == "NotImplementedError":
        return Verdict(TODO, f"{exercise.function} still raises NotImplementedError")
    misfit = failure.kind == "ValueError" and any(word in failure.message for word in SHAPE_WORDS)
    shapes = "; two shapes do not fit there: print them" if misfit else ""
    return Verdict(FAILED, f"{exercise.function} raised {failure}{shapes}")


def _name_results(case: Case, value: Any) -> tuple[dict[str, Array], str]:
    """Give the results by name, or say why what was returned cannot be them."""
    names = list(case.expected)
    wanted = f"a tuple of {len(names)} arrays: {', '.join(names)}" if len(names) > 1 else f"one array: {names[0]}"
    items = value if isinstance(value, tuple) else (value,)
    kinds = [item.name if not isinstance(item, np.ndarray | tuple) else "" for item in items]
    if kinds == ["NoneType"]:
        return {}, f"it returned None: expected {wanted}; is there a return?"
    if len(items) != len(names):
        got = f"{len(items)} results" if isinstance(value, tuple) else f"one {kinds[0] or 'array'}"
        return {}, f"it returned {got}, expected {wanted}"
    for name, item, kind in zip(names, items, kinds, strict=True):
        if not isinstance(item, np.ndarray):
            return {}, f"{name} must be a NumPy array of numbers, got {kind or 'tuple'}"
    return dict(zip(names, items, strict=True)), ""


def _headline(case: Case, findings: Sequence[Finding]) -> str:
    """Name what is wrong, and what is right."""
    wrong = [finding.check.name for finding in findings]
    right = [name for name in case.expected if name not in wrong]
    parts = ((wrong, "wrong"), (right, "right"))
    return "; ".join(
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} {word}" for names, word in parts if names
    )


def _find(case: Case, plain: Mapping[str, Array], doubled: Mapping[str, Array]) -> Sequence[Finding]:
    checks = {name: compare_arrays(name, plain[name], truth, TOLERANCE) for name, truth in case.expected.items()}
    wrong = {name: check for name, check in checks.items() if not check.passed}
    causes = {name: _cause(case, name, plain[name], doubled[name]) for name in wrong}
    otherwise = SAME_CAUSE if any(causes.values()) else LAST_RESORT
    return [
        Finding(check, causes[name] or otherwise, case.numeric and name in _linear(case))
        for name, check in wrong.items()
    ]


NOT_ITS_OWN = "the results do not belong to the calls: did the code write them itself?"
UNREPEATABLE = (
    "the same arguments gave another result the second time: something is remembered, drawn at random or, with "
    "np.empty, never filled"
)
LAST_RESORT = "none of the usual mistakes: write the formula with its indices and compare one element by hand"
SAME_CAUSE = "probably of the same cause"


def _cause(case: Case, name: str, yours: Array, doubled: Array) -> str:
    """Say why a result is wrong; empty where nothing fits."""
    truth = case.expected[name]
    if case.upstream and name not in _linear(case):
        return "the forward pass was right as it was handed out: put it back"
    if yours.dtype != truth.dtype:
        return f"its elements are {yours.dtype}, expected {truth.dtype}: an array was made with another dtype"
    return diagnose(name, yours, truth, case, _misuses_upstream(case, name, yours, doubled))


def _linear(case: Case) -> list[str]:
    """The results that are gradients: the others do not depend on the upstream gradient."""
    return [name for name in case.expected if name.startswith("d")] if case.upstream else []


def _misuses_upstream(case: Case, name: str, plain: Array, doubled: Array) -> str:
    if not case.upstream or name not in _linear(case) or plain.shape != doubled.shape:
        return ""
    upstream = " and ".join(case.upstream)
    if same(doubled, plain):
        return f"twice the {upstream} gives the same: the chain rule multiplies by the upstream gradient"
    if not same(doubled, 2.0 * plain):
        return f"it is not linear in {upstream}: twice as large, it does not give twice the gradient"
    return ""
