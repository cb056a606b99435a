"""`minifocal bench` on a GPU: who is measured, how it is laid out, what must move; on kernels compiled for the host."""

import json
import re

import numpy as np
import pytest

from minifocal.bench import gpu_candidates, gpu_kernels, gpu_peers, gpu_results, measure, workloads
from minifocal.bench.gpu_candidates import FLOOR, FUSED, GRAPHED, REFERENCE, candidates
from minifocal.bench.gpu_kernels import KernelCase, Throughput
from minifocal.bench.measure import NotMeasuredError
from minifocal.bench.peers import COMPILED, EAGER
from minifocal.bench.workloads import GPU_MODES, WORKLOADS
from minifocal.cli import main

TRAIN, INFER = GPU_MODES["train"], GPU_MODES["infer"]
MACHINE = {"gpu": "a card", "date": "2026-01-02", "versions": {}}


@pytest.fixture
def tiny(micro, cuda_on_host, monkeypatch):
    """The workload of a moment on a device."""
    monkeypatch.setattr(workloads, "GPU_BATCH", 3)
    return micro.for_gpu()


def test_who_is_measured_depends_on_mode_and_precision():
    assert candidates(TRAIN, "float32", True) == [FLOOR, EAGER, COMPILED, REFERENCE, FUSED, GRAPHED]
    assert candidates(TRAIN, "bfloat16", True) == [FLOOR, EAGER, COMPILED, FUSED, GRAPHED]
    assert candidates(INFER, "tf32", False) == [FLOOR, FUSED]


def test_batches_on_a_gpu_are_those_that_are_named():
    batches = {name: workload.for_gpu().batch for name, workload in WORKLOADS.items()}
    assert batches == {"small": 256, "tiny_srf": 128, "tiny_lrf": 128, "all_flags": 128, "edifice": 128}


def test_every_own_candidate_runs_in_every_precision(tiny):
    for mode in (TRAIN, INFER):
        for precision in (*gpu_candidates.PRECISIONS, "float16"):
            names = candidates(mode, precision, False)
            seconds, notes = gpu_candidates.time_candidates(names, tiny, mode, precision, "cuda", 3)
            assert notes == []
            assert {name: len(samples) for name, samples in seconds.items()} == dict.fromkeys(names, 3)


def test_the_floor_multiplies_what_the_network_does(tiny, cuda_on_host, monkeypatch):
    shapes = []
    monkeypatch.setattr(gpu_candidates.gpu, "multiply", lambda a, b, out, **how: shapes.append((a.dtype, out.shape)))
    gpu_candidates.prepare(FLOOR, tiny, TRAIN, "bfloat16", "cuda")()
    listed = gpu_candidates.floor.products(tiny, TRAIN)
    assert len(shapes) == 3 * len(listed)
    for product, y, dx, dweight in zip(listed, shapes[::3], shapes[1::3], shapes[2::3], strict=True):
        assert [y[1], dx[1], dweight[1]] == [product[::2], product[:2], product[1:]]
    assert {dtype for dtype, _ in shapes} == {np.dtype("uint16")}


def test_a_candidate_that_cannot_run_is_left_out_with_a_line(tiny, monkeypatch):
    def refuse(*_):
        raise NotMeasuredError("PyTorch sees no GPU")

    monkeypatch.setattr(gpu_peers, "prepare", refuse)
    seconds, notes = gpu_candidates.time_candidates([EAGER, FUSED], tiny, INFER, "float32", "cuda", 3)
    assert (list(seconds), notes) == ([FUSED], ["PyTorch sees no GPU"])


def test_a_sample_is_what_the_device_says():
    times = iter([9.0, 9.0, 1.0, 2.0, 3.0])
    assert measure.interleave({"a": lambda: next(times)}, 3, clock=lambda run: run()) == {"a": [1.0, 2.0, 3.0]}


# The command line


def test_a_table_is_printed_written_and_drawn(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("minifocal.cli.bench.peers.missing", list)
    monkeypatch.setattr(gpu_peers, "prepare", lambda way, *_: lambda: {EAGER: 4.0, COMPILED: 2.0}[way])
    monkeypatch.setattr(gpu_candidates, "_own", lambda candidate, *_: candidate)
    monkeypatch.setattr(gpu_candidates.gpu, "elapsed", {FLOOR: 1.0, REFERENCE: 8.0, FUSED: 2.5, GRAPHED: 2.0}.get)
    peaks = {EAGER: 400, REFERENCE: 500, FUSED: 300, GRAPHED: 350}
    monkeypatch.setattr(gpu_candidates, "peak_memory", lambda name, *_: peaks[name] * 2**20)
    files = ["--json", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png")]
    options = ["--workload", "micro", "--precision", "float32", "float32", "--rounds", "3"]
    assert main(["bench", "--device", "cuda", *options, *files]) == 0
    lines = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0][0].startswith("kernels for the host; CuPy none")
    assert lines[1] == ["workload", "mode", "precision", "candidate", "ms", "x eager", "x compiled", "x floor", "MiB"]
    assert lines[2] == ["micro", "training step 3", "float32", "floor", "1000.000", "4.00", "2.00", "1.00", "-"]
    assert lines[6] == ["micro", "training step 3", "float32", "cuda", "2500.000", "1.60", "0.80", "2.50", "300"]
    assert lines[7] == [
        "micro",
        "training step 3",
        "float32",
        "cuda graphed",
        "2000.000",
        "2.00",
        "1.00",
        "2.00",
        "350",
    ]
    assert lines[-1] == ["micro", "inference 3", "float32", "cuda", "2500.000", "1.60", "0.80", "2.50", "-"]
    written = json.loads((tmp_path / "a.json").read_text())
    assert {"gpu", "date", "versions"} <= written["machine"].keys()
    assert written["rows"][0]["medians"]["cuda"] == 2500.0
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_where_a_process_was_ended_one_line_says_so_and_the_table_stands(tiny, monkeypatch, capsys):
    def ended(name, *_):
        raise NotMeasuredError(f"the process of {name} was ended")

    monkeypatch.setattr("minifocal.cli.bench.peers.missing", lambda: ["torch"])
    monkeypatch.setattr(gpu_candidates.gpu, "elapsed", lambda run: 1.0)
    monkeypatch.setattr(gpu_candidates, "peak_memory", ended)
    options = ["--workload", "micro", "--precision", "float32", "--mode", "train", "--rounds", "3"]
    assert main(["bench", "--device", "cuda", *options]) == 0
    captured = capsys.readouterr()
    assert f"minifocal bench: the process of {FUSED} was ended\n" in captured.err
    lines = [line.split() for line in captured.out.splitlines()[2:]]
    assert {line[-1] for line in lines} == {"-"}
    assert len(lines) == 4


def test_the_memory_of_training_steps_is_what_the_device_has_handed_out(tiny, monkeypatch):
    """In a new process, which here is this one."""
    monkeypatch.setattr(gpu_candidates, "in_new_process", lambda function, *given: function(*given))
    monkeypatch.setattr(gpu_candidates.gpu_peers, "reserved_bytes", lambda: 7)
    steps, prepare = [], gpu_candidates.prepare
    monkeypatch.setattr(gpu_candidates, "prepare", lambda name, *given: lambda: steps.append(name))
    assert gpu_candidates.peak_memory(FUSED, tiny, TRAIN, "float32", "cuda") == 2**20
    assert gpu_candidates.peak_memory(EAGER, tiny, TRAIN, "float32", "cuda") == 7
    assert steps == [FUSED] * gpu_candidates.MEMORY_STEPS + [EAGER] * gpu_candidates.MEMORY_STEPS
    assert callable(prepare(FUSED, tiny, TRAIN, "float32", "cuda"))


def test_check_holds_a_device_against_the_cpu(tiny, capsys):
    assert main(["bench", "--check", "--device", "cuda", "--workload", "micro"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:3] for line in lines[2:]] == [["reference", "pass"], ["cuda", "pass"]]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--kernels"], "--kernels measures a GPU; add --device cuda"),
        (["--profile", "--device", "cuda"], "--profile measures the CPU; leave --device out"),
        (["--scaling", "--device", "cuda"], "--scaling measures the CPU; leave --device out"),
        (["--ops", "cuda", "--device", "cuda"], "--device cuda makes no use of --ops; leave it out"),
        (["--precision", "tf32"], "--device cpu makes no use of --precision; leave it out"),
        (["--scaling", "--workload", "small"], "--scaling makes no use of --workload; leave it out"),
        (["--check", "--rounds", "9", "--no-memory"], "--check makes no use of --rounds, --memory; leave it out"),
        (["--kernels", "--device", "cuda", "--rounds", "9"], "--kernels makes no use of --rounds; leave it out"),
        (["--device", "gpu"], 'device must be "cpu", "cuda" or "cuda:N"'),
        (["--ops", "cuda"], 'ops "cuda" computes on a GPU, but the device is cpu'),
        (["--mode", "infer"], "mode infer is for a GPU"),
    ],
    ids=str,
)
def test_options_without_use_are_refused(options, text, cuda_on_host, capsys):
    assert main(["bench", *options]) == 2
    assert text in capsys.readouterr().err


# Kernels


def test_what_must_move_is_every_input_and_output_once(cuda_on_host, monkeypatch):
    """Counted from the arrays themselves: those of the call, its results and what the way back reads of the cache."""
    monkeypatch.setattr(gpu_kernels, "BATCH", 2)
    read_back = {
        "depthwise_conv": lambda c: [c.x, c.weight],
        "focal_level": lambda c: [c.conv.x, c.conv.weight, c.ctx, c.gelu.slope, c.gate],
        "layer_norm": lambda c: list(c),
        "gelu": lambda c: list(c),
    }
    written_too = {
        "depthwise_conv": lambda c: [],
        "focal_level": lambda c: [c.gelu.slope],
        "layer_norm": lambda c: [c.x_hat, c.rstd],
        "gelu": lambda c: [c.slope],
    }
    for op, k in (("depthwise_conv", 3), ("focal_level", 5), ("layer_norm", 0), ("gelu", 0)):
        for way in ("forward", "backward"):
            case = KernelCase(op, way, 5, 12, k)
            inputs, upstream, cache = gpu_kernels._inputs(case, "cuda")
            table = getattr(gpu_kernels.get_ops("cuda", "cuda"), op)
            if way == "forward":
                *outputs, made = table.forward(*inputs)
                moved = [*inputs, *outputs, *written_too[op](made)]
            else:
                results = table.backward(*upstream, cache)
                moved = [*upstream, *read_back[op](cache), *(results if isinstance(results, tuple) else [results])]
            assert case.least_bytes == sum(array.size * 4 for array in moved), case


def test_the_share_is_of_the_bandwidth_of_a_copy(cuda_on_host, monkeypatch):
    monkeypatch.setattr(gpu_kernels, "BATCH", 1)
    monkeypatch.setattr(gpu_kernels, "CACHE_BYTES", 1)
    monkeypatch.setattr(gpu_kernels.gpu, "elapsed", lambda run: run() or 0.5)
    case = KernelCase("depthwise_conv", "forward", 2, 4, 3)
    found = gpu_kernels.measure(case, 4 * case.least_bytes, "cuda")
    assert found == Throughput(case, 500.0, 0.5, 0.70)


def test_the_way_back_is_measured_where_it_is_asked_for(cuda_on_host, monkeypatch):
    monkeypatch.setattr(gpu_kernels, "BATCH", 1)
    monkeypatch.setattr(gpu_kernels, "CACHE_BYTES", 1)
    monkeypatch.setattr(gpu_kernels.gpu, "elapsed", lambda run: run() or 0.5)
    launched = {}
    for way in ("forward", "backward"):
        cuda_on_host.gpu.launched.clear()
        case = KernelCase("layer_norm", way, 2, 4, 0)
        assert gpu_kernels.measure(case, 1.0, "cuda").case is case
        launched[way] = {kernel.partition("<")[0] for kernel in cuda_on_host.gpu.launched}
    assert launched["forward"] < launched["backward"]  # whose cache is made by the forward pass


def test_the_device_has_work_before_each_call_that_is_timed(cuda_on_host, monkeypatch):
    """Else it would wait for the host, and the wait would be measured."""
    monkeypatch.setattr(gpu_kernels, "BATCH", 1)
    monkeypatch.setattr(gpu_kernels, "CACHE_BYTES", 1)
    done = []
    monkeypatch.setattr(gpu_kernels.gpu, "elapsed", lambda run: done.append("timed") or 0.5)
    gpu_kernels.measure(KernelCase("gelu", "forward", 2, 4, 0), 1.0, "cuda", lambda: done.append("ahead"))
    assert done == ["ahead", "timed"] * gpu_kernels.ROUNDS


def test_inputs_take_turns_so_that_none_is_in_the_cache(cuda_on_host, monkeypatch):
    case = KernelCase("gelu", "forward", 2, 4, 0)
    monkeypatch.setattr(gpu_kernels, "BATCH", 1)
    monkeypatch.setattr(gpu_kernels, "CACHE_BYTES", 5 * case.least_bytes)
    made, make = [], gpu_kernels._inputs
    monkeypatch.setattr(gpu_kernels, "_inputs", lambda *given: made.append(1) or make(*given))
    gpu_kernels.measure(case, 1.0, "cuda")
    assert len(made) == 5


def test_the_stages_of_focalnet_tiny_are_measured():
    found = {(case.op, case.way, case.side, case.C) for case in gpu_kernels.cases()}
    for way in ("forward", "backward"):
        for side, C in ((56, 96), (28, 192), (14, 384), (7, 768)):
            assert ("depthwise_conv", way, side, C) in found
    assert {case.k for case in gpu_kernels.cases() if case.op == "depthwise_conv"} == {3, 5, 7}


def test_a_missed_goal_is_shown_and_fails(cuda_on_host, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_kernels, "COPY_BYTES", 64)
    monkeypatch.setattr(gpu_kernels, "copy_bandwidth", lambda copy: copy() or 3e12)
    shares = iter([0.8, 0.69, *[0.5] * 100])

    def measured(case, bandwidth, device, ahead):
        ahead()
        return Throughput(case, 1.0, next(shares), gpu_kernels.GOALS.get(case.title))

    monkeypatch.setattr(gpu_kernels, "measure", measured)
    assert main(["bench", "--kernels", "--device", "cuda", "--json", str(tmp_path / "k.json")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a copy moves 3.00 TB/s, read and written; batch 128, float32"
    assert re.split(r"  +", lines[2]) == ["depthwise_conv forward", "3", "56x56x96", "1.000", "80%", "70% met"]
    assert re.split(r"  +", lines[3])[-1] == "70% MISSED"
    assert json.loads((tmp_path / "k.json").read_text())["copy_bytes_per_second"] == 3_000_000_000_000
    shares = iter([0.99] * 100)
    assert main(["bench", "--kernels", "--device", "cuda"]) == 0
    assert "MISSED" not in capsys.readouterr().out


def test_without_torch_the_picture_is_beside_the_table_itself():
    rows = [{"workload": "w", "mode": "train", "precision": "tf32", "medians": {FLOOR: 1.0, FUSED: 2.0}}]
    assert gpu_results.speeds({"rows": rows}) == ([("w", "training step, tf32", {FLOOR: 2.0, FUSED: 1.0})], FUSED)
