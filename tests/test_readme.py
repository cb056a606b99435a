"""The README keeps its word: its commands are the ones that are run, its code runs, its links lead somewhere."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from published import CKPT

from minifocal.cli import make_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


def test_the_readme_gives_two_lines_that_do_all_the_set_up():
    assert COMMANDS[:2] == ["pip install -e . && minifocal train", 'pip install -e ".[test]" && pytest']


@pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="not a checkout")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_is_run_as_it_stands(command):
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_command_in_the_text_parses():
    inline = re.findall(r"`(minifocal [^`]+)`", README)
    assert len(inline) >= 4
    for command in inline:
        make_parser().parse_args(shlex.split(command)[1:])


def test_the_code_of_the_readme_runs(capsys, tmp_path, monkeypatch):
    use, weights = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(use, names)
    assert names["record"].loss > 0
    out = capsys.readouterr().out
    assert out.startswith("(8, 8, 8, 64) (64, 256)")
    assert "FAIL" not in out
    # Weights of other kinds than those that a reader would have, under their names.
    shutil.copytree(CKPT / "hf", tmp_path / "focalnet-tiny")
    shutil.copy(CKPT / "training.pth", tmp_path / "focalnet_tiny_lrf.pth")
    monkeypatch.chdir(tmp_path)
    exec(weights, names)
    assert names["model"].config.num_classes == 10
    assert (tmp_path / "for-transformers" / "config.json").is_file()


def test_the_transcript_of_the_readme_is_what_happens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "tests" / "learn")
    from transcript import replay

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert replay([sys.executable, "-m", "minifocal"], README) == 4


def test_every_link_of_the_readme_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 10
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []
