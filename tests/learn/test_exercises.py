"""Every exercise: its stub is TODO, its solution passes, and what learners get wrong is rejected with its cause."""

import ast
import inspect
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from wrong_answers import WRONG

import minifocal
from minifocal.learn.cases_debugging import PLANTED
from minifocal.learn.diagnoses import diagnose
from minifocal.learn.judge import FAILED, LAST_RESORT, PASSED, TODO
from minifocal.learn.registry import EXERCISES, HINTS, Exercise, find_exercise

PACKAGE = Path(minifocal.__file__).parent
TUTORIALS = Path(__file__).parents[2] / "tutorials"

every_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.number)


def code_lines(text: str) -> list[str]:
    """Lines of code without comments, docstrings and spaces: what a copy would share."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return [line.strip() for line in ast.unparse(tree).splitlines()]


def telling_lines(exercise: Exercise) -> set[str]:
    """The lines of a solution that its stub does not hold and that say more than a name or a return."""
    handed_out = set(code_lines(exercise.stub))
    return {line for line in code_lines(exercise.solution) if line not in handed_out and len(line) > 24}


def arguments_of(text: str, function: str) -> list[str]:
    (node,) = (n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == function)
    return [argument.arg for argument in node.args.args]


def test_there_are_enough_and_their_numbers_and_names_are_their_own():
    assert len(EXERCISES) >= 18
    assert len({exercise.number for exercise in EXERCISES}) == len({e.function for e in EXERCISES}) == len(EXERCISES)
    assert sum(exercise.function.startswith("debug_") for exercise in EXERCISES) >= 3


@every_exercise
def test_the_untouched_stub_is_to_do(exercise, judged):
    assert judged(exercise.number, exercise.stub).state == TODO
    assert judged(exercise.number, exercise.stub.replace("\n", "\r\n")).state == TODO


@every_exercise
def test_a_stub_that_still_raises_is_to_do_and_a_block_with_its_bug_is_wrong(exercise, judged):
    verdict = judged(exercise.number, exercise.stub + "\n# a thought\n")
    if exercise.function.startswith("debug_"):
        assert verdict.state == FAILED
        assert verdict.findings[0].diagnosis == PLANTED  # which it is, is the learner's to find
    else:
        assert verdict.state == TODO


@every_exercise
def test_the_solution_passes(exercise, judged):
    verdict = judged(exercise.number, exercise.solution)
    assert (verdict.state, verdict.reason) == (PASSED, "")


@pytest.mark.parametrize(
    ("number", "old", "new", "cause"), WRONG, ids=[f"{row[0]}-{at}" for at, row in enumerate(WRONG)]
)
def test_a_wrong_answer_is_rejected_and_its_cause_is_named(number, old, new, cause, judged):
    solution = find_exercise(number).solution
    assert solution.count(old) == 1
    verdict = judged(number, solution.replace(old, new))
    said = [verdict.reason, *(finding.diagnosis for finding in verdict.findings)]
    assert verdict.state == FAILED
    assert any(cause in text for text in said), said
    assert LAST_RESORT not in said
    for finding in verdict.findings:
        assert finding.check.entries or finding.check.fault


def test_at_least_six_wrong_answers_of_every_exercise_are_distinct():
    counts = Counter(number for number, _, new in {(row[0], row[1], row[2]) for row in WRONG})
    assert min(counts[exercise.number] for exercise in EXERCISES) >= 6


@every_exercise
def test_nothing_of_the_solution_is_in_the_stub_the_hints_or_a_tutorial(exercise):
    telling = telling_lines(exercise)
    assert telling
    places = [exercise.stub, *exercise.hints]
    places += [path.read_text(encoding="utf-8") for path in TUTORIALS.rglob("*") if path.suffix in (".py", ".ipynb")]
    spaceless = [re.sub(r"\s", "", text) for text in places]
    for line in telling:
        assert not any(re.sub(r"\s", "", line) in text for text in spaceless), line


@every_exercise
def test_the_stub_says_all_that_is_needed(exercise):
    case = exercise.make_cases()[-1]
    (function,) = (
        node
        for node in ast.parse(exercise.stub).body
        if isinstance(node, ast.FunctionDef) and node.name == exercise.function
    )
    docstring = inspect.cleandoc(ast.get_docstring(function))
    names, results = docstring.partition("Args:")[2].split("Returns:")
    assert arguments_of(exercise.stub, exercise.function) == list(case.arguments)
    assert arguments_of(exercise.solution, exercise.function) == list(case.arguments)
    for argument in case.arguments:
        assert re.search(rf"\b{argument}\b", names), f"{argument} is not explained"
    positions = [results.index(result) for result in case.expected]
    assert positions == sorted(positions), "the results stand in another order"


@every_exercise
def test_a_stub_needs_numpy_and_scipy_alone(exercise):
    """Each exercise can be done without any other; only a debugging exercise brings its own check, when it is run."""
    tree = ast.parse(exercise.stub)
    imported = {
        name.split(".")[0]
        for node in tree.body
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= {"math", "numpy", "scipy"}


@every_exercise
def test_the_hints_are_three_and_say_more_and_more(exercise):
    hints = exercise.hints
    assert len(hints) == HINTS
    assert len(set(hints)) == HINTS
    assert all(40 < len(hint) < 320 for hint in hints)


@every_exercise
def test_the_solution_names_files_that_exist(exercise):
    named = re.findall(r"functional/\w+\.py", exercise.solution)
    assert named or exercise.function.startswith("debug_")
    assert all((PACKAGE / name).is_file() for name in named)


@every_exercise
def test_the_cases_go_from_simple_to_full_and_one_has_sizes_that_all_differ(exercise):
    """So that no missing sum and no swapped axis can pass for something else."""
    cases = exercise.make_cases()
    assert len(cases) >= 2
    assert any(len(set(case.sizes.values())) == len(case.sizes) and min(case.sizes.values()) > 1 for case in cases)
    for case in cases:
        for value in (*case.expected.values(), *(a for a in case.arguments.values() if isinstance(a, np.ndarray))):
            assert value.dtype in ("float64", "int64")
            assert np.isfinite(value).all()


@every_exercise
def test_no_suspect_is_the_right_answer_in_every_case(exercise):
    """A mistake that gives the right numbers everywhere is none."""
    cases = exercise.make_cases()
    told_apart = {
        (suspect.result, suspect.cause)
        for case in cases
        for suspect in case.suspects
        if suspect.value.shape != case.expected[suspect.result].shape
        or not np.allclose(suspect.value, case.expected[suspect.result], rtol=1e-6)
    }
    assert {(suspect.result, suspect.cause) for case in cases for suspect in case.suspects} == told_apart


@every_exercise
def test_every_suspect_is_named_where_its_numbers_are_met(exercise):
    """None is hidden behind another finder or another suspect; a shape that is wrong may say more than the numbers."""
    cases = exercise.make_cases()
    wanted = {(suspect.result, suspect.cause) for case in cases for suspect in case.suspects}
    named = set()
    for case in cases:
        for suspect in case.suspects:
            truth = case.expected[suspect.result]
            named.add((suspect.result, diagnose(suspect.result, np.asarray(suspect.value, float), truth, case)))
    assert wanted <= named


def test_a_number_a_name_or_a_file_finds_an_exercise():
    assert find_exercise("6") is find_exercise("06") is find_exercise("layer_norm_backward")
    assert find_exercise("06_layer_norm_backward.py").number == "06"
    with pytest.raises(minifocal.InputError, match="there is no exercise 'xyz': give a number from 01 to 21"):
        find_exercise("xyz")


def test_every_debugging_exercise_says_which_gradients_are_wrong_when_it_is_run(tmp_path, monkeypatch, capsys):
    for exercise in EXERCISES:
        if exercise.function.startswith("debug_"):
            vars_of_run: dict[str, object] = {"__name__": "__main__"}
            exec(compile(exercise.stub, exercise.file_name, "exec"), vars_of_run)
            out = capsys.readouterr().out
            assert "FAIL" in out
            assert "pass" in out
