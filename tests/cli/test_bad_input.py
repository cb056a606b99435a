"""Bad input on the command line: one line on standard error that says what to do, status 2, no traceback."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minifocal as mf
from minifocal.cli import main
from minifocal.training.trainer import Trainer


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, *arguments):
    """Run a command line that must be refused, and give its one line."""
    try:
        status = main(list(arguments))
    except SystemExit as end:
        status = end.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("minifocal")
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND; see minifocal --help"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--epoch", "3"], "unrecognized arguments: --epoch 3"),
        (["train", "--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["train", "--epochs", "0"], "epochs must be an integer of at least 1, got 0"),
        (["train", "--layers", "2,x"], "argument --layers"),
        (["train", "--layers", "-1"], "layers must be an integer of at least 1, got -1"),
        (["train", "--focal-levels", "0"], "focal_levels must be at least 1 for sigmoid_gate"),
        (["train", "--focal-kernel", "4"], "all kernels are odd (stage 0 has (4, 6)"),
        (["train", "--patch-size", "3"], "do not divide into patches of 3"),
        (["train", "--patch-size", "16"], "smaller than one patch of 16"),
        (["train", "--init", "he"], "init must be one of"),
        (["train", "--seed", "-1"], "seed must be an integer of at least 0, got -1"),
        (["train", "--batch-size", "5000"], "batch larger than the data"),
        (["train", "--clip-norm", "-1"], "clip_norm must be at least 0 and finite, got -1.0"),
        (["train", "--lr", "nan"], "lr must be at least 0 and finite, got nan"),
        (["train", "--shift", "-1"], "shift must be an integer of at least 0, got -1"),
        (["train", "--crop", "0"], "crop must be an integer of at least 1, got 0"),
        (["train", "--crop", "9"], "a crop of 9 x 9 does not fit into images of 8 x 8 pixels"),
        (["train", "--modulation", "focal", "--layers", "2,2,2,2,2"], "smaller than one 2 x 2 patch"),
        (["train", "--warmup-steps", "-1"], "warmup_steps must be an integer of at least 0, got -1"),
        (["train", "--warmup-steps", "9999"], "warm-up must be shorter than the training"),
        (["train", "--layers", "1,1", "--hidden-size", "0"], "hidden_size must be an integer of at least 1"),
        (["train", "--data", "x" * 300], "File name too long"),
        (["train", "--hidden-size", "100000000"], "not enough memory"),
        (["predict", "x.png", "--checkpoint", "y", "--top", "0"], "--top must be an integer of at least 1, got 0"),
        (
            ["gradcheck", "network*", "--method", "complex"],
            "whole networks refuse complex numbers; use --method central",
        ),
        (["gradcheck", "linear", "--tolerance", "nan"], "tolerance must be above 0 and finite, got nan"),
        (["summary", "--image-size", "-5"], "image_size must be an integer of at least 1, got -5"),
        (["train", "--drop-path-rate", "1"], "drop_path_rate must be in [0, 1)"),
        (["train", "--data", "letters"], "or the path of a folder of images"),
        (["train", "--data", "mnist", "--data-root", "nowhere"], "minifocal data fetch mnist"),
        (["train", "--model", "focalnet_giant"], "the models are focalnet_tiny_srf"),
        (
            ["train", "--model", "focalnet_tiny_srf", "--hidden-size", "8"],
            "only the small networks take that, not --model",
        ),
        (["train", "--model", "focalnet_tiny_srf", "--modulation", "focal"], "not allowed with argument"),
        (["train", "--precision", "fp8"], "argument --precision: invalid choice: 'fp8'"),
        (["bench", "--device", "cuda", "--precision", "fp8"], "argument --precision: invalid choice: 'fp8'"),
        (["train", "--precision", "tf32", "--dtype", "float64"], "is for networks in float32, got dtype"),
        (["train", "--device", "tpu"], 'device must be "cpu", "cuda" or "cuda:N"'),
        (["train", "--resume"], "there is no run under runs to resume"),
        (["train", "--resume", "--epochs", "9"], "leave --epochs out"),
        (["train", "--resume", "--out", "nowhere"], "holds no run to resume"),
        (["evaluate", "nowhere.safetensors"], "there is no checkpoint nowhere.safetensors"),
        (["predict", "x.png"], "the following arguments are required: --checkpoint"),
        (["gradcheck", "attention"], "no layer matches attention; the layers are linear"),
        (["summary", "focalnet_giant"], "there is no model 'focalnet_giant'"),
        (["summary", "focalnet_tiny_srf", "--image-size", "8"], "smaller than one 2 x 2 patch"),
        (["summary", "--image-size", "100"], "do not divide into patches of 16"),
        (["models", "*vit*"], "no model matches '*vit*'"),
        (["data", "fetch", "imagenet"], "invalid choice: 'imagenet'"),
    ],
)
def test_one_line_says_what_was_wrong(capsys, arguments, words):
    assert words in refused(capsys, *arguments)


def test_a_device_that_is_not_there_is_named(capsys):
    try:
        mf.to_device(np.zeros(1), "cuda")
    except mf.InputError:
        assert "cuda" in refused(capsys, "train", "--device", "cuda")
    else:
        assert "cuda:99" in refused(capsys, "train", "--device", "cuda:99")


@pytest.mark.parametrize("option", [["--patch-size", "3"], ["--crop", "9"], ["--crop", "3"]])
def test_a_refused_training_leaves_no_folder_behind(capsys, tmp_path, option):
    refused(capsys, "train", *option, "--out", "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_written_over(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.safetensors").write_bytes(b"precious")
    assert "holds a run already; add --resume" in refused(capsys, "train", "--out", "run")
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == b"precious"


def test_an_unwritable_folder_is_named(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(capsys, "train", "--out", "file/run")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_configuration_is_refused(capsys, tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(text)
    assert "run" in refused(capsys, "train", "--resume", "--out", "run")


def test_settings_changed_by_hand_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda self: False)
    main(["train", "--out", "run"])
    capsys.readouterr()
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    settings["training"]["epocs"] = 3
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    assert "epocs" in refused(capsys, "train", "--resume", "--out", "run")


def test_a_checkpoint_that_no_training_wrote_cannot_predict(capsys, tmp_path):
    mf.save_checkpoint(tmp_path / "a.safetensors", mf.FocalNet.build(image_size=16, num_layers=1, num_classes=2))
    assert "does not say how its images were prepared" in refused(
        capsys, "predict", "x.png", "--checkpoint", "a.safetensors"
    )


def test_an_image_that_is_none_is_named(capsys, tmp_path):
    model = mf.FocalNet.build(image_size=16, num_layers=1, num_classes=2, hidden_size=4)
    scale = {"mean": [0.0] * 3, "std": [1.0] * 3}
    mf.save_checkpoint(tmp_path / "a.safetensors", model, standardize=scale, class_names=["a", "b"])
    (tmp_path / "x.png").write_text("no image")
    assert "x.png" in refused(capsys, "predict", "x.png", "--checkpoint", "a.safetensors")


def test_evaluating_on_data_of_other_classes_is_refused(capsys, tmp_path):
    model = mf.FocalNet.build(image_size=8, patch_size=2, in_channels=1, num_layers=1, num_classes=2, hidden_size=4)
    scale = {"mean": [0.0], "std": [1.0]}
    mf.save_checkpoint(tmp_path / "a.safetensors", model, standardize=scale, class_names=["a", "b"])
    assert "trained on the classes a, b, but the data has 0, 1" in refused(
        capsys, "evaluate", "a.safetensors", "--data", "digits"
    )


def test_a_training_that_diverges_says_what_to_try_with_status_1(capsys, monkeypatch):
    status = 0
    with np.errstate(all="ignore"):
        status = main(["train", "--lr", "1e30", "--epochs", "1", "--hidden-size", "4", "--clip-norm", "0"])
    captured = capsys.readouterr()
    assert status == 1
    assert "try a smaller learning rate" in captured.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_the_output_is_said():
    done = subprocess.run(
        f"{sys.executable} -m minifocal models >/dev/full", shell=True, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "minifocal models: No space left on device: the output\n"


@pytest.mark.parametrize("name", ["network", "training", "data"])
@pytest.mark.parametrize("value", [3, {"unknown": 1}])
def test_a_part_of_the_configuration_changed_by_hand_is_refused(capsys, tmp_path, monkeypatch, name, value):
    monkeypatch.setattr(Trainer, "fit", lambda self: False)
    main(["train", "--out", "run"])
    capsys.readouterr()
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    settings[name] = value
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    message = refused(capsys, "train", "--resume", "--out", "run")
    assert "unknown" in message or "run/config.json is not a configuration" in message


def test_a_run_is_not_resumed_with_another_training(capsys, tmp_path):
    assert main(["train", "--out", "run", "--epochs", "1", "--hidden-size", "4", "--layers", "1"]) == 0
    capsys.readouterr()
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    settings["training"]["batch_size"] = 32
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    assert "is of a run that differs in training" in refused(capsys, "train", "--resume", "--out", "run")


def test_a_run_is_not_resumed_with_another_network_of_the_same_shapes(capsys, tmp_path):
    """Else what was changed in its configuration, by hand or by the disk, would stand in the next checkpoint."""
    assert main(["train", "--out", "run", "--epochs", "1", "--hidden-size", "4", "--layers", "1"]) == 0
    capsys.readouterr()
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    settings["network"]["network"]["drop_path_rate"] = 0.9
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    assert "is of a run that differs in network" in refused(capsys, "train", "--resume", "--out", "run")


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.safetensors", "{}"), ("config.json", '{"model_type": "focalnet"}'), ("config.json", "")],
)
def test_a_folder_of_something_else_is_not_written_into(capsys, tmp_path, name, content):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / name).write_text(content)
    message = refused(capsys, "train", "--out", "hf")
    assert f"hf holds {name}, which is not of a run; choose another --out" in message
    assert [path.name for path in (tmp_path / "hf").iterdir()] == [name]
    assert (tmp_path / "hf" / name).read_text() == content
