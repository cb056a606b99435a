"""`minifocal bench` as a user types it."""

import json
import os
import re
import subprocess
from dataclasses import replace

import pytest
from PIL import Image

from minifocal.bench import processes, scaling
from minifocal.bench.measure import NotMeasuredError
from minifocal.bench.peers import missing
from minifocal.bench.workloads import MODES
from minifocal.cli import bench, main
from minifocal.ops import REFERENCE, Op
from minifocal.threads import THREAD_VARIABLES

QUICK = ["bench", "--workload", "micro", "--rounds", "3"]
ALONE = [*QUICK, "--against", "none"]


def test_a_table_of_ratios_is_printed_written_and_drawn(micro, monkeypatch, tmp_path, capsys):
    files = ["--json", str(tmp_path / "a" / "b.json"), "--picture", str(tmp_path / "b.png")]
    named_twice = ["--ops", "reference", "auto", "reference", "--mode", *MODES, "train"]
    monkeypatch.setattr("minifocal.cli.bench.get_ops", lambda name, device: REFERENCE)
    assert main([*ALONE, "--no-memory", *named_twice, *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "workload"
    assert len(lines) == 1 + 3 * 2
    assert all(
        re.fullmatch(r"micro +(training step|inference [18]) +(floor|reference) +\d+\.\d\d", s) for s in lines[1:]
    )
    results = json.loads((tmp_path / "a" / "b.json").read_text())
    assert set(results) == {"machine", "rounds", "rows", "memory", "start_up"}
    for row in results["rows"]:
        assert row["medians"]["floor"] == 1.0  # every number is divided by this one
        assert sorted(row["samples"]["floor"])[1] == 1.0
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.size[0] > 900


def test_memory_and_start_up_are_measured_unless_refused(micro, plant, monkeypatch, capsys):
    peaks = {"reference": 300, "twin": 150}
    plant(replace(REFERENCE, name="twin"))
    monkeypatch.setattr("minifocal.cli.bench.peak_memory", lambda candidate, workload: peaks[candidate])
    starts = {"import numpy": [2.0], "import minifocal": [3.0]}
    monkeypatch.setattr("minifocal.cli.bench.start_up", lambda torch, progress: starts)
    assert main([*ALONE, "--mode", "train", "--ops", "reference", "twin"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:-1]] == ["memory", "-", "1.00", "0.50"]
    assert lines[-1] == "start-up, as a multiple of import numpy: import numpy 1.00, import minifocal 1.50"


def test_where_memory_cannot_be_measured_one_line_says_so(micro, monkeypatch, capsys):
    def refuse(candidate, workload):
        raise NotMeasuredError("this system does not tell")

    monkeypatch.setattr("minifocal.cli.bench.peak_memory", refuse)
    monkeypatch.setattr("minifocal.cli.bench.start_up", lambda torch, progress: {"import numpy": [2.0]})
    assert main([*ALONE, "--mode", "train", "--ops", "reference"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "minifocal bench: this system does not tell\n"
    assert "memory" not in captured.out


def test_without_torch_one_line_says_what_is_missing(micro, monkeypatch, capsys):
    monkeypatch.setattr("minifocal.bench.peers.missing", lambda: ["transformers"])
    assert main([*QUICK, "--mode", "infer1", "--no-memory", "--ops", "reference"]) == 0
    captured = capsys.readouterr()
    assert captured.err == (
        "minifocal bench: without PyTorch: transformers not installed (pip install minifocal[peers])\n"
    )
    assert "torch" not in captured.out


def test_nothing_is_imported_from_torch_to_see_whether_it_is_there():
    code = "import sys; from minifocal.bench.peers import missing; missing(); print('torch' in sys.modules)"
    done = subprocess.run([processes.sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert set(missing()) <= {"torch", "transformers"}


def test_check_passes_the_reference_and_fails_a_wrong_table(micro, plant, capsys):
    assert main(["bench", "--check", "--workload", "micro", "--ops", "reference"]) == 0
    assert "micro     reference  pass  0.0e+00    0.0e+00" in capsys.readouterr().out
    wrong = Op(REFERENCE.gelu.forward, lambda dy, cache: REFERENCE.gelu.backward(dy, cache) * 1.001)
    plant(replace(REFERENCE, name="wrong", gelu=wrong))
    assert main(["bench", "--check", "--workload", "micro", "--ops", "reference", "wrong"]) == 1
    verdicts = {line.split()[1]: line.split()[2] for line in capsys.readouterr().out.splitlines()[2:]}
    assert verdicts == {"reference": "pass", "wrong": "FAIL"}


def test_profile_shows_shares_that_add_up(micro, capsys):
    assert main(["bench", "--profile", "--workload", "micro", "--ops", "reference"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "micro, training step with reference: share of the time, calls in a step"
    assert lines[1].split() == ["operation", "forward", "calls", "backward", "calls"]
    assert lines[-1].startswith("the rest")
    shares = [float(share) for share in re.findall(r"([\d.]+)%", "\n".join(lines))]
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))


def test_scaling_is_printed_written_and_drawn(micro, monkeypatch, tmp_path, capsys):
    few = scaling.axes(images=(1, 2), sides=(16, 32))
    monkeypatch.setattr(scaling, "axes", lambda: few)
    files = ["--json", str(tmp_path / "s.json"), "--picture", str(tmp_path / "s.png")]
    assert main(["bench", "--scaling", "--ops", "reference", "--rounds", "3", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [
        ["images", "1"],
        ["images", "2"],
        ["pixels", "256"],
        ["pixels", "1,024"],
    ]
    assert json.loads((tmp_path / "s.json").read_text())["ops"] == "reference"
    assert (tmp_path / "s.png").is_file()
    assert main(["bench", "--scaling", "--ops", "reference", "--rounds", "3"]) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_figures_draws_what_was_measured_again(micro, monkeypatch, tmp_path, capsys):
    assert (
        main([*ALONE, "--mode", "infer1", "--no-memory", "--ops", "reference", "--json", str(tmp_path / "bench.json")])
        == 0
    )
    few = scaling.axes(images=(1, 2), sides=(16, 32))
    monkeypatch.setattr(scaling, "axes", lambda: few)
    assert (
        main(["bench", "--scaling", "--ops", "reference", "--rounds", "3", "--json", str(tmp_path / "scaling.json")])
        == 0
    )
    capsys.readouterr()
    assert main(["figures", "--out", str(tmp_path)]) == 0
    kinds = [f"{name}.{kind}" for name in ("architecture", "block") for kind in ("png", "svg")]
    names = [*kinds, "bench.png", "scaling.png"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in names]
    assert all((tmp_path / name).is_file() for name in names)


def test_another_number_of_threads_starts_anew_with_the_environment_set(micro, monkeypatch):
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
    started = []

    def start(function, args):
        started.append((function, {os.environ[name] for name in THREAD_VARIABLES}))
        return 7

    monkeypatch.setattr("minifocal.cli.bench.in_new_process", start)
    arguments = [*ALONE, "--no-memory", "--mode", "infer1", "--ops", "reference", "--threads"]
    assert main([*arguments, "2"]) == 7
    assert started == [(bench.run, {"2"})]
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
    assert main([*arguments, "1"]) == 0  # as it is already
    assert len(started) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workload", "large"], "invalid choice: 'large'"),
        (["--mode", "infer64"], "invalid choice: 'infer64'"),
        (["--ops", "fortran"], "ops must be one of auto, "),
        (["--rounds", "2"], "rounds must be an integer of at least 3, got 2"),
        (["--threads", "0"], "threads must be an integer of at least 1, got 0"),
        (["--check", "--profile"], "not allowed with argument"),
        (["--check", "--json", "a.json"], "--check makes no use of --json; leave it out"),
        (["--scaling", "--ops", "reference", "twin"], "--scaling takes one table of operations"),
        (["--against", "torch"], "--against torch needs torch and transformers: pip install minifocal[peers]"),
    ],
)
def test_bad_input_is_refused_in_one_line(capsys, plant, monkeypatch, arguments, words):
    monkeypatch.setattr("minifocal.bench.peers.missing", lambda: ["torch", "transformers"])
    plant(replace(REFERENCE, name="twin"))
    try:
        status = main(["bench", *arguments])
    except SystemExit as end:
        status = end.code
    message = capsys.readouterr().err
    assert status == 2
    assert message.count("\n") == 1
    assert words in message


def test_a_damaged_file_beside_the_pictures_is_named(tmp_path, capsys):
    (tmp_path / "bench.json").write_text("{}")
    assert main(["figures", "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "bench.json does not hold what is drawn from it; write it again with minifocal bench --workload" in message
