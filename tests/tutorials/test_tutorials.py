"""The tutorials run, all that they assert is reached, they have one form, and the notebooks are the same tutorials."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from minifocal.arrays import check_device
from minifocal.learn.judge import ABSENT, FAILED, PASSED, TODO
from minifocal.learn.registry import EXERCISES, HINTS

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "tutorials"
RUNNER = Path(__file__).parent / "running.py"
MAKER = runpy.run_path(str(TUTORIALS / "make_notebooks.py"), run_name="maker")
PAGE = (TUTORIALS / "README.md").read_text(encoding="utf-8")
SCRIPTS = MAKER["scripts"]()
LONGEST = 300.0  # seconds, many times what any takes: only a tutorial that hangs meets it

every_tutorial = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def number_of(script: Path) -> int:
    return int(script.stem[:2])


def cells(script: Path) -> list[nbformat.NotebookNode]:
    """The cells as the notebook has them, without the one that installs."""
    notebook = nbformat.reads(MAKER["make_notebook"](script), as_version=4)
    return [cell for cell in notebook.cells if cell.source != MAKER["INSTALL"]]


def test_there_is_every_tutorial_from_the_first_to_the_last():
    assert [number_of(script) for script in SCRIPTS] == list(range(14))


@every_tutorial
def test_it_runs_and_every_assertion_is_reached(script, tmp_path):
    """In a fresh process, without a network, from a folder of its own, where nothing is left behind."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(RUNNER), str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["assertions"]) >= 3
    assert found["passed"] == sorted(found["assertions"]), "an assertion that is never reached"
    assert found["pictures"], "there is nothing to look at"
    assert found["never_shown"] == []
    assert found["nameless"] == [], "a picture without labels and titles"
    assert list(tmp_path.iterdir()) == []


@every_tutorial
def test_no_assertion_is_about_nothing(script):
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assert):
            names = [part for part in ast.walk(node.test) if isinstance(part, ast.Name)]
            assert names, f"line {node.lineno} asserts a constant"


@every_tutorial
def test_it_says_first_what_it_needs_how_long_it_takes_and_what_it_explains(script):
    number, head = number_of(script), cells(script)[0].source
    assert re.match(rf"# {number}\. \S", head)
    before, minutes = re.search(r"^\*Before this:\* (.+?)\. \*Time:\* (\d+) minutes\.$", head, re.MULTILINE).groups()
    needed = [int(found) for found in re.findall(r"\d+", before)]
    assert all(other < number for other in needed)
    assert needed or (number == 0 and before == "nothing")
    assert 10 <= int(minutes) <= 90
    assert "*Afterwards you can* " in head
    explained = head.partition("*Explains* ")[2].partition("\n\n")[0]
    files = re.findall(r"\[`([^`]+)`\]\(\.\./\.\./([^)]+)\)", explained)
    assert files
    for shown, target in files:
        assert shown == target
        assert (ROOT / target).is_file()


@every_tutorial
def test_it_ends_with_two_questions_and_their_answers(script):
    last = cells(script)[-1].source
    questions, answers = re.fullmatch(r"(?s).*## Questions\n(.*)\n## Answers\n(.*)", last).groups()
    for part in (questions, answers):
        assert re.findall(r"^(\d+)\. ", part, re.MULTILINE) == ["1", "2"]


@every_tutorial
def test_it_checks_a_gradient_and_holds_itself_against_the_library(script):
    text = script.read_text(encoding="utf-8")
    assert re.search(r"check_gradients\(|check_layer\(|# numeric|numeric", text)
    assert "assert_allclose" in text
    assert re.search(r"^(from|import) minifocal", text, re.MULTILINE)


@every_tutorial
def test_what_it_builds_on_stands_in_tutorials_before(script):
    """A later one is named only as the place where a subject goes on."""
    for cell in cells(script):
        if cell.cell_type == "markdown":
            for sentence in re.split(r"(?<=[.:;])\s", cell.source):
                for other in re.findall(r"tutorial (\d+)", sentence):
                    assert int(other) < number_of(script) or re.search("later|subject of|shows how", sentence), sentence


@every_tutorial
def test_its_links_lead_to_files_and_its_formulas_are_closed(script):
    for cell in cells(script):
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((\.\./[^)#]+)\)", cell.source):
                assert (TUTORIALS / "notebooks" / target).exists(), target
            text = re.sub(r"`[^`\n]*`", "", cell.source)
            displayed = text.split("$$")
            assert len(displayed) % 2 == 1
            assert all(part.count("$") % 2 == 0 for part in displayed[::2])
            assert text.count("{") == text.count("}")


@every_tutorial
def test_no_line_is_copied_from_the_library(script):
    """What is explained is built again; only calls and imports look alike."""
    library = [path.read_text(encoding="utf-8") for path in (ROOT / "minifocal").rglob("*.py")]
    known = {line.strip() for text in library for line in text.splitlines()}
    lines = [line.strip() for cell in cells(script) if cell.cell_type == "code" for line in cell.source.splitlines()]
    alike = [line for line in lines if len(line) > 40 and line in known]
    own = [line for line in alike if not line.startswith(("from ", "import ", "def ", "figure", "class "))]
    assert len(own) <= 2, own


@every_tutorial
def test_its_notebook_is_the_same_tutorial(script):
    """Cells are compared and not bytes: another version of the writer may order keys differently."""
    made = nbformat.reads(MAKER["make_notebook"](script), as_version=4)
    kept = nbformat.read(MAKER["notebook_path"](script), as_version=4)
    assert [(cell.cell_type, cell.id, cell.source) for cell in kept.cells] == [
        (cell.cell_type, cell.id, cell.source) for cell in made.cells
    ], "run python tutorials/make_notebooks.py"
    nbformat.validate(kept)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in kept.cells)
    code = "\n\n".join(cell.source for cell in kept.cells if cell.cell_type == "code" and cell.id != kept.cells[1].id)
    script_code = ast.parse(script.read_text(encoding="utf-8"))
    assert ast.dump(ast.parse(code)) == ast.dump(script_code)


def test_the_page_lists_every_tutorial_with_its_title_and_its_time():
    rows = re.findall(r"^\| (\d+) \| \[(.+?)\]\((.+?)\) \| .+ \| (\d+) \|$", PAGE, re.MULTILINE)
    assert [(int(number), path) for number, _, path, _ in rows] == [(number_of(s), s.name) for s in SCRIPTS]
    for (number, title, _, minutes), script in zip(rows, SCRIPTS, strict=True):
        head = cells(script)[0].source
        assert head.startswith(f"# {number}. {title}")
        assert f"*Time:* {minutes} minutes." in head


def test_the_page_names_every_verdict_and_command():
    for verdict in (PASSED, FAILED, TODO, ABSENT):
        assert f"`{verdict}`" in PAGE
    for action in ("start", "check", "hint", "solution", "watch", "reset"):
        assert re.search(rf"`{action}( NN)?`", PAGE)
    assert str(HINTS) == "3"
    assert "three hints" in PAGE
    named = {exercise.number for exercise in EXERCISES}
    plan = PAGE.partition("A plan for")[2]
    given = set()
    for first, last in re.findall(r"\b(\d\d)(?: to (\d\d))?", plan.partition("| 1:")[2]):
        given |= {f"{number:02}" for number in range(int(first), int(last or first) + 1)}
    assert named <= given


def test_no_notebook_is_left_over():
    wanted = {MAKER["notebook_path"](script) for script in SCRIPTS}
    assert set((TUTORIALS / "notebooks").iterdir()) == wanted


@pytest.mark.parametrize("wheel", [True, False], ids=["wheel", "index"])
def test_the_installing_cell_installs_only_where_minifocal_is_missing(wheel, tmp_path, monkeypatch):
    runs = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: runs.append((command, options)))
    exec(MAKER["INSTALL"], {})
    assert runs == []
    if wheel:
        (tmp_path / "minifocal-0.1.0-py3-none-any.whl").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(MAKER["INSTALL"], {})
    ((command, options),) = runs
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-1] == (str(tmp_path / "minifocal-0.1.0-py3-none-any.whl") if wheel else "minifocal")
    assert options == {"check": True}


def test_the_part_of_tutorial_12_that_needs_a_gpu_runs_on_kernels_compiled_for_the_host(
    cuda_on_host, monkeypatch, capsys
):
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    (script,) = (script for script in SCRIPTS if number_of(script) == 12)
    check_device("cuda")
    monkeypatch.setattr(mpl, "get_backend", lambda: "agg")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    runpy.run_path(str(script), run_name="__main__")
    assert re.search(r"cuda", capsys.readouterr().out)
