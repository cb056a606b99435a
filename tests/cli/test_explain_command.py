"""`minifocal explain`: the picture and its numbers, from every kind of weights, and one line for what it refuses."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

import minifocal as mf
from minifocal.cli import main
from minifocal.cli.common import newest_run
from minifocal.cli.inputs import find_class, read_input
from minifocal.data import Standardize, digits_splits, shapes_splits
from minifocal.errors import InputError
from minifocal.interop import Preprocess
from minifocal.models.config import FocalNetConfig
from minifocal.viz.explain import explain

SIZES = {"image_size": 32, "patch_size": 4, "num_layers": 2, "hidden_size": 8, "num_classes": 3}
SCALE = {"mean": [0.5] * 3, "std": [0.25] * 3}
QUICK = ["--epochs", "1", "--hidden-size", "4", "--layers", "1", "--warmup-steps", "2"]


@pytest.fixture(autouse=True)
def a_folder_with_a_photo_and_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).save("photo.png")
    save("net.safetensors", modulation="focal")


def save(path, names=("cat", "dog, hound", "cow"), **options):
    """A network whose classifier has learned something: it begins at zero."""
    model = mf.FocalNet.build(**{**SIZES, **options})
    if model.head is not None:
        model.head.weight.data[...] = np.random.default_rng(1).standard_normal(model.head.weight.data.shape)
    extra = {"class_names": list(names)} if model.head is not None else {}
    channels = model.config.in_chans
    scale = {name: values[:channels] for name, values in SCALE.items()}
    mf.save_checkpoint(path, model, standardize=scale, **extra)
    return model


def refused(capsys, *arguments):
    """Run a command line that must be refused, and give its one line."""
    before = {path: os.stat(path).st_mtime_ns for path in os.listdir()}
    try:
        status = main(["explain", *arguments])
    except SystemExit as end:
        status = end.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("minifocal explain: ")
    assert {path: os.stat(path).st_mtime_ns for path in os.listdir()} == before
    return captured.err


@pytest.mark.parametrize("modulation", ["focal", "sigmoid_gate", "box_mean"])
def test_it_draws_a_picture_and_says_the_same_in_numbers(capsys, modulation):
    model = save("net.safetensors", modulation=modulation)
    assert main(["explain", "photo.png", "--checkpoint", "net.safetensors"]) == 0
    out = capsys.readouterr().out
    with Image.open("photo-explained.png") as picture:
        assert picture.width > 900
    assert out.splitlines()[-1] == "picture: photo-explained.png"
    images = Preprocess(32, 32, Standardize.from_dict(SCALE)).read("photo.png", "float32")
    logits = model(images)[0]
    likeliest = ["cat", "dog, hound", "cow"][logits.argmax()]
    share = 100 * float(np.exp(logits.max()) / np.exp(logits).sum())
    assert f"explained: {likeliest}, {share:.1f} %" in out
    assert f"classes: {share:.1f} % {likeliest}; " in out
    row = re.search(r"^stage 1, block 2 +(.*)$", out, re.MULTILINE)[1].split()
    _, cache = model.forward(images)
    seen = cache.layers[0].blocks[1].modulation
    means = [
        np.linalg.norm(seen.modulator[0], axis=-1).mean(),
        np.linalg.norm((seen.q * seen.modulator)[0], axis=-1).mean(),
    ]
    if modulation == "focal":
        means = [*seen.gates[0].mean(axis=(0, 1)), *means]
    found = [float(cell.replace("−", "-")) for cell in row[-len(means) :]]
    np.testing.assert_allclose(found, means, rtol=6e-3)
    of_class = explain(model, images).of_class
    for name, values in (
        ("Grad-CAM, stage 1, 8 × 8 tokens", of_class.cams[0].values),
        ("input gradient", of_class.input_gradient),
    ):
        largest, row, column = re.search(
            rf"^{name}: largest (\S+) at row (\d+), column (\d+)$", out, re.MULTILINE
        ).groups()
        assert values[int(row) - 1, int(column) - 1] == values.max() == pytest.approx(float(largest), rel=6e-3)


def test_the_class_is_chosen_by_name_or_number_and_the_picture_may_be_svg(capsys):
    pictures = []
    for number, wanted in enumerate(["cow", "2", "HOUND", "1"]):
        out = f"{number}.svg"
        assert main(["explain", "photo.png", "--checkpoint", "net.safetensors", "--class", wanted, "--out", out]) == 0
        assert f"explained: {'cow' if number < 2 else 'dog, hound'}, " in capsys.readouterr().out
        with open(out, "rb") as file:
            pictures.append(file.read())
    assert pictures[0] == pictures[1] != pictures[2] == pictures[3]


def test_without_a_checkpoint_the_newest_run_explains_a_test_image(capsys):
    for name in ("one", "two"):
        assert main(["train", "--out", f"runs/{name}", *QUICK]) == 0
    for name in os.listdir("runs/two"):
        os.utime(f"runs/two/{name}", (1, 1))
    capsys.readouterr()
    assert main(["explain", "digits:12"]) == 0
    out = capsys.readouterr().out
    assert "runs/one/best.safetensors" in out
    assert f"image: digits:12, labelled {digits_splits().test.labels[12]}, 8 × 8 pixels" in out
    assert out.splitlines()[-1] == "picture: digits-12-explained.png"
    assert main(["explain", "digits:12", "--checkpoint", "runs/one"]) == 0


def test_every_kind_of_weights_is_explained(capsys):
    config = FocalNetConfig(
        image_size=64, num_classes=3, embed_dim=8, depths=(1, 1, 2, 1), use_layerscale=True, use_postln=True
    )
    model = mf.FocalNet(config)
    for layout, path in (("hf", "hf"), ("timm", "timm.safetensors"), ("official", "official.pth")):
        mf.interop.save_pretrained(model, path, layout=layout)
        assert main(["explain", "photo.png", "--checkpoint", path, "--out", f"{layout}.png"]) == 0
        assert "Grad-CAM, stage 4, 2 × 2 tokens" in capsys.readouterr().out


def test_a_network_of_many_blocks_shows_the_last_of_each_stage_and_says_so(capsys):
    config = FocalNetConfig(
        image_size=32, num_classes=2, embed_dim=4, depths=(6, 7), focal_levels=(2, 2), focal_windows=(3, 3)
    )
    mf.interop.save_pretrained(mf.FocalNet(config), "deep", layout="hf")
    assert main(["explain", "photo.png", "--checkpoint", "deep"]) == 0
    out = capsys.readouterr().out
    assert "drawn: 2 of 13 blocks, the last of each stage; --blocks all draws them all" in out
    assert len(re.findall(r"^stage \d, block \d", out, re.MULTILINE)) == 13
    with Image.open("photo-explained.png") as few:
        pass
    assert main(["explain", "photo.png", "--checkpoint", "deep", "--blocks", "all"]) == 0
    assert "drawn:" not in capsys.readouterr().out
    with Image.open("photo-explained.png") as all_of_them:
        assert all_of_them.height > 3 * few.height


def test_without_a_classifier_there_are_gates_alone(capsys):
    save("features.safetensors", num_classes=0)
    assert main(["explain", "photo.png", "--checkpoint", "features.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "no classifier: there is no class to explain, so gates and modulators only" in out
    assert "Grad-CAM" not in out
    line = refused(capsys, "photo.png", "--checkpoint", "features.safetensors", "--class", "cat")
    assert "there is no class to explain; leave --class out" in line


@pytest.mark.parametrize("modulation", ["focal", "sigmoid_gate", "box_mean"])
def test_a_device_explains_as_the_cpu_does(modulation, cuda_on_host, capsys):
    save("net.safetensors", modulation=modulation)
    said = []
    for device in ("cpu", "cuda"):
        assert main(["explain", "photo.png", "--checkpoint", "net.safetensors", "--device", device]) == 0
        said.append(re.findall(r"\S*\d\S*", capsys.readouterr().out.replace("−", "-")))
    assert cuda_on_host.gpu.launched
    for here, there in zip(*said, strict=True):
        if re.fullmatch(r"-?\d+\.\d+", here):
            assert float(there) == pytest.approx(float(here), rel=0.02, abs=1e-3)
        else:
            assert there == here


def test_another_size_and_names_are_taken(capsys, tmp_path):
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    options = ["--image-size", "21", "--names", "names.txt", "--class", "green"]
    assert main(["explain", "photo.png", "--checkpoint", "net.safetensors", *options]) == 0
    out = capsys.readouterr().out
    assert "21 × 21 pixels" in out
    assert "Grad-CAM, stage 1, 5 × 5 tokens" in out
    assert "explained: green" in out


def test_hostile_names_are_only_text(capsys):
    hostile = "a<script>alert(1)</script>$x_{.png".replace("/", "")
    os.rename("photo.png", hostile)
    save("net.safetensors", names=("<script>alert(1)</script>", "$x_{", "b\x1b[31m"))
    for kind in ("png", "svg"):
        arguments = [hostile, "--checkpoint", "net.safetensors", "--class", "$x_{", "--out", f"a.{kind}"]
        assert main(["explain", *arguments]) == 0
        assert "\x1b" not in capsys.readouterr().out
        with open(f"a.{kind}", "rb") as file:
            assert b"<script" not in file.read()
    assert main(["explain", hostile, "--checkpoint", "net.safetensors"]) == 0
    assert os.path.exists(hostile.replace(".png", "-explained.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photo.png"], "there is no run under runs: run minifocal train first, or give --checkpoint"),
        (["missing.png", "--checkpoint", "net.safetensors"], "cannot read missing.png: No such file"),
        (["empty.png", "--checkpoint", "net.safetensors"], "empty.png: expected an image"),
        (["text.png", "--checkpoint", "net.safetensors"], "text.png: expected an image"),
        (["", "--checkpoint", "net.safetensors"], "no regular file"),
        (["photo.png", "--checkpoint", "nowhere"], "there is no checkpoint nowhere"),
        (["photo.png", "--checkpoint", "nan.safetensors"], "h.weight holds NaN or infinity"),
        (["photo.png", "--checkpoint", "huge.safetensors"], "numbers for this image are not finite"),
        (["photo.png", "--checkpoint", "net.safetensors", "--class", "cot"], "no class 'cot': did you mean cow or cat"),
        (["photo.png", "--checkpoint", "net.safetensors", "--class", "3"], "or give a number, 0 to 2"),
        (
            ["photo.png", "--checkpoint", "net.safetensors", "--class", "-1"],
            "there is no class '-1': the classes are cat, dog, hound, cow;",
        ),
        (["photo.png", "--checkpoint", "nowhere", "--out", "a.pdf"], "a picture is a .png or .svg file, got 'a.pdf'"),
        (["photo.png", "--checkpoint", "nowhere", "--out", "photo.png"], "--out is the image itself"),
        (["photo.png", "--checkpoint", "nowhere", "--out", "./photo.png"], "--out is the image itself"),
        (["photo.png", "--checkpoint", "net.safetensors", "--out", "text.png/a.png"], "cannot write text.png/a.png"),
        (
            ["photo.png", "--checkpoint", "net.safetensors", "--image-size", "0"],
            "--image-size must be an integer of at",
        ),
        (["photo.png", "--checkpoint", "net.safetensors", "--image-size", "3"], "smaller than one 4 x 4 patch"),
        (["photo.png", "--checkpoint", "gate.safetensors", "--image-size", "30"], "do not divide into patches of 4"),
        (
            ["photo.png", "--checkpoint", "net.safetensors", "--set", "num_classes=5"],
            "a new classifier has to be trained",
        ),
        (["photo.png", "--checkpoint", "net.safetensors", "--blocks", "some"], "invalid choice: 'some'"),
        (["digits:1", "--checkpoint", "net.safetensors"], "images of digits have 1 channels and the weights take 3"),
        (["shapes:500", "--checkpoint", "net.safetensors"], "shapes has test images shapes:0 to shapes:499, got '500'"),
        (["digits:x", "--checkpoint", "net.safetensors"], "digits has test images digits:0 to digits:359, got 'x'"),
        (["digits:", "--checkpoint", "net.safetensors"], "digits has test images digits:0 to digits:359, got ''"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_no_file(capsys, tmp_path, arguments, message):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    save("gate.safetensors", modulation="sigmoid_gate")
    for name, value in (("nan", np.nan), ("huge", 3e38)):
        model = mf.FocalNet.build(**SIZES, modulation="focal")
        model.layers[0].blocks[0].modulation.h.weight.data[...] = value
        mf.save_checkpoint(f"{name}.safetensors", model, standardize=SCALE, class_names=["a", "b", "c"])
    assert message in refused(capsys, *arguments)


# What explain shares with other commands


def test_a_test_image_is_the_one_that_a_run_is_measured_on():
    digits, shapes = digits_splits().test, shapes_splits().test
    grey, colour = Standardize((0.3,), (0.4,)), Standardize.from_dict(SCALE)
    seen = read_input("digits:7", Preprocess(8, 8, grey), "float64")
    np.testing.assert_array_equal(seen.images, grey(digits.images[7:8], 16.0, "float64"))
    np.testing.assert_array_equal(seen.pixels, digits.images[7] / 16.0)
    assert (seen.label, seen.name) == (str(digits.labels[7]), "digits:7")
    seen = read_input("shapes:3", Preprocess(32, 32, colour), "float32")
    np.testing.assert_array_equal(seen.images, colour(shapes.images[3:4], 255.0, "float32"))
    assert seen.label == shapes.class_names[shapes.labels[3]]
    assert read_input("shapes:3", Preprocess(40, 40, colour), "float32").images.shape == (1, 3, 40, 40)


def test_a_file_is_read_as_predict_reads_it_and_inverted():
    preprocess = Preprocess(36, 32, Standardize.from_dict(SCALE))
    for invert in (False, True):
        seen = read_input("photo.png", preprocess, "float64", invert=invert)
        np.testing.assert_array_equal(seen.images, preprocess.read("photo.png", "float64", invert))
        np.testing.assert_allclose(seen.pixels, seen.images[0] * 0.25 + 0.5, atol=1e-12)
    seen = read_input("digits:7", Preprocess(8, 8, Standardize((0.0,), (1.0,))), "float64", invert=True)
    np.testing.assert_array_equal(seen.pixels, 1 - digits_splits().test.images[7] / 16.0)


def test_a_name_goes_before_a_path(tmp_path):
    os.rename("photo.png", "digits:12")
    preprocess = Preprocess(32, 32, Standardize.from_dict(SCALE))
    assert read_input("./digits:12", preprocess, "float32").label is None
    with pytest.raises(InputError, match="images of digits have 1 channels"):
        read_input("digits:12", preprocess, "float32")


def test_a_name_of_a_class_goes_before_its_number_and_may_be_one_of_several():
    digits = [str(digit) for digit in range(10)][::-1]
    assert find_class("3", digits) == 6
    names = ["tench, Tinca tinca", "crane", "crane", "kite"]
    assert find_class(" tinca TINCA ", names) == 0
    assert find_class("tench, Tinca tinca", names) == 0
    assert find_class("3", names) == 3
    with pytest.raises(InputError, match="classes 1, 2 are all called 'crane': give the number of one"):
        find_class("crane", names)
    with pytest.raises(InputError, match="did you mean tench, Tinca tinca"):
        find_class("tinca tinka", names)
    for odd in ("", "²", "9" * 5000, "\x1b"):
        with pytest.raises(InputError, match="there is no class"):
            find_class(odd, names)


def test_there_may_be_no_run(tmp_path):
    assert newest_run() is None
    (tmp_path / "runs" / "half").mkdir(parents=True)
    (tmp_path / "runs" / "half" / "config.json").write_text(json.dumps({}))
    assert newest_run() is None
