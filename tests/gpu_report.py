"""Every check and benchmark that needs a GPU, in one call of under nine minutes: python tests/gpu_report.py [FOLDER]

It runs the project from its checkout, installs nothing, and goes on when a part fails or takes too long. The folder
gets a log of all that was printed, the benchmarks' JSON, `report.json` and `report.md`, which says of each line that is
wanted whether it was met, missed or not measured. The exit status is 0 only if all were met, and 2 without a GPU.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 520  # seconds of all parts together
PYTHON = sys.executable
MINIFOCAL = [PYTHON, "-m", "minifocal"]
MET, MISSED, NOT_MEASURED = "met", "MISSED", "not measured"


@dataclass
class Outcome:
    """What a part came to."""

    status: int | None  # None: it was stopped, or never begun
    output: str
    folder: Path

    def read(self, name: str) -> dict[str, Any]:
        """Read a JSON file that the part wrote. Raises OSError or ValueError where it did not."""
        return json.loads((self.folder / name).read_text())


Line = tuple[str, str, str]
"""What is wanted; met, missed or not measured; and the numbers."""


@dataclass
class Part:
    """A command, the seconds that it may take, and what it shows."""

    name: str
    command: list[str]
    budget: int
    judge: Callable[[Outcome], list[Line]]
    wanted: list[str]  # the lines that it is there for
    needs: str = ""  # a program without which it is left out
    beside: list["Part"] = field(default_factory=list)  # run at the same time


def verdict(wanted: str, met: bool, numbers: str) -> Line:
    """One line of the report."""
    return wanted, MET if met else MISSED, numbers


def clean_exit(wanted: str, numbers: str = r"") -> Callable[[Outcome], list[Line]]:
    """Judge by the exit status; show the last line of the output that matches a pattern."""

    def judge(outcome: Outcome) -> list[Line]:
        lines = [line.strip() for line in outcome.output.splitlines() if line.strip()]
        shown = [line for line in lines if re.search(numbers, line)]
        return [verdict(wanted, outcome.status == 0, (shown or ["no output"])[-1])]

    return judge


TRAIN_LINES = [
    "{}: training step at least 1.2 x torch eager",
    "{}: at least 0.9 x torch compiled",
    "{}: memory at most torch's",
]
SMALL = "small, batch 256, graphed: training step at least 2 x torch eager"
INFER = "tiny_srf, batch 128: inference at least 1.2 x torch eager"


def training_lines(label: str) -> list[str]:
    """The lines of a training step at full size."""
    return [line.format(label) for line in TRAIN_LINES]


def judge_training(file: str, label: str) -> Callable[[Outcome], list[Line]]:
    """Judge the training step of a workload, each precision by itself: the worst counts."""

    def judge(outcome: Outcome) -> list[Line]:
        found = outcome.read(file)
        eager, compiled, memory = [], [], []
        for row in found["rows"]:
            ms = row["medians"]
            ours = min(ms[name] for name in ("cuda", "cuda graphed") if name in ms)
            eager.append((row["precision"], ms["torch eager"] / ours))
            if "torch compiled" in ms:
                compiled.append((row["precision"], ms["torch compiled"] / ours))
            peaks = {m["candidate"]: m["bytes"] for m in found["memory"] if m["precision"] == row["precision"]}
            if {"cuda", "torch eager"} <= peaks.keys():
                memory.append((row["precision"], peaks["cuda"] / peaks["torch eager"]))
        speed, against_compiled, share = training_lines(label)
        return [
            _worst(speed, eager, lambda ratio: ratio >= 1.2),
            _worst(against_compiled, compiled, lambda ratio: ratio >= 0.9),
            _worst(share, memory, lambda ratio: ratio <= 1.0),
        ]

    return judge


def _worst(wanted: str, ratios: list[tuple[str, float]], good: Callable[[float], bool]) -> Line:
    if not ratios:
        return wanted, NOT_MEASURED, "no numbers"
    return verdict(
        wanted, all(good(ratio) for _, ratio in ratios), ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios)
    )


def judge_small(outcome: Outcome) -> list[Line]:
    """Judge the graphed step of the small network."""
    ratios = [
        (row["precision"], row["medians"]["torch eager"] / row["medians"]["cuda graphed"])
        for row in outcome.read("small.json")["rows"]
    ]
    return [_worst(SMALL, ratios, lambda ratio: ratio >= 2.0)]


def judge_inference(outcome: Outcome) -> list[Line]:
    """Judge inference."""
    ratios = [
        (row["precision"], row["medians"]["torch eager"] / row["medians"]["cuda"])
        for row in outcome.read("inference.json")["rows"]
    ]
    return [_worst(INFER, ratios, lambda ratio: ratio >= 1.2)]


KERNEL_LINES = ["depthwise convolution forward: at least 70 % of a copy", "backward: at least 40 % of a copy"]


def judge_kernels(outcome: Outcome) -> list[Line]:
    """Judge convolution kernels at all sizes: the worst counts."""
    shares: dict[str, list[float]] = {"forward": [], "backward": []}
    for row in outcome.read("kernels.json")["kernels"]:
        if row["op"] == "depthwise_conv":
            shares[row["way"]].append(row["share"])
    goals = zip(KERNEL_LINES, shares.values(), (0.7, 0.4), strict=True)
    return [verdict(line, min(found) >= goal, f"{min(found):.0%} to {max(found):.0%}") for line, found, goal in goals]


ACCURACY = "shapes: the accuracy of the CPU's run, to 2 points"


def judge_shapes(outcome: Outcome) -> list[Line]:
    """Compare the accuracies of two trainings, the GPU's and the CPU's."""
    found = [float(value) for value in re.findall(r"^test accuracy ([\d.]+) %", outcome.output, re.MULTILINE)]
    if len(found) != 2:
        return [(ACCURACY, NOT_MEASURED, f"{len(found)} of 2 runs ended")]
    return [verdict(ACCURACY, found[0] >= found[1] - 2.0, f"GPU {found[0]:.2f} %, CPU {found[1]:.2f} %")]


KERNELS = "every kernel equals the reference"
SUITE = "the whole suite on CuPy, with --require-gpu; fused equals the reference in every pairing"
STEPS = "ten training steps: losses equal the CPU's to 1e-4"
LABEL = "tiny_srf, batch 128"
HALF = f"{LABEL}, half precision"


def parts(folder: Path, scratch: Path) -> list[Part]:
    """List everything, what matters most first; results go into the folder, runs into another."""

    def bench(workload: str, mode: str, file: str, *precisions: str, memory: bool = True) -> list[str]:
        command = [*MINIFOCAL, "bench", "--device", "cuda", "--workload", workload, "--mode", mode]
        options = ["--precision", *precisions, "--rounds", "9", "--json", str(folder / file)]
        return [*command, *options, *([] if memory else ["--no-memory"])]

    def shapes(device: str) -> list[str]:
        out = str(scratch / f"run-{device}")
        return [*MINIFOCAL, "train", "--data", "shapes", "--epochs", "8", "--device", device, "--out", out]

    def watched(tool: str) -> Part:
        wanted = f"{tool} finds nothing"
        command = ["compute-sanitizer", "--error-exitcode", "1", "--tool", tool, *kernels]
        judged = clean_exit(wanted, "ERROR SUMMARY|RACECHECK")
        return Part(tool, command, 60, judged, [wanted], needs="compute-sanitizer")

    kernels = [PYTHON, str(ROOT / "tests" / "gpu_kernels.py")]
    suite = [PYTHON, "-m", "pytest", "--require-gpu", "-n", "8", "-q", "-p", "no:cacheprovider", str(ROOT / "tests")]
    check = [*MINIFOCAL, "bench", "--check", "--device", "cuda"]
    throughput = [*MINIFOCAL, "bench", "--kernels", "--device", "cuda", "--json", str(folder / "kernels.json")]
    small = bench("small", "train", "small.json", "float32", memory=False)
    training = bench("tiny_srf", "train", "training.json", "float32")
    inference = bench("tiny_srf", "infer", "inference.json", "float32")
    half = bench("tiny_srf", "train", "half.json", "tf32", "bfloat16")
    on_cpu = Part("shapes on the CPU", shapes("cpu"), 100, lambda _: [], [])
    return [
        Part("kernels", kernels, 60, clean_exit(KERNELS), [KERNELS]),
        Part("suite", suite, 150, clean_exit(SUITE, "passed|failed|error"), [SUITE]),
        Part("steps", check, 40, clean_exit(STEPS, "small"), [STEPS]),
        Part("small", small, 60, judge_small, [SMALL]),
        Part("tiny_srf", training, 110, judge_training("training.json", LABEL), training_lines(LABEL)),
        Part("throughput", throughput, 40, judge_kernels, KERNEL_LINES),
        Part("shapes", shapes("cuda"), 100, judge_shapes, [ACCURACY], beside=[on_cpu]),
        watched("memcheck"),
        watched("racecheck"),
        Part("inference", inference, 60, judge_inference, [INFER]),
        Part("half precision", half, 120, judge_training("half.json", HALF), training_lines(HALF)),
    ]


def run(part: Part, folder: Path, scratch: Path, seconds: float, log: Any) -> Outcome:
    """Run a part and what goes beside it, at most so long; everything that they print goes into the log."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    started = time.monotonic()
    options: dict[str, Any] = {
        "cwd": scratch,
        "env": environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "start_new_session": True,  # so that all that a command has started can be ended
    }
    together = [subprocess.Popen(p.command, **options) for p in (part, *part.beside)]
    outputs, status = [], None
    for number, process in enumerate(together):
        try:
            output, _ = process.communicate(timeout=max(1.0, seconds - (time.monotonic() - started)))
            status = process.returncode if number == 0 else status
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output = (process.communicate()[0] or "") + "\nstopped: it took too long\n"
        outputs.append(output)
        log.write(f"$ {' '.join(process.args)}\n{output}\nstatus {process.returncode}\n\n")  # type: ignore[arg-type]
        log.flush()
    return Outcome(status, "\n".join(outputs), folder)


def judge(part: Part, outcome: Outcome) -> list[Line]:
    """Give the lines of a part; not measured where it was stopped or its numbers are missing."""
    if outcome.status is None:
        return [(line, NOT_MEASURED, "it took too long") for line in part.wanted]
    try:
        return part.judge(outcome)
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError) as error:
        return [(line, NOT_MEASURED, f"status {outcome.status}: {error!r}"[:200]) for line in part.wanted]


def report(lines: list[Line], card: str, folder: Path) -> None:
    """Write report.json and report.md."""
    rows = [{"wanted": wanted, "result": result, "numbers": numbers} for wanted, result, numbers in lines]
    day = time.strftime("%Y-%m-%d")
    (folder / "report.json").write_text(json.dumps({"card": card, "date": day, "lines": rows}, indent=1))
    table = "".join(f"| {wanted} | {result} | {numbers.replace('|', '/')} |\n" for wanted, result, numbers in lines)
    (folder / "report.md").write_text(f"# {card}, {day}\n\n| wanted | result | numbers |\n|---|---|---|\n{table}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("gpu-report"), help="where the report goes")
    folder = parser.parse_args(arguments).folder.resolve()
    sys.path.insert(0, str(ROOT))
    from minifocal.arrays import describe_gpus
    from minifocal.errors import InputError

    try:
        card = describe_gpus()
    except InputError as error:
        print(f"gpu_report: {error}", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    end, lines = time.monotonic() + LIMIT, []
    with (folder / "log.txt").open("w") as log, tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        for part in parts(folder, scratch):
            left = end - time.monotonic()
            if part.needs and shutil.which(part.needs) is None:
                lines += [(line, NOT_MEASURED, f"{part.needs} is not installed") for line in part.wanted]
                continue
            if left < 5:
                lines += [(line, NOT_MEASURED, "no time was left") for line in part.wanted]
                continue
            seconds = min(part.budget, left)
            print(f"{part.name}: at most {seconds:.0f} s", flush=True)
            lines += judge(part, run(part, folder, scratch, seconds, log))
            report(lines, card, folder)  # after each, so that something is there if this is stopped
    report(lines, card, folder)
    print((folder / "report.md").read_text())
    return 0 if all(result == MET for _, result, _ in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
