"""What comes out: ratios, right ones, and nothing else; shares that add up; and wrong gradients are caught."""

import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minifocal.bench import check, profile, report
from minifocal.bench.instrument import wrap_ops
from minifocal.bench.scaling import scaling_series
from minifocal.bench.workloads import WORKLOADS
from minifocal.errors import InputError
from minifocal.ops import REFERENCE, Op, list_ops
from minifocal.viz.records import read_record
from minifocal.viz.speed_pictures import draw_scaling, draw_speeds

SECONDS = {
    "floor": [1.0, 1.1, 0.9],
    "torch eager": [2.0, 9.0, 1.9],
    "torch compiled": [1.6, 1.5, 1.7],
    "numpy": [1.25, 1.0, 1.3],
}


def some_results(scale=1.0):
    seconds = {name: [scale * second for second in samples] for name, samples in SECONDS.items()}
    without_torch = {name: samples for name, samples in seconds.items() if not name.startswith("torch")}
    rows = [report.row("small", "train", seconds), report.row("small", "infer1", without_torch)]
    memory = {"small": report.relative_memory({"torch eager": 2000, "numpy": 1300})}
    return report.results(rows, 3, memory, report.relative_start_up({"import numpy": [2.0], "import minifocal": [3.0]}))


def test_a_row_is_relative_to_the_median_of_torch_eager_or_else_of_the_floor():
    first, second = some_results()["rows"]
    assert first["relative_to"] == "torch eager"
    assert first["medians"] == {"floor": 0.5, "torch eager": 1.0, "torch compiled": 0.8, "numpy": 0.625}
    assert first["samples"]["torch eager"] == [1.0, 4.5, 0.95]
    assert second["relative_to"] == "floor"
    assert second["medians"] == {"floor": 1.0, "numpy": 1.25}


def test_the_table_divides_each_way_of_torch_by_the_candidate_and_the_candidate_by_the_floor():
    head, rows = report.results_table(some_results())
    assert head == ["workload", "mode", "candidate", "x torch eager", "x compiled", "x floor", "memory"]
    assert rows == [
        ["small", "training step", "floor", "2.00", "1.60", "1.00", "-"],
        ["small", "training step", "torch eager", "1.00", "0.80", "2.00", "1.00"],
        ["small", "training step", "torch compiled", "1.25", "1.00", "1.60", "-"],
        ["small", "training step", "numpy", "1.60", "1.28", "1.25", "0.65"],
        ["small", "inference 1", "floor", "-", "-", "1.00", "-"],
        ["small", "inference 1", "numpy", "-", "-", "1.25", "-"],
    ]


def test_without_memory_there_is_no_column_for_it():
    results = {**some_results(), "memory": {}}
    head, rows = report.results_table(results)
    assert head[-1] == "x floor"
    assert {len(row) for row in rows} == {len(head)}


def test_a_machine_a_thousand_times_slower_gives_the_same_json(tmp_path):
    for name, scale in (("a.json", 1.0), ("b.json", 1000.0)):
        report.write_json(tmp_path / name, some_results(scale))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text())["start_up"] == {"import numpy": 1.0, "import minifocal": 1.5}


def test_speeds_are_the_costs_turned_around():
    rows, base = report.speeds(some_results())
    assert base == "torch eager"
    assert rows[0] == ("small", "training step", pytest.approx(dict(zip(SECONDS, (2.0, 1.0, 1.25, 1.6), strict=True))))


def test_the_pictures_are_drawn_from_the_json(tmp_path):
    report.write_json(tmp_path / "a.json", some_results())
    draw_speeds(*read_record(tmp_path / "a.json", report.speeds, "again"), tmp_path / "a.png")
    series = [{"axis": axis, "mode": "inference", "sizes": [1, 4], "cost": [1.0, 4.4]} for axis in ("images", "pixels")]
    report.write_json(tmp_path / "b.json", {"series": series})
    draw_scaling(read_record(tmp_path / "b.json", scaling_series, "again"), tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 900


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"rows": []}',
        '{"rows": [{"workload": "small"}]}',
        '{"rows": [{"workload": "a", "mode": "train", "relative_to": "a", "medians": {"a": 0}}]}',
        '{"rows": [{"workload": "a", "mode": "train", "relative_to": "a", "medians": {"a": -1}}]}',
        '{"rows": [{"workload": "a", "mode": "train", "relative_to": "a", "medians": {"a": NaN}}]}',
        '{"series": [{"axis": "images", "mode": "inference", "sizes": [1], "cost": []}]}',
        '{"series": [{"axis": "images", "mode": "dreaming", "sizes": [1], "cost": [1]}]}',
        '{"series": [{"axis": "images", "mode": "inference", "sizes": [0], "cost": [1]}]}',
        '{"series": [{"axis": "images", "mode": "inference", "sizes": [1], "cost": [Infinity]}]}',
        '{"series": 3}',
        "[" * 100_000,
    ],
)
def test_other_json_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    for convert in (report.speeds, scaling_series):
        with pytest.raises(InputError, match="does not hold what is drawn from it; write it again with x"):
            read_record(tmp_path / "a.json", convert, "x")


# Time by operation


def test_the_shares_of_a_profile_add_up_to_all_of_the_time(micro):
    found = profile.profile(micro, "reference")
    shares = [share for row in found.rows for share in row.shares.values()]
    assert sum(shares) + found.rest == pytest.approx(1.0)
    assert min(*shares, found.rest) >= 0.0
    calls = {row.name: row.calls for row in found.rows}
    assert calls["focal_level"] == {"forward": 4, "backward": 4}  # levels 2 of one block, 1 of two blocks
    assert calls["linear"] == {"forward": 18, "backward": 18}  # stem, downsampling, head; f, h, proj, fc1, fc2
    assert calls["cross_entropy"] == {"forward": 1, "backward": 1}


def test_functions_at_work_at_once_share_the_time_evenly(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(profile.time, "perf_counter", lambda: clock[0])
    sheet = profile.TimeSheet()

    def wait(seconds):
        clock[0] += seconds

    def outer():
        wait(1.0)
        inner()
        wait(1.0)

    inner = sheet.timed("b", "forward", lambda: wait(4.0))
    wait(7.0)  # nobody is at work
    sheet.timed("a", "forward", outer)()
    assert sheet.seconds == {("a", "forward"): 4.0, ("b", "forward"): 2.0}
    assert sheet.calls == {("a", "forward"): 1, ("b", "forward"): 1}


def test_threads_do_not_lose_calls_or_count_time_twice():
    sheet = profile.TimeSheet()
    start = profile.time.perf_counter()
    timed = sheet.timed("a", "backward", lambda: sum(range(100)))
    threads = [threading.Thread(target=lambda: [timed() for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sheet.calls["a", "backward"] == 800
    assert 0 < sum(sheet.seconds.values()) <= profile.time.perf_counter() - start


def test_an_operation_that_fails_is_off_the_sheet_again():
    sheet = profile.TimeSheet()

    def fail():
        raise InputError("no")

    with pytest.raises(InputError):
        sheet.timed("a", "forward", fail)()
    sheet.timed("b", "forward", lambda: None)()
    before = sheet.seconds["a", "forward"]
    sheet.timed("b", "forward", lambda: None)()
    assert sheet.seconds["a", "forward"] == before


def test_functions_without_a_way_back_are_wrapped_too():
    wrapped = wrap_ops(REFERENCE, lambda name, way, function: (name, way, function))
    assert wrapped.name == "reference"
    assert wrapped.add == ("add", "forward", REFERENCE.add)
    assert wrapped.linear.backward == ("linear", "backward", REFERENCE.linear.backward)


# Right or wrong


def test_an_operation_a_thousandth_off_is_found(micro, plant):
    wrong = Op(REFERENCE.gelu.forward, lambda dy, cache: REFERENCE.gelu.backward(dy, cache) * np.float32(1.001))
    plant(replace(REFERENCE, name="wrong", gelu=wrong))
    reference = check.train(micro, "reference")
    assert check.compare(check.train(micro, "reference"), reference).passed
    found = check.compare(check.train(micro, "wrong"), reference)
    assert not found.passed
    assert found.gradient > 5e-4
    assert found.parameter in reference.gradients


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_the_networks_that_are_timed_have_the_gradients_of_the_reference(workload, monkeypatch):
    """At their full size, in two steps of two images; minifocal bench --check makes ten of whole batches."""
    monkeypatch.setattr(check, "STEPS", 2)
    few = replace(workload, batch=2)
    reference = check.train(few, "reference")
    for ops in list_ops()[1:]:
        found = check.compare(check.train(few, ops), reference)
        assert found.passed, (ops, found)


def test_values_that_are_not_finite_do_not_pass():
    good = check.Trained(1.0, {"a": np.ones(2), "b": np.ones(2)})
    assert check.compare(good, good).passed
    for loss, gradient in ((np.nan, [1.0, 1.0]), (1.0, [1.0, np.nan]), (1.0, [np.inf, 1.0])):
        found = check.compare(check.Trained(loss, {"a": np.array(gradient), "b": np.ones(2)}), good)
        assert not found.passed
    zero = check.Trained(1.0, {"a": np.zeros(2), "b": np.ones(2)})
    assert check.compare(zero, zero).passed
    assert not check.compare(good, zero).passed


ROOT = Path(__file__).parents[2]
ROWS = {"focalnet_tiny_srf": "tiny_srf", "focalnet_tiny_lrf": "tiny_lrf"}  # the README's names, where they are longer


def test_the_table_of_the_readme_is_what_was_measured():
    """The speed beside PyTorch eager, and in brackets beside its fastest way; peak memory beside PyTorch eager's."""
    measured = json.loads((ROOT / "figures" / "bench.json").read_text(encoding="utf-8"))
    table = re.findall(r"^\| `(\w+)`[^|]*\|(.*)\|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    shown = {ROWS.get(name, name): [cell.strip() for cell in cells.split("|")] for name, cells in table}
    rows, base = report.speeds(measured)
    assert base == "torch eager"
    speeds = {(workload, mode): found for workload, mode, found in rows}
    workloads = list(dict.fromkeys(workload for workload, _ in speeds))

    def cell(workload, mode, name):
        found = speeds.get((workload, mode))
        if found is None:
            return ""
        fastest = max(speed for way, speed in found.items() if way.startswith("torch"))
        return f"{found[name]:.2f} ({found[name] / fastest:.2f})"

    for workload in workloads:
        expected = [
            cell(workload, mode, name) for mode in ("training step", "inference 8") for name in ("numba", "numpy")
        ]
        memory = measured["memory"][workload]
        assert shown[workload] == [*expected, f"{memory['numba']:.2f}, {memory['numpy']:.2f}"], workload
    assert len(workloads) == 5
