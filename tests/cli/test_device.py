"""`--device cuda` as a user types it, on kernels that are compiled for the host."""

import json
import re
import signal

import numpy as np
import pytest
from PIL import Image

import minifocal as mf
from minifocal.cli import main
from minifocal.cli.train import PlainLines

COUNTS = {"dark": 9, "light": 8}


@pytest.fixture
def images(tmp_path):
    """A folder of images by class: too small to be interesting, and soon learned."""
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        for name, count in COUNTS.items():
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 100, (8, 8, 3)) + 150 * (name == "light")
                Image.fromarray(pixels.astype("uint8")).save(folder / f"{number}.png")
    return str(tmp_path / "images")


def train(images, out, *options):
    small = ["--hidden-size", "8", "--layers", "1", "--patch-size", "4", "--batch-size", "5", "--epochs", "3"]
    return main(["train", "--data", images, "--out", str(out), "--shift", "0", "--image-size", "8", *small, *options])


def losses(folder):
    return [json.loads(line)["train_loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "options", [[], ["--graph"], ["--precision", "bfloat16"], ["--precision", "float16", "--graph"]], ids=str
)
def test_training_on_a_device_is_training_on_the_cpu(options, images, cuda_on_host, tmp_path, capsys):
    assert train(images, tmp_path / "gpu", "--device", "cuda", *options) == 0
    out = capsys.readouterr().out
    assert re.search(r"^peak memory of the GPU \d+ MiB$", out, re.MULTILINE)
    assert re.search(r"^test accuracy \d+\.\d\d %$", out.splitlines()[-1])
    assert {"sgd_update<float>", "focal_level<float, 4, 3>"} <= set(cuda_on_host.gpu.launched)
    on_cpu = [option for option in options if option != "--graph"]
    assert train(images, tmp_path / "cpu", "--ops", "reference", *on_cpu) == 0
    np.testing.assert_allclose(losses(tmp_path / "gpu"), losses(tmp_path / "cpu"), rtol=1e-4)


@pytest.mark.parametrize("options", [[], ["--graph"], ["--precision", "float16", "--graph"]], ids=str)
def test_a_run_that_is_stopped_on_a_device_goes_on_as_it_says(
    options, images, cuda_on_host, tmp_path, monkeypatch, capsys
):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert train(images, straight, "--device", "cuda", *options) == 0
    with monkeypatch.context() as patch:
        patch.setattr(PlainLines, "on_epoch", lambda *_: signal.raise_signal(signal.SIGINT))
        assert train(images, stopped, "--device", "cuda", *options) == 130
    assert len(losses(stopped)) == 1
    (said,) = re.findall(r"go on with: minifocal (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert said == " ".join(["train --resume --out", str(stopped), "--device cuda", *options])
    assert main(said.split()) == 0
    assert losses(stopped) == losses(straight)


def test_a_run_that_diverges_on_a_device_says_so_in_one_line(images, cuda_on_host, tmp_path, capsys):
    assert train(images, tmp_path / "run", "--device", "cuda", "--lr", "1e30") == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"minifocal train: .* is nan in epoch 1; try a smaller learning rate .*\n", err)


def test_a_run_on_a_device_is_evaluated_there_and_here(images, cuda_on_host, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(images, out, "--device", "cuda") == 0
    capsys.readouterr()
    for device in ("cuda", "cpu"):
        assert main(["evaluate", str(out), "--device", device]) == 0
    there, here = re.findall(r"^test accuracy .*$", capsys.readouterr().out, re.MULTILINE)
    assert there == here
    model = mf.FocalNet.from_checkpoint(mf.load_checkpoint(out / "last.safetensors"), device="cuda")
    assert model.ops.name == "cuda"


def test_a_graph_on_the_cpu_is_refused_in_one_line(images, tmp_path, capsys):
    assert train(images, tmp_path / "run", "--graph") == 2
    assert capsys.readouterr().err == (
        'minifocal train: a graph records the work of a GPU, but the model is on the CPU; use device "cuda"\n'
    )


def test_another_table_is_refused_on_a_device(images, cuda_on_host, tmp_path, capsys):
    assert train(images, tmp_path / "run", "--device", "cuda", "--ops", "numpy") == 2
    assert 'ops "numpy" computes on the CPU, but the device is cuda' in capsys.readouterr().err


def test_the_doctor_names_the_device(cuda_on_host, capsys):
    assert main(["doctor"]) == 0
    assert "GPU: kernels for the host; CuPy none, driver for CUDA 13.0" in capsys.readouterr().out
