"""How it is measured: in turns, the floor from the network's own products, memory and starts in new processes."""

import os
import sys

import numpy as np
import pytest

from minifocal.bench import floor, measure, processes
from minifocal.bench.candidates import FLOOR, prepare, time_candidates
from minifocal.bench.scaling import axes, count_runs, measure_scaling, scaling_series, scaling_table
from minifocal.bench.workloads import FLAGS, MODES, WORKLOADS, Workload
from minifocal.errors import InputError, check_integer
from minifocal.models.complexity import multiply_adds
from minifocal.models.config import MODULATION_NAMES, FocalNetConfig
from minifocal.models.focalnet import FocalNet


def test_every_round_starts_with_another_candidate(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    calls, ticks = [], []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    samples = measure.interleave(runs, 4, lambda: ticks.append(1))
    rounds = ["".join(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert rounds == ["bca", "cab", "abc", "bca", "cab", "abc"]
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 4, "b": 4, "c": 4}
    assert len(ticks) == len(calls) == 3 * (measure.WARM_UPS + 4)


def test_a_sample_is_the_time_of_its_own_call(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def take(seconds):
        def run():
            clock[0] += seconds

        return run

    assert measure.interleave({"quick": take(1.0), "slow": take(5.0)}, 3) == {"quick": [1.0] * 3, "slow": [5.0] * 3}


def test_the_workloads_are_the_networks_that_they_are_named_after():
    assert set(WORKLOADS) == {"small", "tiny_srf", "tiny_lrf", "all_flags", "edifice"}
    assert WORKLOADS["edifice"].config == FocalNet.build(num_classes=10, init="zeros").config
    assert all(getattr(WORKLOADS["all_flags"].config, flag) for flag in FLAGS)
    for workload in WORKLOADS.values():
        assert workload.config.drop_path_rate == workload.config.drop_rate == 0.0


def test_a_batch_is_the_same_every_time(micro):
    for mode, count in zip(MODES.values(), (4, 8, 1), strict=True):
        images, labels = micro.draw(mode)
        assert images.shape == (count, 3, 8, 8)
        assert labels.shape == (count,)
        assert all(map(np.array_equal, (images, labels), micro.draw(mode)))


# The floor


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_the_floor_multiplies_what_the_formulas_count_as_matrix_products(modulation):
    L = 2
    config = FocalNetConfig(
        image_size=12,
        patch_size=3,
        num_classes=5,
        embed_dim=7,
        depths=(1,),
        drop_path_rate=0.0,
        patch_norm=False,
        focal_levels=(L,),
        focal_windows=(3,),
        modulation=modulation,
    )
    counts = multiply_adds(config)
    N, C = 16, 7
    widths = [config.focal_windows[0] * (level + 1) for level in range(1, L)]
    levels = N * C * sum(widths if modulation == "box_mean" else (k * k + 1 for k in config.kernel_sizes(0)))
    products_of_maps = 2 * N * C  # the global level and q * h; or q * gate * ctx
    expected = {
        "patch_embed": counts["patch_embed"],
        "modulation": counts["layers.0.blocks.0.modulation"] - N * C - levels - products_of_maps,
        "mlp": counts["layers.0.blocks.0.mlp"] - N * C,
        "head": counts["head"],
    }
    workload = Workload("one", config, batch=3)
    found = floor.products(workload, MODES["train"])
    assert sum(product.multiply_adds for product in found) == 3 * sum(expected.values())
    assert found[0] == (3 * N, 3 * 3 * 3, C)
    assert found[-1] == (3, C, 5)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_the_floor_multiplies_into_the_same_arrays_again_and_again(micro, monkeypatch, mode):
    shapes = []
    matmul = np.matmul
    monkeypatch.setattr(np, "matmul", lambda a, b, out: shapes.append(a.shape + b.shape) or matmul(a, b, out=out))
    multiply = floor.prepare(micro, mode)
    multiply()
    once = list(shapes)
    assert len(once) == (3 if mode.training else 1) * len(floor.products(micro, mode))
    multiply()
    assert shapes == once * 2


# Candidates


def test_all_candidates_run_in_every_mode(micro):
    for mode in MODES.values():
        samples, notes = time_candidates([FLOOR, "reference"], micro, mode, 3)
        assert {name: len(seconds) for name, seconds in samples.items()} == {FLOOR: 3, "reference": 3}
        assert notes == []


def test_what_cannot_run_here_is_left_out_with_a_line(micro, monkeypatch):
    def refuse(way, workload, mode):
        raise measure.NotMeasuredError("no compiler")

    monkeypatch.setattr("minifocal.bench.peers.prepare", refuse)
    samples, notes = time_candidates([FLOOR, "torch compiled"], micro, MODES["infer1"], 3)
    assert list(samples) == [FLOOR]
    assert notes == ["no compiler"]


def test_a_training_step_trains(micro):
    step = prepare("reference", micro, MODES["train"])
    losses = [step().loss for _ in range(30)]
    assert losses[-1] < losses[0]


# New processes


def test_peak_memory_is_that_of_a_process_of_its_own(micro):
    ballast = np.ones(2**27)  # 1 GiB, which a process started from here must not be charged with
    peak = processes.peak_memory("reference", micro)
    assert 0 < peak * 1024 < ballast.nbytes


def test_a_process_that_is_ended_is_said_in_one_line():
    with pytest.raises(measure.NotMeasuredError, match="a process was ended while it measured"):
        processes.in_new_process(os._exit, 1)


def test_a_new_process_has_this_environment_and_passes_errors_on(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert processes.in_new_process(os.getenv, "OMP_NUM_THREADS") == "3"
    with pytest.raises(InputError, match="must be an integer"):
        processes.in_new_process(check_integer, "rounds", "many", 1)


def test_starting_up_is_timed_beside_importing_numpy(monkeypatch):
    for name, value in (("PAUSE", 0.0), ("WARM_UPS", 0)):
        monkeypatch.setattr(measure, name, value)
    monkeypatch.setattr(processes, "STARTS", 1)
    seconds = processes.start_up(torch=False)
    assert set(seconds) == {"import numpy", "import minifocal", "minifocal --help"}


# Scaling


def test_scaling_measures_both_axes_relative_to_their_first_size(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    workloads, ticks = axes(images=(1, 2), sides=(16, 32)), []
    results = measure_scaling(workloads, "reference", 3, lambda: ticks.append(1))
    assert len(ticks) == count_runs(workloads, 3)
    assert [(line["axis"], line["mode"], line["sizes"]) for line in results["series"]] == [
        ("images", "training step", [1, 2]),
        ("images", "inference", [1, 2]),
        ("pixels", "training step", [256, 1024]),
        ("pixels", "inference", [256, 1024]),
    ]
    assert all(line["cost"][0] == 1.0 for line in results["series"])
    assert scaling_series(results) == results["series"]


def test_the_cost_of_each_is_1_everywhere_where_cost_grows_in_proportion():
    series = [
        {"axis": axis, "mode": mode, "sizes": [2, 4, 12], "cost": [1.0, 2.0, 6.0]}
        for axis in ("images", "pixels")
        for mode in ("training step", "inference")
    ]
    _, rows = scaling_table({"series": series})
    assert [row[0] for row in rows] == ["images"] * 3 + ["pixels"] * 3
    assert all(row[2:] == ["1.00", "1.00"] for row in rows)


def test_where_proc_does_not_tell_the_peak_the_system_is_asked(tmp_path, monkeypatch):
    told = processes._peak_resident()
    assert told > 10_000  # kB
    for content in (None, "VmRSS:\t5 kB\n"):
        status = tmp_path / "status"
        if content is not None:
            status.write_text(content)
        monkeypatch.setattr(processes, "STATUS", status)
        assert processes._peak_resident() >= told // 2
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(measure.NotMeasuredError, match="does not tell the peak memory of a process"):
        processes._peak_resident()
