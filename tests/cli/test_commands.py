"""The command line as a user types it: what it prints, and its exit status."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minifocal as mf
from minifocal.cli import COMMANDS, main
from minifocal.data import digits_splits, load_splits

# A network of a moment: what is tested here is the command, not how well it learns.
QUICK = ["--epochs", "1", "--hidden-size", "4", "--layers", "1", "--warmup-steps", "2"]


@pytest.fixture
def run_folder(tmp_path, capsys):
    """A finished run on the digits."""
    assert main(["train", "--out", str(tmp_path / "run"), *QUICK]) == 0
    capsys.readouterr()
    return tmp_path / "run"


def test_train_leaves_all_files_and_prints_the_accuracy_last(tmp_path, capsys):
    assert main(["train", "--out", str(tmp_path / "run"), *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"test accuracy \d+\.\d\d %", lines[-1])
    assert lines[-2] == "one nearest neighbour 98.89 %"
    assert any(line.startswith("epoch   1/1  loss ") for line in lines)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    checkpoints = {"last.safetensors", "previous.safetensors", "best.safetensors"}
    assert names == {"config.json", "metrics.jsonl", "curves.png", "run.lock"} | checkpoints
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert record["epoch"] == 1
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        assert picture.size[0] > 600


def test_train_twice_with_one_seed_gives_the_same_metrics_and_weights(tmp_path, capsys):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        assert main(["train", "--out", str(folder), "--seed", "5", *QUICK]) == 0
    one, two = (json.loads((folder / "metrics.jsonl").read_text()) for folder in folders)
    different = {name for name in one if one[name] != two[name]}
    assert different <= {"seconds", "images_per_second"}
    weights = [mf.load_checkpoint(folder / "last.safetensors").model for folder in folders]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_train_with_no_options_makes_the_seed_network_for_the_digits(tmp_path, monkeypatch, capsys):
    built = {}

    def stop(self):
        built["model"] = self.model
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minifocal.training.trainer.Trainer.fit", stop)
    assert main(["train"]) == 130
    config = built["model"].config
    assert (config.modulation, config.depths, config.image_hw) == ("sigmoid_gate", (3,), (8, 8))
    assert (config.mlp_ratio, config.num_classes, config.patch_norm) == (4.0, 10, False)
    assert (tmp_path / "runs" / "digits" / "config.json").is_file()


@pytest.mark.parametrize("modulation", ["focal", "box_mean"])
def test_train_takes_every_modulation(tmp_path, capsys, modulation):
    assert main(["train", "--out", str(tmp_path / "run"), "--modulation", modulation, *QUICK]) == 0
    assert f"network: {modulation}," in capsys.readouterr().out


def test_train_takes_a_published_variant(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("minifocal.training.trainer.Trainer.fit", lambda self: False)
    arguments = ["train", "--out", str(tmp_path / "run"), "--model", "focalnet_tiny_iso", "--patch-size", "2"]
    assert main(arguments) == 130
    assert "dims 192, depths 12, levels 3" in capsys.readouterr().out


@pytest.fixture
def image_folder(tmp_path):
    """Dark and light grey squares, a folder for each class."""
    rng = np.random.default_rng(0)
    for name, low, count in (("dark", 0, 11), ("light", 150, 14)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(low, low + 100, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{index}.png")
    return tmp_path / "pictures"


def test_train_and_predict_on_a_folder_of_images(image_folder, tmp_path, capsys):
    options = ["--image-size", "16", "--patch-size", "4", "--batch-size", "5", "--crop", "12", "--no-flip"]
    out = str(tmp_path / "run")
    assert main(["train", "--data", str(image_folder), "--out", out, *options, *QUICK, "--epochs", "3"]) == 0
    assert "data: pictures" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["training"]["augmentation"] == {"crop": [12, 12], "shift": 4, "shift_fraction": 0.5, "flip": False}
    assert main(["predict", str(image_folder / "dark" / "0.png"), "--checkpoint", out]) == 0
    assert "% dark" in capsys.readouterr().out


def test_default_folders_are_numbered(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        assert main(["train", *QUICK]) == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"digits", "digits-2", "digits-3"}


def test_an_interrupted_run_says_how_to_resume_and_resumes_to_the_same_end(tmp_path):
    longer = [*QUICK, "--epochs", "3"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert main(["train", "--out", str(straight), *longer]) == 0
    done = interrupted_run("--out", str(stopped), *longer, "--recompute-levels")
    assert f"go on with: minifocal train --resume --out {stopped} --recompute-levels" in done
    assert main(["train", "--resume", "--out", str(stopped)]) == 0
    assert same_weights(straight, stopped)


def test_a_run_of_rounded_products_resumes_to_the_same_end_as_it_says_and_elsewhere_in_float32(tmp_path, capsys):
    longer = [*QUICK, "--epochs", "2"]
    straight, stopped, changed = (tmp_path / name for name in ("straight", "stopped", "changed"))
    assert main(["train", "--out", str(straight), *longer, "--precision", "bfloat16"]) == 0
    assert ", on cpu, products in bfloat16\n" in capsys.readouterr().out
    done = interrupted_run("--out", str(stopped), *longer, "--precision", "bfloat16")
    shutil.copytree(stopped, changed)
    command = f"minifocal train --resume --out {stopped} --precision bfloat16"
    assert f"go on with: {command}\n" in done
    assert main(shlex.split(command)[1:]) == 0
    assert same_weights(straight, stopped)
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(changed)]) == 0
    assert ", on cpu\n" in capsys.readouterr().out
    assert not same_weights(straight, changed)


def interrupted_run(*arguments):
    """Train until step 27 in a process of its own; give what it printed."""
    command = [sys.executable, "-c", INTERRUPTED, "train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    return done.stdout


def same_weights(*folders):
    one, two = (mf.load_checkpoint(folder / "last.safetensors").model for folder in folders)
    return all(np.array_equal(one[name], two[name]) for name in one)


INTERRUPTED = """
import os, signal, sys
from minifocal.cli import main
from minifocal.cli.train import PlainLines
PlainLines.on_step = lambda self, step, *rest: step == 27 and os.kill(os.getpid(), signal.SIGINT)
sys.exit(main(sys.argv[1:]))
"""


def test_resume_without_a_folder_takes_the_newest_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *QUICK]) == 0
    assert main(["train", "--resume"]) == 0
    assert "folder: runs/digits" in capsys.readouterr().out


def test_evaluate_prints_classes_loss_and_accuracy(run_folder, capsys):
    assert main(["evaluate", str(run_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"checkpoint: {run_folder / 'best.safetensors'}, data: digits, ")
    assert lines[1].split() == ["class", "images", "right", "taken", "for"]
    assert sum(int(line.split()[1]) for line in lines[2:12]) == 360
    assert lines[-2].startswith("loss ")
    assert re.fullmatch(r"test accuracy \d+\.\d\d %", lines[-1])


def test_evaluate_agrees_with_the_run_for_the_last_weights(tmp_path, capsys):
    assert main(["train", "--out", str(tmp_path / "run"), *QUICK]) == 0
    at_the_end = capsys.readouterr().out.splitlines()[-1]
    assert main(["evaluate", str(tmp_path / "run" / "last.safetensors")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == at_the_end


def test_predict_names_the_likeliest_classes_of_each_image(run_folder, tmp_path, capsys):
    test = digits_splits().test
    paths = []
    for index in range(2):
        path = tmp_path / f"{index}.png"
        Image.fromarray((test.images[index, 0] * 15).astype(np.uint8)).resize((16, 16), 0).save(path)
        paths.append(str(path))
    assert main(["predict", *paths, "--checkpoint", str(run_folder), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for path, line in zip(paths, lines, strict=True):
        assert re.fullmatch(rf"{re.escape(path)}: \d+\.\d % \d; \d+\.\d % \d", line)


def test_predict_inverts_dark_ink_on_light_paper(run_folder, tmp_path, capsys):
    pixels = (digits_splits().test.images[0, 0] * 15).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "light.png")
    Image.fromarray(255 - pixels).save(tmp_path / "dark.png")
    assert main(["predict", str(tmp_path / "light.png"), "--checkpoint", str(run_folder)]) == 0
    light = capsys.readouterr().out.partition(": ")[2]
    assert main(["predict", str(tmp_path / "dark.png"), "--checkpoint", str(run_folder), "--invert"]) == 0
    assert capsys.readouterr().out.partition(": ")[2] == light


def test_gradcheck_passes_a_layer_and_lists_its_parameters(capsys):
    assert main(["gradcheck", "linear", "modulation.focal"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "linear"
    assert [line.split()[0] for line in lines[1:4]] == ["x", "weight", "bias"]
    assert "all pass" in lines[-1]


def test_gradcheck_elementwise_shows_indices_and_both_numbers(capsys):
    assert main(["gradcheck", "layer_norm", "--elementwise", "--method", "complex", "--tolerance", "1e-12"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"index\s+analytic\s+numeric\s+relative error", out)
    assert re.search(r"\(\d, \d, \d, \d\)\s+-?\d\.\d+e", out)


def test_gradcheck_fails_on_a_wrong_gradient(monkeypatch, capsys):
    from minifocal.layers.layer_norm import LayerNorm

    right = LayerNorm.backward
    monkeypatch.setattr(LayerNorm, "backward", lambda self, dy, cache: 7 * right(self, dy, cache))
    assert main(["gradcheck", "layer_norm"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"x .*FAIL", out)
    assert "1 FAILED" in out


def test_summary_prints_every_part_and_the_totals(capsys):
    assert main(["summary", "focalnet_tiny_srf", "--image-size", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split()[:2] == ["total", "28,427,116"]
    assert any(line.startswith("layers.2.blocks.5.modulation") for line in lines)


def test_summary_of_the_seed_network_and_of_a_checkpoint(run_folder, capsys):
    assert main(["summary"]) == 0
    assert "sigmoid_gate network, float32, one image of 224 x 224 pixels" in capsys.readouterr().out
    assert main(["summary", str(run_folder)]) == 0
    assert "one image of 8 x 8 pixels" in capsys.readouterr().out


def test_models_lists_all_fifteen(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16
    assert any(line.split()[:3] == ["focalnet_base_lrf", "88,749,768", "15.42"] for line in lines)


def test_doctor_names_versions_blas_and_what_is_missing(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in (f"numpy {np.__version__}", "BLAS: ", "numba: ", "GPU: ", "MPI: ", "ops: reference"):
        assert word in out


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["data", "fetch"]])
def test_help_says_what_a_command_does_with_an_example(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    assert "example: minifocal " in capsys.readouterr().out


@pytest.mark.parametrize("command", [module.EXAMPLE for module in COMMANDS.values()])
def test_every_example_is_a_command_line_that_parses(command):
    import shlex

    from minifocal.cli import make_parser

    program, *arguments = shlex.split(command)
    assert program == "minifocal"
    make_parser().parse_args(arguments)


def test_evaluate_measures_the_data_that_the_run_was_trained_on(image_folder, tmp_path, monkeypatch, capsys):
    options = ["--image-size", "16", "--patch-size", "4", "--batch-size", "5", *QUICK]
    monkeypatch.chdir(image_folder.parent)
    assert main(["train", "--data", "pictures", "--out", "run", *options]) == 0
    at_the_end = capsys.readouterr().out.splitlines()[-1]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    asked = []

    def remember(data, root=None, image_size=None):
        asked.append((Path(data).resolve(), image_size))
        return load_splits(data, root, image_size)

    monkeypatch.setattr("minifocal.cli.evaluate.load_splits", remember)
    for data in ([], ["--data", "../pictures"]):
        assert main(["evaluate", "../run/last.safetensors", *data]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == at_the_end
    assert asked == [(image_folder, 16)] * 2


def test_on_a_terminal_a_bar_shows_loss_accuracy_rate_and_time_left(tmp_path):
    import pty

    command = [sys.executable, "-m", "minifocal", "train", "--out", str(tmp_path / "run"), *QUICK, "--epochs", "2"]
    reader, writer = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writer) as process:
        os.close(writer)
        shown = b""
        with contextlib.suppress(OSError):  # what a terminal gives that nobody writes to any more
            while part := os.read(reader, 4096):
                shown += part
        printed = process.stdout.read()
    os.close(reader)
    assert process.returncode == 0
    last = shown.decode().replace("\r", "\n").strip().splitlines()[-1]
    assert re.match(r"epoch 2/2 100% \|████\| [\d.]+ img/s, 00:00 left, loss \d\.\d\d, \d+ %, val \d+\.\d %", last)
    assert b"epoch" not in printed


def test_a_reader_that_stops_early_ends_the_command_quietly():
    command = f"{sys.executable} -m minifocal gradcheck linear mlp.gelu | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "linear\n"
    assert done.stderr == ""
    assert done.returncode == 141
