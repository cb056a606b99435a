"""The report of a GPU: what it makes of parts that pass, fail, hang or say nothing, and of benchmarks' numbers."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import gpu_report
import pytest
from gpu_report import MET, MISSED, NOT_MEASURED, Outcome, Part, clean_exit

from minifocal.arrays import check_device
from minifocal.errors import InputError

SCRIPT = Path(gpu_report.__file__)


def python(code):
    return [sys.executable, "-c", code]


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr("minifocal.arrays.describe_gpus", lambda: "a card")


def run(parts, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_report, "parts", lambda folder, scratch: parts)
    status = gpu_report.main([str(tmp_path / "report")])
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert written["card"] == "a card"
    return status, [(line["wanted"], line["result"], line["numbers"]) for line in written["lines"]]


def test_every_part_is_run_and_judged_whatever_the_others_do(card, monkeypatch, tmp_path):
    parts = [
        Part("good", python("print('3 passed')"), 20, clean_exit("good", "passed"), ["good"]),
        Part("bad", python("print('2 failed'); raise SystemExit(3)"), 20, clean_exit("bad", "failed"), ["bad"]),
        Part("silent", python(""), 20, gpu_report.judge_small, ["silent"]),
        Part(
            "slow", python("import time; print('begun', flush=True); time.sleep(60)"), 5, clean_exit("slow"), ["slow"]
        ),
        Part("none", ["no-such-tool"], 20, clean_exit("none"), ["none"], needs="no-such-tool"),
        Part("last", python("print('done')"), 20, clean_exit("last"), ["last"]),
    ]
    status, lines = run(parts, monkeypatch, tmp_path)
    assert status == 1
    assert lines[:2] == [("good", MET, "3 passed"), ("bad", MISSED, "2 failed")]
    assert [result for _, result, _ in lines[2:]] == [NOT_MEASURED, NOT_MEASURED, NOT_MEASURED, MET]
    assert [lines[3][2], lines[4][2]] == ["it took too long", "no-such-tool is not installed"]
    log = (tmp_path / "report" / "log.txt").read_text()
    assert "begun" in log
    assert "stopped: it took too long" in log
    assert (tmp_path / "report" / "report.md").read_text().count("|\n|") == 1 + len(lines)


def test_where_all_is_met_it_says_so(card, monkeypatch, tmp_path):
    status, lines = run([Part("a", python("print(1)"), 20, clean_exit("a"), ["a"])], monkeypatch, tmp_path)
    assert (status, lines) == (0, [("a", MET, "1")])


def test_what_a_stopped_part_has_started_is_ended_too(card, monkeypatch, tmp_path):
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    run([Part("parent", python(code), 1, clean_exit("parent"), ["parent"])], monkeypatch, tmp_path)
    time.sleep(3)
    assert not mark.exists()


def test_when_the_time_is_up_the_rest_is_not_begun(card, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_report, "LIMIT", 4)
    status, lines = run([Part("a", python(""), 20, clean_exit("a"), ["a"])], monkeypatch, tmp_path)
    assert (status, lines) == (1, [("a", NOT_MEASURED, "no time was left")])


# Judging


def outcome(tmp_path, text="", **files):
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return Outcome(0, text, tmp_path)


def row(precision, **medians):
    return {"precision": precision, "medians": {name.replace("_", " "): value for name, value in medians.items()}}


def test_training_is_judged_by_its_worst_precision(tmp_path):
    rows = [
        row("tf32", torch_eager=12.0, torch_compiled=9.5, cuda=10.0),
        row("bfloat16", torch_eager=24.0, cuda=20.0, cuda_graphed=10.0),
    ]
    memory = [
        {"precision": "tf32", "candidate": "cuda", "bytes": 110},
        {"precision": "tf32", "candidate": "torch eager", "bytes": 100},
    ]
    judge = gpu_report.judge_training("half.json", "x")
    lines = judge(outcome(tmp_path, half={"rows": rows, "memory": memory}))
    assert [result for _, result, _ in lines] == [MET, MET, MISSED]
    assert [numbers for *_, numbers in lines] == ["tf32 1.20, bfloat16 2.40", "tf32 0.95", "tf32 1.10"]
    rows[0]["medians"]["cuda"] = 10.1
    assert judge(outcome(tmp_path, half={"rows": rows, "memory": []}))[0][1] == MISSED
    assert judge(outcome(tmp_path, half={"rows": rows, "memory": []}))[2][1] == NOT_MEASURED


def test_small_and_inference_are_judged(tmp_path):
    found = outcome(
        tmp_path,
        small={"rows": [row("float32", torch_eager=4.0, cuda=3.0, cuda_graphed=2.1)]},
        inference={"rows": [row("float32", torch_eager=4.0, cuda=3.0)]},
    )
    assert gpu_report.judge_small(found) == [(gpu_report.SMALL, MISSED, "float32 1.90")]
    assert gpu_report.judge_inference(found) == [(gpu_report.INFER, MET, "float32 1.33")]


def test_kernels_are_judged_by_the_worst_size(tmp_path):
    kernels = [
        {"op": op, "way": way, "share": share}
        for op, way, share in (
            ("depthwise_conv", "forward", 0.9),
            ("depthwise_conv", "forward", 0.69),
            ("depthwise_conv", "backward", 0.41),
            ("gelu", "forward", 0.1),
        )
    ]
    lines = gpu_report.judge_kernels(outcome(tmp_path, kernels={"kernels": kernels}))
    assert [(result, numbers) for _, result, numbers in lines] == [(MISSED, "69% to 90%"), (MET, "41% to 41%")]


def test_accuracies_are_compared(tmp_path):
    def judge(text):
        return gpu_report.judge_shapes(outcome(tmp_path, text))[0]

    assert judge("test accuracy 88.10 %\nx\ntest accuracy 90.00 %\n") == (
        gpu_report.ACCURACY, MET, "GPU 88.10 %, CPU 90.00 %",
    )  # fmt: skip
    assert judge("test accuracy 87.90 %\ntest accuracy 90.00 %\n")[1] == MISSED
    assert judge("test accuracy 87.90 %\n")[1] == NOT_MEASURED


def test_the_commands_are_ones_that_exist(tmp_path):
    from minifocal.cli import make_parser

    listed = gpu_report.parts(tmp_path, tmp_path)
    assert len({part.name for part in listed}) == len(listed)
    for part in [*listed, *(other for one in listed for other in one.beside)]:
        if part.command[:3] == gpu_report.MINIFOCAL:
            make_parser().parse_args(part.command[3:])
        else:
            assert part.needs or Path(part.command[-1]).exists()
    files = {name for part in listed for name in re.findall(r"[\w-]+\.json", " ".join(part.command))}
    assert len(files | {"log.txt", "report.json", "report.md"}) == 8


def test_without_a_gpu_it_says_so_and_leaves_nothing(tmp_path):
    try:
        check_device("cuda")
    except InputError:
        done = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"gpu_report: .*\n", done.stderr)
        assert not list(tmp_path.iterdir())
