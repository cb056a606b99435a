"""`minifocal trace`: the loss is that of the right class, and what is refused gets one line before any work."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image
from test_explain_command import save

from minifocal.cli import main


@pytest.fixture(autouse=True)
def a_folder_with_a_photo_and_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).save("photo.png")
    save("net.safetensors", modulation="focal", num_layers=1)


def traced(capsys, *arguments):
    """Run the command; give the line on the image and what stands on the page."""
    assert main(["trace", *arguments, "--html", "page.html"]) == 0
    out = capsys.readouterr().out
    with open("page.html", encoding="utf-8") as page:
        data = re.search(r'id="data">(.*?)</script>', page.read(), re.DOTALL)[1]
    return out.splitlines()[0], json.loads(data)


def test_the_class_is_the_one_asked_for_or_known_or_the_likeliest(capsys):
    line, data = traced(capsys, "photo.png", "--checkpoint", "net.safetensors")
    likeliest = line.rpartition("likeliest ")[2]
    assert line.startswith(f"image: photo.png, class {likeliest}, loss ")
    assert data["summary"]["classes"][data["summary"]["label"]] == likeliest

    other = next(name for name in ("cat", "cow") if name != likeliest)
    line, data = traced(capsys, "photo.png", "--checkpoint", "net.safetensors", "--class", other)
    assert f"class {other}, loss " in line
    assert line.endswith(f"likeliest {likeliest}")
    assert data["summary"]["classes"][data["summary"]["label"]] == other

    names = list("0123456789")
    save("digits.safetensors", names, modulation="focal", num_layers=1, num_classes=10, in_channels=1)
    line, data = traced(capsys, "digits:7", "--checkpoint", "digits.safetensors")
    assert line.startswith("image: digits:7, class 1, loss ")
    likeliest = line.rpartition("likeliest ")[2]
    assert likeliest != "1"
    line, _ = traced(capsys, "digits:7", "--checkpoint", "digits.safetensors", "--class", "5")
    assert line.startswith("image: digits:7, class 5, loss ")


def test_the_page_has_a_name_without_being_given_one(capsys):
    assert main(["trace", "photo.png", "--checkpoint", "net.safetensors", "--image-size", "16"]) == 0
    assert re.search(
        r"^page: photo-trace\.html, \d+\.\d MB; open it in a browser$", capsys.readouterr().out, re.MULTILINE
    )
    assert os.path.exists("photo-trace.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothere.png"], "nothere.png"),
        (["photo.png", "--checkpoint", "nowhere"], "there is no checkpoint nowhere"),
        (["photo.png", "--checkpoint", "features.safetensors"], "classifier"),
        (["photo.png", "--class", "cot"], "no class 'cot': did you mean cow or cat"),
        (["photo.png", "--html", "photo.png"], "--html is the image itself"),
        (["photo.png", "--html", "folder"], "--html takes a file and folder is a folder"),
        (["photo.png", "--html", "photo.png/page.html"], "cannot write photo.png/page.html"),
        (["photo.png", "--image-size", "3"], "smaller than one 4 x 4 patch"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_no_file(capsys, arguments, message):
    os.mkdir("folder")
    save("features.safetensors", modulation="focal", num_layers=1, num_classes=None)
    before = sorted(os.listdir())
    checkpoint = [] if "--checkpoint" in arguments else ["--checkpoint", "net.safetensors"]
    assert main(["trace", *arguments, *checkpoint]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minifocal trace: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(os.listdir()) == before
