"""The command line with weights from elsewhere: converting, predicting, evaluating, looking at them."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from published import CKPT_FILES

import minifocal as mf
from minifocal import interop
from minifocal.cli import main

SETTINGS = ["--set", "use_postln=false", "--set", "normalize_modulator=False"]
OFFICIAL = [str(CKPT_FILES["official"]), *SETTINGS]


def refused(capsys, *arguments):
    assert main(list(arguments)) == 2
    message = capsys.readouterr().err
    *notes, last = message.splitlines()
    assert all(" images as usual: " in note for note in notes)
    return last


@pytest.fixture
def photos(tmp_path):
    """Eight JPEGs in folders of ten classes."""
    rng = np.random.default_rng(0)
    for label in range(10):
        folder = tmp_path / "photos" / f"n{label:04}"
        folder.mkdir(parents=True)
        for index in range(3):
            pixels = np.kron(rng.integers(0, 256, (5, 6, 3)), np.ones((9, 9, 1))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.jpg")
    return tmp_path / "photos"


def test_convert_prints_what_it_inferred_and_what_it_changed(tmp_path, capsys):
    assert main(["convert", *OFFICIAL, str(tmp_path / "hf"), "--layout", "hf"]) == 0
    out = capsys.readouterr().out
    for part in (
        f"read {CKPT_FILES['official']}",
        "layout official: it has patch_embed.proj.weight",
        "depths (1, 2)",
        "given: use_postln False, normalize_modulator False",
        "wrote ",
        "10,492 numbers in float32, layout hf",
        "results are equal only for images whose sides are multiples of 8 pixels",
        "→ focalnet.encoder.stages.{s}.layers.{b}.modulation.projection_in",
    ):
        assert part in out
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "t.safetensors"), "--layout", "timm"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"projection_in +→ layers\.\{s\}\.blocks\.\{b\}\.modulation\.f  \(20, 8\) → \(20, 8, 1, 1\)", out)
    assert re.search(r"downsample\.projection +→ layers\.\{s\+1\}\.downsample\.proj$", out, re.MULTILINE)
    assert main(["convert", str(tmp_path / "t.safetensors"), str(tmp_path / "o.pth"), "--layout", "official"]) == 0
    first = interop.load_pretrained(CKPT_FILES["hf"]).state_dict()
    last = interop.load_pretrained(tmp_path / "o.pth").state_dict()
    assert all(np.array_equal(first[name], last[name]) for name in first)


def test_convert_writes_another_precision_and_class_names(tmp_path, capsys):
    (tmp_path / "names.txt").write_text("\n".join(f"name {label}" for label in range(10)))
    options = ["--layout", "minifocal", "--dtype", "float64", "--names", str(tmp_path / "names.txt")]
    assert main(["convert", *OFFICIAL, str(tmp_path / "m.safetensors"), *options]) == 0
    opened = interop.open_pretrained(tmp_path / "m.safetensors")
    assert (opened.dtype, opened.class_names[7]) == ("float64", "name 7")


def test_convert_writes_over_nothing(tmp_path, capsys):
    (tmp_path / "there.pth").write_text("precious")
    message = refused(capsys, "convert", *OFFICIAL, str(tmp_path / "there.pth"), "--layout", "official")
    assert "is there already; remove it, or choose another name" in message
    assert (tmp_path / "there.pth").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert main(["convert", *OFFICIAL, str(tmp_path / "empty"), "--layout", "hf"]) == 0
    assert "is there already" in refused(capsys, "convert", *OFFICIAL, str(tmp_path / "empty"), "--layout", "hf")


def test_what_the_weights_do_not_show_is_asked_for(capsys, tmp_path):
    message = refused(capsys, "convert", str(CKPT_FILES["official"]), str(tmp_path / "x"), "--layout", "hf")
    assert "give use_postln=False" in message
    assert message.endswith("; for example --set use_postln=False --set normalize_modulator=False")
    assert "--set takes NAME=VALUE" in refused(capsys, "summary", str(CKPT_FILES["official"]), "--set", "use_postln")
    assert "unknown option postln" in refused(capsys, "summary", str(CKPT_FILES["official"]), "--set", "postln=1")


@pytest.mark.parametrize("kind", ["text", "list", "index", "pairs"])
def test_predict_on_a_jpeg_prints_the_top_five_with_names(photos, tmp_path, capsys, kind):
    names = [f"name {label}" for label in range(10)]
    content = {
        "text": "\n".join(names) + "\n",
        "list": json.dumps(names),
        "index": json.dumps({str(label): name for label, name in enumerate(names)}),
        "pairs": json.dumps({str(label): [f"n{label}", name] for label, name in enumerate(names)}),
    }
    (tmp_path / "names").write_text(content[kind])
    image = str(photos / "n0003" / "0.jpg")
    options = ["--names", str(tmp_path / "names"), "--set", "image_size=32"]
    assert main(["predict", image, "--checkpoint", *OFFICIAL, *options]) == 0
    line = capsys.readouterr().out.strip()
    assert re.fullmatch(rf"{re.escape(image)}: (\d+\.\d % name \d(; |$)){{5}}", line)
    prepared = interop.Preprocess.usual("official", 32, 3).read(image, "float32")
    model = interop.load_pretrained(CKPT_FILES["hf"])
    assert line.partition(";")[0].endswith(f" % name {model(prepared).argmax()}")


def test_predict_numbers_classes_without_names_and_takes_those_of_hugging_face(photos, tmp_path, capsys):
    image = str(photos / "n0003" / "0.jpg")
    assert main(["predict", image, "--checkpoint", *OFFICIAL, "--top", "1"]) == 0
    assert re.search(r": \d+\.\d % class \d$", capsys.readouterr().out)
    assert main(["predict", image, "--checkpoint", str(CKPT_FILES["hf"]), "--top", "1"]) == 0
    assert re.search(r": \d+\.\d % LABEL_\d$", capsys.readouterr().out)


def test_predict_with_a_converted_checkpoint_knows_the_names(photos, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("\n".join(f"name {label}" for label in range(10)))
    image, lines = str(photos / "n0003" / "0.jpg"), []
    options = ["--names", str(tmp_path / "names.txt"), "--set", "image_size=32"]
    assert main(["predict", image, "--checkpoint", *OFFICIAL, *options]) == 0
    lines.append(capsys.readouterr().out)
    for layout, name in (
        ("hf", "hf"),
        ("timm", "t.safetensors"),
        ("official", "o.pth"),
        ("minifocal", "m.safetensors"),
    ):
        assert main(["convert", *OFFICIAL, str(tmp_path / name), "--layout", layout, *options]) == 0
        capsys.readouterr()
        assert main(["predict", image, "--checkpoint", str(tmp_path / name)]) == 0
        lines.append(capsys.readouterr().out)
    first, hf, *others = lines
    assert others == [first] * 3
    assert re.search(r"% name \d; ", hf)  # of a crop that may lie a pixel aside


def test_predict_needs_a_classifier(photos, tmp_path, capsys):
    image = str(photos / "n0003" / "0.jpg")
    message = refused(capsys, "predict", image, "--checkpoint", *OFFICIAL, "--set", "num_classes=0")
    assert "has no classifier" in message
    for command in (["predict", image, "--checkpoint", *OFFICIAL], ["evaluate", *OFFICIAL, "--data", str(photos)]):
        assert "a new classifier has to be trained first" in refused(capsys, *command, "--set", "num_classes=3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("one\ntwo\n", "expected a name for each of 10 classes, found 2"),
        ('{"a": "b"}', "must name each class by its number, 0 to 0 without a gap"),
        (json.dumps({str(label + 1): "x" for label in range(10)}), "0 to 9 without a gap"),
        ("3", "expected a name for each of 10 classes, found none"),
        ("[" * 10**5, "found 1"),
        (json.dumps([[]] * 9), "expected a name for each of 10 classes, found 9"),
    ],
)
def test_a_file_of_other_names_is_refused(tmp_path, capsys, content, message):
    (tmp_path / "names").write_text(content)
    arguments = ["predict", "x.jpg", "--checkpoint", *OFFICIAL, "--names", str(tmp_path / "names")]
    assert message in refused(capsys, *arguments)
    assert "cannot read" in refused(capsys, *arguments[:-1], str(tmp_path / "nowhere"))
    assert "no regular file" in refused(capsys, *arguments[:-1], "/dev/zero")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("path=x", "unknown option path"),
        ("a b=1", "--set takes NAME=VALUE"),
        ("depths={[]:1}", "depths must be a tuple of integers"),
        ("ln_eps=" + "-" * 5000 + "1", "ln_eps must be a finite number"),
        ("depths=1000000000,1", "at most 10000 in every stage"),
        ("focal_levels=1000000000,1", "at most 100 in every stage"),
        ("depths=9999,1", "61 tensors are too few for depths (9999, 1)"),
        ("num_classes=10000000000000000000", "num_classes must be at most 2147483648"),
        ("image_size=[]", "image_size must be one or two integers"),
    ],
)
def test_an_odd_setting_is_refused(capsys, setting, message):
    assert message in refused(capsys, "summary", *OFFICIAL, "--set", setting)


@pytest.mark.parametrize(
    "data", [[], "x", 5, {}, {"data": 5}, {"data": "digits", "foo": 1}, {"data": "shapes", "image_size": []}]
)
def test_a_checkpoint_that_names_its_data_oddly_is_refused(tmp_path, capsys, data):
    model = mf.FocalNet.build(image_size=8, patch_size=2, in_channels=1, num_layers=1, num_classes=10, hidden_size=4)
    scale = {"mean": [0.0], "std": [1.0]}
    mf.save_checkpoint(tmp_path / "a.safetensors", model, standardize=scale, data=data)
    assert "in a way that minifocal train writes" in refused(capsys, "evaluate", str(tmp_path / "a.safetensors"))


def test_evaluate_matches_classes_by_their_order(photos, capsys):
    options = ["--data", str(photos), "--set", "image_size=32"]
    assert main(["evaluate", *OFFICIAL, *options]) == 0
    out = capsys.readouterr().out
    assert "classes are matched by their order: the first is 'class 0' here and 'n0000' in the data" in out
    assert re.search(r"^test accuracy \d+\.\d\d %$", out, re.MULTILINE)


def test_evaluate_measures_what_the_network_gives_for_images_prepared_as_it_wants_them(photos, capsys):
    (photos / "train").mkdir()
    (photos / "test").mkdir()
    for folder in sorted(photos.glob("n*")):
        for part in ("train", "test"):
            target = photos / part / folder.name
            target.mkdir()
            for path in folder.glob("*.jpg"):
                (target / path.name).write_bytes(path.read_bytes())
    assert main(["evaluate", str(CKPT_FILES["hf"]), "--data", str(photos), "--set", "image_size=32"]) == 0
    out = capsys.readouterr().out
    accuracy = float(re.search(r"test accuracy (\d+\.\d\d) %", out)[1])
    assert "images are taken as they are" not in out
    opened = interop.open_pretrained(CKPT_FILES["hf"])
    model, paths = opened.build(), sorted(photos.glob("test/n*/*.jpg"))
    right = [model(opened.preprocess.read(path, "float32")).argmax() == int(path.parent.name[1:]) for path in paths]
    assert accuracy == round(100 * float(np.mean(right)), 2)
    first = out.splitlines()[3].split()
    assert first[:4] == ["LABEL_0", "3", f"{100 * np.mean(right[:3]):.2f}", "%"]
    mistakes = re.findall(r"LABEL_\d+ \((\d+)\)", out)
    assert sum(map(int, mistakes)) == len(right) - sum(right)
    assert "0" not in mistakes


def test_evaluate_takes_all_images_of_a_folder(photos, capsys):
    assert main(["evaluate", str(CKPT_FILES["hf"]), "--data", str(photos), "--set", "image_size=32"]) == 0
    assert f"data: all 30 images in {photos}" in capsys.readouterr().out


def test_evaluate_says_where_images_have_another_size_and_refuses_other_channels(tmp_path, capsys):
    config = mf.FocalNetConfig(
        image_size=32, in_chans=1, num_classes=10, embed_dim=4, depths=(1,), focal_levels=(1,), focal_windows=(3,)
    )
    prepared = interop.Preprocess.usual("hf", 32, 1)
    interop.save_pretrained(mf.FocalNet(config), tmp_path / "grey", preprocess=prepared)
    assert main(["evaluate", str(tmp_path / "grey"), "--data", "digits"]) == 0
    assert "images are taken as they are, 8 x 8; the weights expect 32 pixels" in capsys.readouterr().out
    message = refused(capsys, "evaluate", *OFFICIAL, "--data", "digits")
    assert "the images have 1 channels and" in message


def test_a_run_is_not_measured_on_other_classes_of_the_same_number(tmp_path, capsys):
    quick = ["--epochs", "1", "--hidden-size", "4", "--layers", "1", "--warmup-steps", "2"]
    assert main(["train", "--out", str(tmp_path / "run"), *quick]) == 0
    (tmp_path / "names").write_text("\n".join("abcdefghij"))
    capsys.readouterr()
    message = refused(capsys, "evaluate", str(tmp_path / "run"), "--names", str(tmp_path / "names"))
    assert "was trained on the classes a, b, c" in message


def test_evaluate_needs_data_and_classes_that_fit(photos, capsys):
    assert "name the images with --data" in refused(capsys, "evaluate", *OFFICIAL)
    (photos / "n0009").rename(photos.parent / "n0009")
    assert "was trained on the classes class 0, class 1" in refused(
        capsys, "evaluate", *OFFICIAL, "--data", str(photos)
    )


def test_summary_takes_weights(capsys):
    assert main(["summary", *OFFICIAL, "--image-size", "32"]) == 0
    assert "10,492" in capsys.readouterr().out.splitlines()[-2]
    assert "there is no model 'focalnet'" in refused(capsys, "summary", "focalnet")
    assert main(["summary", "focalnet_tiny_srf", "--set", "num_classes=10", "--set", "focal_levels=3,2,2,2"]) == 0
    assert re.search(r"^head +10 +7,690 ", capsys.readouterr().out, re.MULTILINE)
    assert "there is no checkpoint nowhere.pth" in refused(capsys, "summary", "nowhere.pth")


def test_a_warning_about_weights_goes_to_standard_error(tmp_path, capsys):
    assert main(["convert", *OFFICIAL, str(tmp_path / "hf"), "--layout", "hf"]) == 0
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "embed_dim": 192}))
    capsys.readouterr()
    assert main(["summary", str(tmp_path / "hf")]) == 0
    error = capsys.readouterr().err
    assert error.startswith("minifocal summary: ")
    assert "says embed_dim is 192; the weights have 8, which is used" in error


def test_a_single_number_is_a_tuple_where_a_stage_needs_one(capsys):
    assert main(["summary", "focalnet_tiny_iso", "--set", "depths=2"]) == 0
    out = capsys.readouterr().out
    assert "layers.0.blocks.1.mlp" in out
    assert "layers.0.blocks.2.mlp" not in out


def test_names_with_control_characters_stay_on_their_line(photos, tmp_path, capsys):
    (tmp_path / "names").write_text(json.dumps([f"{label}\n\x1b[31m" for label in range(10)]))
    image = str(photos / "n0003" / "0.jpg")
    assert main(["predict", image, "--checkpoint", *OFFICIAL, "--names", str(tmp_path / "names")]) == 0
    assert capsys.readouterr().out.strip("\n").isprintable()
