"""The judge holds against code that hangs, prints, raises, returns nonsense, or reaches for the judge."""

import os
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from minifocal.errors import InputError
from minifocal.learn import child
from minifocal.learn.case import Case
from minifocal.learn.diagnoses import diagnose
from minifocal.learn.judge import ABSENT, FAILED, PASSED, TODO, judge
from minifocal.learn.registry import find_exercise

SCALE = find_exercise("16")  # layer_scale_backward(dy, x, gamma) -> dx, dgamma
RIGHT = "return dy * gamma, (dy * x).sum(axis=(0, 1))"


def answer(body: str, before: str = "") -> str:
    return f"import numpy as np\n{before}\n\ndef layer_scale_backward(dy, x, gamma):\n{textwrap.indent(body, '    ')}\n"


def test_no_file_is_not_started(tmp_path):
    verdict = judge(SCALE, tmp_path / SCALE.file_name)
    assert verdict.state == ABSENT
    assert "minifocal learn start 16" in verdict.reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise RuntimeError('no idea')", "layer_scale_backward raised RuntimeError in line 5: no idea"),
        ("return layer_scale_backward(dy, x, gamma)", "raised RecursionError in line 5"),
        ("return np.zeros(10**12)", "raised"),
        ("raise SystemExit(0)", "layer_scale_backward raised SystemExit in line 5: 0"),
        ("raise KeyboardInterrupt", "layer_scale_backward raised KeyboardInterrupt in line 5"),
        ("import os; os._exit(0)", "it ended Python before it gave a result (exit status 0)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "it ended Python before it gave a result"),
        ("pass", "it returned None: expected a tuple of 2 arrays: dx, dgamma; is there a return?"),
        ("return dy * gamma", "it returned one array, expected a tuple of 2 arrays: dx, dgamma"),
        ("return dy, x, gamma", "it returned 3 results, expected a tuple of 2 arrays: dx, dgamma"),
        ("return [dy * gamma, gamma]", "it returned one list, expected a tuple"),
        ("return dy.tolist(), gamma", "dx must be a NumPy array of numbers, got list"),
        ("return 'dx', 'dgamma'", "dx must be a NumPy array of numbers, got str"),
        ("return (dy, x), gamma", "dx must be a NumPy array of numbers, got tuple"),
        ("return dy.astype(object), gamma", "dx must be a NumPy array of numbers, got array of object"),
        ("return dy > 0, gamma", "dx must be a NumPy array of numbers, got array of bool"),
        ("return np.matrix(gamma), gamma", "dx must be a NumPy array of numbers, got matrix"),
        ("return np.ones(2**22), gamma", "of numbers, got array of float64 with 4194304 elements"),
        ("gamma += 1\nreturn dy * gamma, gamma", "gamma was changed in place"),
        ("dy[0] = 0\n" + RIGHT, "dy was changed in place"),
        ("import minifocal", "ModuleNotFoundError in line 5: the exercise is to be solved with NumPy alone"),
        ("from minifocal.functional.layer_scale import layer_scale_backward", "to be solved with NumPy alone"),
        ("raise ValueError('no \\ud800 text\\n\\x1b')", "raised ValueError in line 5: no   text"),
        ("raise SyntaxError(5)", "raised SyntaxError in line 5: 5"),
        ("raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})", "raised E in line 5"),
        ("return type('a\\nb', (), {})()", "it returned one a b, expected"),
        ("dy.sum(axis=(1, 1))", "duplicate value in 'axis'"),
        ("dy @ gamma[:2]", "two shapes do not fit there: print them"),
        ("raise NotImplementedError", "still raises NotImplementedError"),
        ("input('dx? ')", "raised EOFError"),
    ],
)
def test_what_is_no_answer_gets_a_clear_reason(body, reason, judged):
    verdict = judged("16", answer(body))
    assert verdict.state == (TODO if "NotImplemented" in body else FAILED)
    assert reason in verdict.reason
    assert "\n" not in verdict.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def layer_scale_backward(dy, x, gamma)\n", "the file cannot be loaded: SyntaxError in line 1"),
        ("\nraise ValueError('early')\n", "the file cannot be loaded: ValueError in line 2: early"),
        ("import no_such_library\n", "the file cannot be loaded: ModuleNotFoundError in line 1"),
        ("import sys\nsys.exit(3)\n", "the file cannot be loaded: SystemExit in line 2: 3"),
        ("x = 1\n", "it has no function layer_scale_backward: keep the name of the stub"),
        ("layer_scale_backward = 3\n", "it has no function layer_scale_backward"),
        ("", "it has no function layer_scale_backward"),
        ("\0", "the file cannot be loaded"),
    ],
)
def test_a_file_that_cannot_be_loaded_says_why(text, reason, judged):
    verdict = judged("16", text)
    assert verdict.state == FAILED
    assert reason in verdict.reason


def test_bytes_that_are_no_text_cannot_be_loaded(tmp_path):
    path = tmp_path / SCALE.file_name
    path.write_bytes(b"x = '\xff\xfe'\n")
    assert "the file cannot be loaded: SyntaxError" in judge(SCALE, path).reason


def test_a_file_larger_than_any_answer_or_a_folder_is_refused(tmp_path):
    (tmp_path / "large.py").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(InputError, match="is this the right file"):
        judge(SCALE, tmp_path / "large.py")
    with pytest.raises(InputError, match="no regular file"):
        judge(SCALE, tmp_path)


def test_a_loop_without_an_end_is_stopped_and_so_is_what_it_started(tmp_path, judged):
    pid_file = tmp_path / "pid"
    body = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(pid_file)!r}, "w").write(str(child.pid))
while True:
    pass
"""
    verdict = judged("16", answer(body), time_limit=5.0)
    assert verdict.state == FAILED
    assert verdict.reason == "it did not end within 5 seconds: a loop without an end?"
    assert is_gone(int(pid_file.read_text()))


def is_gone(pid: int) -> bool:
    """Whether a process has ended, or is about to be collected by whoever inherited it."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_a_right_answer_that_prints_passes_and_a_part_of_it_is_shown_once(judged):
    verdict = judged("16", answer(f"print('shape', dy.shape)\n{RIGHT}"))
    assert verdict.state == PASSED
    assert verdict.printed == "shape (1, 1, 3)\n"


def test_endless_printing_fills_neither_memory_nor_disk(judged):
    verdict = judged("16", answer("while True:\n    print('x' * 10**6)"))
    assert verdict.state == FAILED
    assert len(verdict.printed) <= 2000


def test_a_thread_that_stays_behind_does_not_keep_it_waiting(judged):
    """The thread outlives the time limit."""
    body = f"import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n{RIGHT}"
    assert judged("16", answer(body)).state == PASSED


HERE = """import os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
(folder / 'results.bin').write_bytes(b'')"""
BEYOND = '{"results": [{"value": {"array": ["<f8", [99], 0]}, "after": []}]}'
UNASKED = '{"results": [{"value": {"tuple": [{"number": 1.0}, {"number": 2.0}]}, "after": []}]}'
WRONG = "return dy, (dy * x).sum(axis=(0, 1))"


@pytest.mark.parametrize(
    "before",
    [
        "np.allclose = np.array_equal = np.testing.assert_allclose = lambda *a, **k: True",
        "import sys, types\nm = types.ModuleType('minifocal.gradcheck')\nm.compare_arrays = lambda *a: True\n"
        "sys.modules['minifocal'] = types.ModuleType('minifocal')\nsys.modules['minifocal.gradcheck'] = m",
        "import builtins\nbuiltins.abs = builtins.max = lambda *a, **k: 0",
        "import sys\nsys.modules.pop('minifocal')\nimport minifocal.learn.judge as j\n"
        "j.compare_arrays = j.judge = None\nimport minifocal.gradcheck as g\ng.compare_arrays = lambda *a: None",
        "import json\njson.dumps = lambda value: '{\"results\": []}'",
        f"{HERE}\n(folder / 'results.json').write_text('{{\"passed\": true}}')",
        f"{HERE}\n(folder / 'results.json').write_text('{{\"results\": []}}')\nos._exit(0)",
        f"{HERE}\n(folder / 'results.json').write_text('[' * 10**5)\nos._exit(0)",
        f"{HERE}\n(folder / 'results.json').write_text('{BEYOND}')\nos._exit(0)",
        f"{HERE}\n(folder / 'results.json').write_text('{UNASKED}')\nos._exit(0)",
        f"{HERE}\n(folder / 'results.json').write_text('[1]')\nos._exit(0)",
        f"{HERE}\nos.mkfifo(folder / 'results.json')\nos._exit(0)",
        f"{HERE}\n(folder / 'printed').unlink()\nos.mkfifo(folder / 'printed')\nos._exit(0)",
        f"{HERE}\nimport shutil\nshutil.rmtree(folder)\nos._exit(0)",
        f"{HERE}\nimport shutil\nshutil.rmtree(folder)\nos.symlink('/', folder)\nos._exit(0)",
        "class Always(np.ndarray):\n    def __eq__(self, other): return True\n    def __sub__(self, other): return 0",
    ],
    ids=["numpy", "modules", "builtins", "library", "json", "file", "empty", "deep", "beyond"]
    + ["unasked", "list", "pipe", "printed", "removed", "link", "subclass"],
)
def test_no_wrong_answer_passes_by_reaching_for_the_judge(before, judged):
    """It computes its numbers in one process and is judged in another."""
    verdict = judged("16", answer(WRONG, before))
    assert verdict.state == FAILED
    assert "\n" not in verdict.reason


def test_results_of_the_first_case_alone_are_not_enough(judged):
    """An answer that is right there, and keeps what came of the other cases back."""
    before = (
        "import json, pathlib\nreal = pathlib.Path.write_text\n"
        "first = lambda text: json.dumps({'results': json.loads(text)['results'][:4]})\n"
        "pathlib.Path.write_text = lambda path, text, **options: real(path, first(text), **options)"
    )
    body = "return dy * gamma, (dy * x)[0, 0]"
    assert judged("16", answer(body)).other_cases == ("B=1, T=1, C=3",)
    verdict = judged("16", answer(body, before))
    assert verdict.state == FAILED
    assert "do not belong to the calls" in verdict.reason


def test_an_answer_that_remembers_is_found(judged):
    body = f"global seen\nseen += 1\n{RIGHT.replace('gamma,', 'gamma * (1 if seen % 4 != 2 else 2),')}"
    verdict = judged("16", answer(body, "seen = 0"))
    assert verdict.reason.startswith("the same arguments gave another result the second time: something is remembered")


def test_an_answer_that_draws_is_told_so_and_not_what_its_numbers_look_like(judged):
    verdict = judged("16", answer("return np.random.random(dy.shape), np.random.random(gamma.shape)"))
    assert "drawn at random" in verdict.reason
    assert not verdict.findings


def test_an_answer_that_draws_is_told_so_where_one_case_came_out_alike_twice(judged):
    by_luck = "if gamma.size == 3: return 0.0 * dy, 0.0 * gamma"
    verdict = judged("16", answer(f"{by_luck}\nreturn np.random.random(dy.shape), np.random.random(gamma.shape)"))
    assert "drawn at random" in verdict.reason
    assert verdict.case == "B=2, T=4, C=5"


def test_a_nan_that_comes_again_is_no_other_result(judged):
    verdict = judged("16", answer("return dy * np.nan, (dy * x).sum(axis=(0, 1))"))
    assert "elements are NaN" in verdict.findings[0].diagnosis


def test_a_named_tuple_is_a_tuple(judged):
    before = "from typing import NamedTuple\nclass Grads(NamedTuple):\n    dx: object\n    dgamma: object"
    assert judged("16", answer("return Grads(dy * gamma, (dy * x).sum(axis=(0, 1)))", before)).state == PASSED


def test_an_answer_that_is_not_linear_is_found_where_its_numbers_are_right(judged):
    body = RIGHT.replace("dy * gamma,", "dy * gamma * (1 if abs(dy).max() < 3.8 else 2),")
    verdict = judged("16", answer(body))
    assert verdict.state == FAILED
    assert "twice the dy did not give twice the gradients" in verdict.reason


def test_a_gradient_that_is_not_linear_in_the_upstream_gradient_is_named_so(judged):
    verdict = judged("16", answer("return np.sinh(dy) * np.cos(x), (dy * x).sum(axis=(0, 1))"))
    assert (
        "it is not linear in dy: twice as large, it does not give twice the gradient" in verdict.findings[0].diagnosis
    )
    verdict = judged("16", answer("return np.cos(x), (dy * x).sum(axis=(0, 1))"))
    assert "twice the dy gives the same: the chain rule" in verdict.findings[0].diagnosis


def test_results_larger_than_any_answer_are_not_read(judged, monkeypatch):
    monkeypatch.setattr(child, "LARGEST_FILE", 100)
    assert "it ended Python before it gave a result" in judged("16", answer(RIGHT)).reason


def test_an_answer_that_is_right_in_float64_alone_is_found(judged):
    body = f"dy = dy + np.float32(1e3) - np.float32(1e3) if dy.dtype == 'float32' else dy\n{RIGHT}"
    assert "is right in float64 but not in float32" in judged("16", answer(body.replace("1e3", "1e6"))).reason


@pytest.mark.parametrize("dtype", ["int64", "uint8", "complex128", "float16", "float32"])
def test_another_dtype_is_named(dtype, judged):
    verdict = judged("16", answer(f"return (dy * gamma).astype('{dtype}'), (dy * x).sum(axis=(0, 1))"))
    assert f"its elements are {dtype}, expected float64" in verdict.findings[0].diagnosis


def test_numbers_that_overflow_only_when_doubled_are_judged_like_others(judged):
    verdict = judged("16", answer("return dy * 6e307, (dy * x).sum(axis=(0, 1))"))
    assert verdict.state == FAILED
    assert verdict.findings


def test_the_case_that_failed_and_those_that_passed_are_named(judged):
    verdict = judged("16", answer("return dy * gamma, (dy * x)[0, 0]"))
    assert verdict.case == "B=2, T=4, C=5"
    assert verdict.other_cases == ("B=1, T=1, C=3",)
    check = verdict.findings[0].check
    assert (check.name, check.shape, check.entries[0].index) == ("dgamma", (5,), (check.entries[0].index[0],))


# What a wrong array looks like: each finder of causes by itself


TRUTH = np.random.default_rng(0).standard_normal((2, 5, 4, 3))
FACTOR = np.random.default_rng(1).standard_normal((4, 3))
CASE = Case(
    sizes={"B": 2, "H": 5, "W": 4, "C": 3, "k": 11},
    arguments={"dy": TRUTH + 1.0, "factor": FACTOR, "rate": 0.3, "eps": 1e-5},
    expected={"dx": TRUTH, "dother": TRUTH[0].copy()},
    upstream=("dy",),
)


@pytest.mark.parametrize(
    ("yours", "cause"),
    [
        (TRUTH[0], "this is dother: give the results in the order dx, dother"),
        (TRUTH.transpose(0, 2, 1, 3), "it is transposed: axes (0, 2, 1, 3) of yours are the axes of dx"),
        (TRUTH.reshape(10, 4, 3), "the numbers are right, the shape is not"),
        (np.stack([TRUTH / 4, TRUTH * 3 / 4]), "the sum over axis 0 is missing"),
        (np.stack([TRUTH / 2, TRUTH * 3 / 2]), "the mean over axis 0 is missing"),
        (TRUTH.sum(axis=2), "it is summed over axis 2, which belongs to the result"),
        (TRUTH.mean(axis=(1, 2), keepdims=True), "it is averaged over axes 1, 2"),
        (np.ones((7, 1)), "the shape is (7, 1), expected (2, 5, 4, 3)"),
        (np.ones((0, 4)), "the shape is (0, 4), expected (2, 5, 4, 3)"),
        (np.ones((1,) * 32), "the shape is (1, 1, 1"),  # with more subsets of axes than can be tried
        (np.where(TRUTH > 2, np.nan, TRUTH), "elements are NaN"),
        (np.where(TRUTH > 2, np.inf, TRUTH), "elements are infinite"),
        (np.zeros_like(TRUTH), "every element is zero"),
        (-TRUTH, "the sign is turned"),
        (2 * TRUTH, "it is 2 times the right result (= B)"),
        (TRUTH / 20, "it is 0.05 times the right result (= 1/(H*W)): is there a mean where a sum belongs"),
        (0.3 * TRUTH, "(= rate)"),
        (TRUTH / 0.7, "(= 1/(1 - rate)): a factor is missing or too much"),
        (7 * TRUTH, "it is 7 times the right result: a factor is missing or too much"),
        (TRUTH[:, ::-1], "it is flipped along axis 1"),
        (TRUTH[:, ::-1, ::-1], "it is flipped along axes 1, 2"),
        (TRUTH / FACTOR, "the factor factor is missing"),
        (TRUTH * FACTOR, "there is a factor factor too much"),
        (TRUTH - FACTOR, "the term factor is missing"),
        (TRUTH + FACTOR, "there is a term factor too much"),
        (TRUTH / (TRUTH + 1.0), "the factor dy is missing: the chain rule multiplies by the upstream gradient"),
        (np.roll(TRUTH, 1, axis=1), "it is shifted along axis 1"),
        (np.roll(TRUTH, (1, -1), axis=(1, 2)), "it is shifted along axes 1, 2"),
        (TRUTH + 1e-3 * np.sin(TRUTH), "it is nearly right"),
        (TRUTH * (np.arange(5) > 0)[:, None, None], "wrong only at index 0 of axis 1 (length 5), at the border"),
        (TRUTH * (np.arange(5) < 1)[:, None, None], "right only at index 0 of axis 1 (length 5)"),
        (TRUTH.transpose(3, 0, 1, 2).reshape(TRUTH.shape), "a reshape where a transpose"),
        (TRUTH / 121, "(= 1/(k*k))"),
        (TRUTH * 5 / 4, "(= H/W)"),
        (TRUTH * 2 / 0.3, "(= B/rate)"),
        (TRUTH * (np.arange(3) != 1), "wrong only at index 1 of axis 3 (length 3)"),
        (np.random.default_rng(5).standard_normal(TRUTH.shape), ""),
    ],
)
def test_a_cause_is_found_from_the_numbers_alone(yours, cause):
    found = diagnose("dx", yours, TRUTH, CASE)
    assert cause in found
    assert cause or not found


def test_a_square_array_that_is_transposed_is_found():
    square = np.random.default_rng(3).standard_normal((4, 4))
    case = Case(sizes={"C": 4}, arguments={}, expected={"dweight": square})
    assert "it is transposed: axes (1, 0)" in diagnose("dweight", square.T, square, case)


def test_an_array_in_another_order_that_is_no_transpose_is_not_called_one():
    shuffled = np.random.default_rng(4).permutation(TRUTH.ravel()).reshape(4, 5, 2, 3)
    assert diagnose("dx", shuffled, TRUTH, CASE).startswith("the shape is (4, 5, 2, 3), expected (2, 5, 4, 3)")
