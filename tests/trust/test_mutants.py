"""Mutation testing itself: the record covers today's sources, its kills can be repeated, and a mutant can survive."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from mutant_record import Record, read_equivalents, read_table
from mutants import ROOT, all_mutants, mutants_of

HERE = Path(__file__).parent
COMMAND = "python tests/trust/mutate.py"


@pytest.fixture(scope="module")
def today():
    return all_mutants()


def test_every_mutant_is_killed_or_argued(today):
    record, argued = Record(HERE / "mutants.tsv", today), read_equivalents()
    open_ones = [m.name for m in today if record.outcome(m) not in ("killed", "timeout") and m.name not in argued]
    assert not open_ones, f"{len(open_ones)} mistakes that no test is known to notice: run {COMMAND}; {open_ones[:5]}"


def test_the_record_holds_no_mutant_of_yesterday(today):
    names = {mutant.name for mutant in today}
    assert len(names) == len(today)
    stale = [name for name in [*read_table(HERE / "mutants.tsv"), *read_equivalents()] if name not in names]
    assert not stale, f"the sources have changed: run {COMMAND}, and take out what is argued of lines that are gone"


def test_every_argued_mutant_has_a_reason_and_is_not_called_killed(today):
    record = Record(HERE / "mutants.tsv", today)
    killed = {m.name for m in today if record.outcome(m) in ("killed", "timeout")}
    for name, reason in read_equivalents().items():
        assert len(reason.split()) > 3, name
        assert name not in killed, name


def test_every_test_that_kills_exists():
    functions = {}
    for _, (outcome, test) in read_table(HERE / "mutants.tsv").items():
        if outcome == "killed" and test != "import":
            file, _, function = test.partition("::")
            if file not in functions:
                tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
                functions[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert function.partition("[")[0] in functions[file], test


def test_a_sample_of_the_mutants_dies_again():
    command = [sys.executable, str(HERE / "mutate.py"), "--verify", "--sample", "25"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "25 mutants run, 0 survived" in done.stdout


def changes(source):
    return {mutant.change for mutant in mutants_of("module.py", source)}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a - b * c", {"a - b * c -> a + b * c", "b * c -> b / c", "a - b * c -> b * c - a", "b * c -> b"}),
        ("a @ b", {"a @ b -> b @ a", "a @ b -> a", "a @ b -> b"}),
        ("-a if not b else ~c", {"-a -> a", "not b -> b", "~c -> c", "not b -> True", "not b -> False"}),
        ("a < b <= c", {"a < b <= c -> a <= b <= c", "a < b <= c -> a >= b <= c", "a < b <= c -> a < b < c"}),
        ("a and b", {"a and b -> a or b", "a and b -> a", "a and b -> b"}),
        ("(3, -1, 0.5, True)", {"3 -> 4", "3 -> 2", "-1 -> 0", "0.5 -> 0.75", "True -> False"}),
        ("a[i:n]", {"i:n -> :n", "i:n -> i:", "i:n -> i:n - 1"}),
        ("range(n)", {"range(n) -> range(n - 1)"}),
        ("f(a, b, k=c)", {"f(a, b, k=c) -> f(a, b)", "f(a, b, k=c) -> f(b, a, k=c)"}),
        ("layer.forward(x, rng)", {"layer.forward(x, rng) -> layer.forward(x)"}),
        ("a.sum(axis=(1, 2), keepdims=True)", {"(1, 2) -> (1,)", "True -> False"}),
        ("a.sum(axis=0)", {"a.sum(axis=0) -> a", "a.sum(axis=0) -> a.mean(axis=0)", "0 -> 1"}),
        ("xp.exp(a.T)", {"xp.exp(a.T) -> a.T", "a.T -> a"}),
        ("(H, W)", {"H -> W", "W -> H", "(H, W) -> (W, H)"}),
        ("cache.x", {"cache.x -> cache.weight"}),
        ("[a for a in b if a]", {"a -> True", "a -> False"}),
    ],
)
def test_each_kind_of_mistake_is_made(line, expected):
    missing = expected - changes(f"def f(cache: LinearCache):\n    return {line}\n")
    assert not missing


def test_statements_are_left_out_and_sums_are_set():
    made = changes("def f():\n    a += b\n    a[0] = b\n    g(b)\n")
    assert {"a += b -> a = b", "a += b -> a -= b", "a += b -> pass", "a[0] = b -> pass", "g(b) -> pass"} <= made


def test_what_computes_nothing_is_left_alone():
    source = '''
"""Text."""
import math
Padding = tuple[int, int]
@d(1)
def f(a: int | None = None) -> int | str:
    """Text."""
    raise ValueError(f"{a + 1}")
def __repr__(self):
    return 1
for a, b in zip(a, b, strict=True):
    pass
'''
    assert changes(source) == {"zip(a, b, strict=True) -> zip(b, a, strict=True)"}


def test_a_name_stays_when_another_function_is_edited():
    source = "def f(a):\n    return a - 1\n"
    names = {mutant.name for mutant in mutants_of("module.py", source)}
    assert names <= {m.name for m in mutants_of("module.py", "def g(a):\n    return 2 * a\n\n\n" + source)}


def test_a_mistake_in_a_head_or_a_signature_has_the_lines_that_pass_by_it():
    source = (
        "def f(\n    a=1,\n):\n    for n in (\n        2,\n        a,\n    ):\n        g(\n            3,\n        )\n"
    )
    lines = {mutant.change: mutant.at for mutant in mutants_of("module.py", source)}
    assert {change: lines[change] for change in ("1 -> 2", "2 -> 3", "3 -> 4")} == {
        "1 -> 2": (1, 10), "2 -> 3": (4, 7), "3 -> 4": (8, 10),
    }  # fmt: skip


def test_tests_that_cannot_be_collected_are_no_kill_and_no_silence():
    source = "from mutant_coverage import run_pytest; run_pytest(['tests/none.py'], lambda session: None)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=HERE, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: the tests were not run: tests/none.py\n")


PLANTED = """
import ast
from dataclasses import replace
from mutant_runs import Runner
from mutants import ROOT, mutants_of

path = "minifocal/functional/layer_scale.py"
source = (ROOT / path).read_text(encoding="utf-8")
(mistake,) = [m for m in mutants_of(path, source) if m.change == "x * gamma -> x / gamma"]
none = replace(mistake, change="none", tree=lambda: ast.parse(source))
tests = ["tests/test_functional_forward.py::test_layer_scale_equals_its_loops[cpu]"]
found = []
for plant in (Runner(1, 1.0).exchanged, Runner(1, 1.0).imported_anew):
    plant({none: tests, mistake: tests}, {}, lambda mutant, outcome, test: found.append(f"{mutant.change}: {outcome}"))
print("|".join(found))
"""


def test_a_change_that_is_none_survives_and_a_mistake_beside_it_dies():
    """In both ways of planting: exchanged in a function, and imported anew."""
    command = [sys.executable, "-c", PLANTED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=False)
    found = done.stdout.strip().splitlines()[-1] if done.stdout else done.stderr
    assert found == "|".join(["none: survived", "x * gamma -> x / gamma: killed"] * 2)
