"""Files and folders of every kind: opened, understood, built; and written for others."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from published import CKPT, CKPT_FILES, HIDDEN, load, make_model
from safetensors.numpy import save

import minifocal as mf
from minifocal import FocalNet, FocalNetConfig, InputError, interop
from minifocal.data.dataset import Standardize
from minifocal.files import write_safetensors
from minifocal.interop import Preprocess, load_pretrained, open_pretrained, save_pretrained
from minifocal.interop.torch_file import write_torch

TINY = FocalNetConfig(
    image_size=(16, 24), patch_size=4, in_chans=1, num_classes=3, embed_dim=6, depths=(1, 2), mlp_ratio=2.0,
    focal_levels=(2, 1), focal_windows=(3, 5), use_layerscale=True, use_postln=True, normalize_modulator=True,
)  # fmt: skip
NAMES = ("cat", "dog", "größer")
PREPARED = Preprocess(20, 16, Standardize((0.25,), (0.5,)), "bilinear")  # cut out as torchvision does


def tiny(dtype="float32", **changes):
    model = FocalNet(FocalNetConfig.from_dict({**TINY.to_dict(), **changes}), init="zeros", dtype=dtype)
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.data[...] = rng.standard_normal(parameter.data.shape)
    return model


def assert_same_weights(one, two):
    assert one.state_dict().keys() == two.state_dict().keys()
    for name, array in one.state_dict().items():
        assert two.state_dict()[name].dtype == array.dtype
        np.testing.assert_array_equal(two.state_dict()[name], array)


def in_torch_shapes(model):
    return {name: np.ascontiguousarray(array) for name, array in interop.state_dict(model, layout="official").items()}


# Round trips

FILES = [
    ("hf", "folder"),
    ("official", "a.pth"),
    ("official", "a.safetensors"),
    ("timm", "a.safetensors"),
    ("timm", "a.pth"),
    ("timm", "a.bin"),
    ("minifocal", "a.safetensors"),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("layout", "name"), FILES)
def test_a_round_trip_gives_the_same_bits_configuration_names_and_preprocessing(tmp_path, layout, name, dtype):
    model = tiny(dtype)
    save_pretrained(model, tmp_path / name, layout=layout, class_names=NAMES, preprocess=PREPARED)
    opened = open_pretrained(tmp_path / name)
    back = load_pretrained(tmp_path / name)
    assert_same_weights(model, back)
    config, prepared = TINY, PREPARED
    if layout == "hf":  # which cuts the centre out and treats left-over pixels by rules of its own
        config, prepared = replace(TINY, pad_mode="pad"), replace(PREPARED, rounding="down")
    assert back.config == config
    assert (opened.layout, opened.class_names, opened.preprocess) == (layout, NAMES, prepared)
    images = np.random.default_rng(2).standard_normal((2, 1, 16, 24)).astype(dtype)
    np.testing.assert_array_equal(back(images), model(images))


@pytest.mark.parametrize("modulation", ["sigmoid_gate", "box_mean", "focal"])
def test_a_network_of_edifices_kind_keeps_its_modulation(tmp_path, modulation):
    model = FocalNet.build(
        image_size=16, patch_size=4, hidden_size=6, num_layers=2, num_classes=3, modulation=modulation, focal_kernel=5
    )
    files = {"minifocal": "m.safetensors"}
    if modulation == "box_mean":
        files["edifice"] = "e.safetensors"
    if modulation == "focal":
        files["official"] = "o.pth"
    for layout, name in files.items():
        save_pretrained(model, tmp_path / name, layout=layout)
        back = load_pretrained(tmp_path / name)
        assert back.config == model.config
        assert_same_weights(model, back)


def test_from_one_to_the_next_all_the_way_round(tmp_path):
    """Ours to Hugging Face, to timm, to official, and back: still the same bits."""
    model = current = tiny()
    for layout, name in (("hf", "h"), ("timm", "t.safetensors"), ("official", "o.pth"), ("minifocal", "m.safetensors")):
        save_pretrained(current, tmp_path / name, layout=layout)
        current = load_pretrained(tmp_path / name)
    assert_same_weights(model, current)


def test_a_trained_network_can_leave_and_come_back(tmp_path, capsys):
    """What `train` stored beside the weights is read by other commands too."""
    from minifocal.cli import main

    quick = ["--epochs", "1", "--hidden-size", "4", "--layers", "1,1", "--warmup-steps", "2", "--modulation", "focal"]
    assert main(["train", "--out", str(tmp_path / "run"), *quick]) == 0
    model = load_pretrained(tmp_path / "run")
    opened = open_pretrained(tmp_path / "run" / "last.safetensors")
    assert opened.class_names == tuple("0123456789")
    save_pretrained(model, tmp_path / "hf", class_names=opened.class_names, preprocess=opened.preprocess)
    again = open_pretrained(tmp_path / "hf")
    assert (again.class_names, again.preprocess) == (opened.class_names, replace(opened.preprocess, rounding="down"))
    assert_same_weights(model, again.build())


# What is understood


@pytest.mark.parametrize("source", CKPT_FILES)
def test_the_three_files_are_one_network(source):
    hidden = {} if source == "hf" else HIDDEN
    opened = open_pretrained(CKPT_FILES[source], **hidden)
    assert opened.layout == source
    assert opened.warnings == ()
    assert (opened.config.depths, opened.config.focal_levels, opened.config.num_classes) == ((1, 2), (3, 2), 10)
    assert opened.config.pad_mode == ("pad" if source == "hf" else "floor")
    assert_same_weights(opened.build(), load_pretrained(CKPT_FILES["hf"]))


@pytest.mark.parametrize("source", ["official", "timm"])
def test_what_the_file_does_not_say_is_asked_for(source):
    with pytest.raises(InputError, match=r"normalize_modulator=False \(the official code's default\)"):
        load_pretrained(CKPT_FILES[source])


def test_a_training_checkpoint_brings_its_own_configuration():
    opened = open_pretrained(CKPT / "training.pth")
    assert (opened.config.image_size, opened.config.drop_path_rate) == (32, 0.2)
    assert_same_weights(opened.build(), load_pretrained(CKPT_FILES["hf"]))


def test_a_training_configuration_from_before_november_2022_has_the_old_meaning_of_post_ln():
    from minifocal.interop.descriptions import read_official

    old = read_official({"MODEL": {"FOCAL": {"USE_POSTLN": True, "DEPTHS": [1, 2]}}}, CKPT / "x.pth")
    assert old.fields == {"use_postln": False, "use_postln_in_modulation": True, "depths": [1, 2]}
    assert "November 2022" in old.notes[0]
    new = {"USE_POSTLN": True, "USE_POSTLN_IN_MODULATION": False}
    assert read_official({"MODEL": {"FOCAL": new}}, CKPT / "x.pth").fields["use_postln"] is True
    for foreign in ({"MODEL": {"SWIN": {}}}, {"lr": 1}, {"MODEL": 3}, 7, None):
        assert read_official(foreign, CKPT / "x.pth") is None
    odd = {"MODEL": {"FOCAL": {"DEPTHS": ["x"], "EMBED_DIM": "wide", "USE_POSTLN": [[]], "PATCH_NORM": True}}}
    assert read_official(odd, CKPT / "x.pth").fields == {"patch_norm": True}


def test_the_class_count_of_hugging_face_is_that_of_id2label(tmp_path):
    """num_labels is never written, and id2label is left out for two classes with their default names."""
    save_pretrained(tiny(num_classes=2), tmp_path / "two")
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert "num_labels" not in config
    del config["id2label"], config["label2id"]
    (tmp_path / "two" / "config.json").write_text(json.dumps(config))
    opened = open_pretrained(tmp_path / "two")
    assert (opened.config.num_classes, opened.class_names) == (2, ("LABEL_0", "LABEL_1"))


def test_class_names_that_do_not_fit_the_weights_are_left_out_with_a_warning(tmp_path):
    save_pretrained(tiny(), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    del config["id2label"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=r"names 2 classes .* but the weights have 3"):
        assert load_pretrained(tmp_path / "a").config.num_classes == 3
    assert open_pretrained(tmp_path / "a").class_names is None


def test_hidden_sizes_of_hugging_face_are_not_used(tmp_path):
    save_pretrained(tiny(), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["hidden_sizes"] == [12, 12]
    config["hidden_sizes"] = [192, 384, 768, 768]
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    assert load_pretrained(tmp_path / "a").config.dims == (6, 12)


def test_a_network_without_classifier_keeps_without(tmp_path):
    for layout, name in FILES:
        save_pretrained(tiny(num_classes=0), tmp_path / "x" / name, layout=layout)
        back = load_pretrained(tmp_path / "x" / name)
        assert back.head is None
        shutil.rmtree(tmp_path / "x")


def test_the_bare_model_of_hugging_face_has_no_prefix(tmp_path):
    model = tiny(num_classes=0)
    state = interop.state_dict(model, layout="hf")
    bare = {name.removeprefix("focalnet."): np.ascontiguousarray(array) for name, array in state.items()}
    (tmp_path / "a.safetensors").write_bytes(save(bare))
    given = {"use_postln": True, "normalize_modulator": True, "image_size": (16, 24)}
    assert_same_weights(model, load_pretrained(tmp_path / "a.safetensors", **given))


def test_parts_of_masked_image_modelling_are_left_out(tmp_path):
    state = {name: np.ascontiguousarray(a) for name, a in interop.state_dict(tiny(num_classes=0), layout="hf").items()}
    state |= {
        "focalnet.embeddings.mask_token": np.zeros((1, 1, 6), "float32"),
        "decoder.0.bias": np.zeros(4, "float32"),
    }
    (tmp_path / "a.safetensors").write_bytes(save(state))
    opened = open_pretrained(tmp_path / "a.safetensors", use_postln=True, normalize_modulator=True)
    assert any("left out, of masked image modelling: " in line for line in opened.inferred)
    assert_same_weights(tiny(num_classes=0), opened.build())


def test_the_prefix_of_a_parallel_network_is_taken_away(tmp_path):
    state = {f"module.{name}": array for name, array in in_torch_shapes(tiny()).items()}
    write_torch(tmp_path / "a.pth", state, {})
    assert_same_weights(tiny(), load_pretrained(tmp_path / "a.pth", use_postln=True, normalize_modulator=True))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_halves_are_widened(tmp_path, half):
    state = in_torch_shapes(tiny())
    if half == "float16":
        stored = {name: array.astype("float16") for name, array in state.items()}
        expected = {name: array.astype("float32") for name, array in stored.items()}
        (tmp_path / "a.safetensors").write_bytes(save(stored))
    else:
        kept = {name: array.view("<u4") & 0xFFFF0000 for name, array in state.items()}
        expected = {name: bits.view("<f4") for name, bits in kept.items()}
        header, data = {}, b""
        for name, bits in kept.items():
            content = (bits >> 16).astype("<u2").tobytes()
            offsets = [len(data), len(data) + len(content)]
            header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": offsets}
            data += content
        text = json.dumps(header).encode()
        (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    model = load_pretrained(tmp_path / "a.safetensors", use_postln=True, normalize_modulator=True)
    assert model.dtype == "float32"
    for name, array in interop.state_dict(model, layout="official").items():
        np.testing.assert_array_equal(array, expected[name])


def test_weights_can_be_read_in_another_precision():
    wide = load_pretrained(CKPT_FILES["hf"], dtype="float64")
    assert (wide.dtype, wide.head.weight.data.dtype) == ("float64", np.float64)
    narrow = load_pretrained(CKPT_FILES["hf"])
    np.testing.assert_array_equal(wide.head.weight.data, narrow.head.weight.data)


def test_a_new_number_of_classes_gets_a_new_classifier():
    old = load_pretrained(CKPT_FILES["hf"])
    new = load_pretrained(CKPT_FILES["hf"], num_classes=4)
    assert new.head.weight.data.shape == (16, 4)
    assert 0 < np.abs(new.head.weight.data).max() < 0.1  # drawn with a deviation of 0.02
    assert not new.head.bias.data.any()
    body = {name: array for name, array in old.state_dict().items() if not name.startswith("head")}
    for name, array in body.items():
        np.testing.assert_array_equal(new.state_dict()[name], array)
    assert load_pretrained(CKPT_FILES["hf"], num_classes=0).head is None
    again, other = (load_pretrained(CKPT_FILES["hf"], num_classes=4, seed=seed).head.weight.data for seed in (0, 1))
    np.testing.assert_array_equal(again, new.head.weight.data)
    assert (other != again).any()
    opened = open_pretrained(CKPT_FILES["hf"], num_classes=4)
    assert opened.class_names is None
    assert "the classifier of 10 classes is left out; one of 4 is new" in opened.inferred


def test_a_classifier_that_is_missing_is_not_made_up(tmp_path):
    state = {f"model.{name}": array for name, array in tiny().state_dict().items() if not name.startswith("head")}
    header = {"format": "minifocal checkpoint 1", "description": tiny().describe(), "steps": 0, "meta": {}}
    write_safetensors(tmp_path / "a.safetensors", state, {"minifocal": json.dumps(header)})
    with pytest.raises(InputError, match=r"missing head.bias; missing head.weight"):
        load_pretrained(tmp_path / "a.safetensors")
    assert load_pretrained(tmp_path / "a.safetensors", num_classes=0).head is None


def test_a_folder_of_timm_says_its_variant_and_how_images_are_prepared(tmp_path):
    state = {n: np.ascontiguousarray(a) for n, a in interop.state_dict(tiny(use_postln=False), layout="timm").items()}
    (tmp_path / "model.safetensors").write_bytes(save(state))
    pretrained = {"input_size": [1, 48, 48], "crop_pct": 0.8, "mean": [0.5], "std": [0.25], "interpolation": "bicubic"}
    config = {"architecture": "focalnet_tiny_srf", "num_classes": 3, "pretrained_cfg": pretrained}
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = open_pretrained(tmp_path)
    assert opened.preprocess == Preprocess(60, 48, Standardize((0.5,), (0.25,)))
    assert (opened.config.image_size, opened.config.normalize_modulator) == (48, False)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": {"normalize_modulator": True}}))
    assert open_pretrained(tmp_path).config.normalize_modulator is True
    (tmp_path / "config.json").write_text(json.dumps({**config, "label_names": list(NAMES)}))
    assert open_pretrained(tmp_path).class_names == NAMES
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "focalnet_large_fl4.ms_in22k"}))
    with pytest.raises(InputError, match="do not show normalize_modulator"):
        open_pretrained(tmp_path)


def test_the_preprocessor_of_hugging_face_is_read(tmp_path):
    save_pretrained(tiny(in_chans=3), tmp_path / "a")
    values = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "image_mean": [0.4] * 3}
    (tmp_path / "a" / "preprocessor_config.json").write_text(
        json.dumps({**values, "image_std": [0.2] * 3, "resample": 2})
    )
    opened = open_pretrained(tmp_path / "a")
    assert opened.preprocess == Preprocess(256, 224, Standardize((0.4,) * 3, (0.2,) * 3), "bilinear", "down")
    assert opened.warnings == ()


@pytest.mark.parametrize(("layout", "name"), FILES)
def test_images_of_another_size_can_be_asked_for(tmp_path, layout, name):
    save_pretrained(tiny(), tmp_path / name, layout=layout, preprocess=PREPARED)
    opened = open_pretrained(tmp_path / name, image_size=32)
    assert (opened.preprocess.crop, opened.preprocess.resize) == (32, 40)
    assert opened.config.image_size == 32


def test_where_nothing_is_said_images_are_prepared_as_usual():
    assert open_pretrained(CKPT_FILES["official"], **HIDDEN).preprocess.resize == 256
    assert open_pretrained(CKPT_FILES["timm"], **HIDDEN).preprocess.resize == 248
    assert open_pretrained(CKPT_FILES["hf"], image_size=64).preprocess.crop == 64


# What is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("description", 3),
        ("description", {}),
        ("description", {"architecture": "FocalNet", "config": [1]}),
        ("description", {"architecture": "FocalNet", "config": {"depths": "x"}}),
        ("description", {"architecture": "FocalNet", "config": {"depths": [10**9]}}),
        ("description", {"architecture": "FocalNet", "config": {**TINY.to_dict(), "focal_levels": [99, 99]}}),
        ("description", {"architecture": "FocalNet", "config": {**TINY.to_dict(), "depths": [9999, 9999]}}),
        ("description", {"architecture": "FocalNet", "config": {**TINY.to_dict(), "embed_dim": 2**29}}),
        ("description", {"architecture": "FocalNet", "config": {"a\nb": 1}}),
        ("description", {"architecture": "FocalNet", "config": "x"}),
        ("meta", [1]),
        ("meta", {"class_names": 3}),
        ("meta", {"class_names": ["a"]}),
        ("meta", {"standardize": 3}),
        ("meta", {"preprocess": 3}),
        ("meta", {"preprocess": {"resize": "a", "crop": 3, "mean": [0], "std": [1]}}),
        ("meta", {"preprocess": {"resize": 8, "crop": 8, "mean": ["x"], "std": [1]}}),
        ("steps", "many"),
        ("format", "minifocal checkpoint 99"),
    ],
)
def test_a_checkpoint_of_ours_with_another_header_is_refused(tmp_path, name, value):
    header = {"format": "minifocal checkpoint 1", "description": tiny().describe(), "steps": 0, "meta": {}}
    state = {f"model.{key}": array for key, array in tiny().state_dict().items()}
    write_safetensors(tmp_path / "a.safetensors", state, {"minifocal": json.dumps(header)})
    assert_same_weights(tiny(), load_pretrained(tmp_path / "a.safetensors"))
    write_safetensors(tmp_path / "a.safetensors", state, {"minifocal": json.dumps({**header, name: value})})
    with pytest.raises(InputError) as error:
        load_pretrained(tmp_path / "a.safetensors")
    assert str(error.value).count(str(tmp_path / "a.safetensors")) == 1
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "x" * 300])
def test_a_name_that_could_upset_a_terminal_is_quoted_and_cut(tmp_path, name):
    write_safetensors(tmp_path / "a.safetensors", {name: np.zeros(2, "float32")}, {})
    with pytest.raises(InputError, match="is no name of a weight") as error:
        load_pretrained(tmp_path / "a.safetensors")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    save_pretrained(tiny(), tmp_path / "a.safetensors", layout="timm")

    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "open", refuse)
    with pytest.raises(InputError, match=r"cannot read .*a\.safetensors: Permission denied"):
        load_pretrained(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", "is no file of PyTorch 1.6 or newer: it is no zip archive; is it complete"),
        ("a.safetensors", b"", "is no safetensors file, or it is cut short"),
        ("a.txt", b"hello", "is no safetensors file"),
        ("a.safetensors", save({"x": np.zeros(2, "float32")}), "expected weights of a FocalNet, .*found x"),
        ("a.safetensors", save({"x": np.zeros(2, "int64")}), "refused a tensor of type 'I64'"),
        ("a.safetensors", save({}), "found no tensor"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load_pretrained(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no checkpoint .*; weights are not fetched here"):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no weights; give a file, or a folder with one of model.safetensors"):
        load_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="holds weights in parts; save them whole"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ("[" * 10**5, "is no JSON"),
        ('{"model_type": "vit"}', "is of a 'vit', expected a 'focalnet'"),
        (
            '{"model_type": "focalnet", "hidden_act": "relu"}',
            "hidden_act must be one of gelu, gelu_pytorch_tanh, gelu_new",
        ),
        ('{"model_type": "focalnet", "patch_size": [4, 2]}', "patches must be square"),
        ('{"model_type": "focalnet", "id2label": {"a": "b"}}', "must name each class by its number"),
        ('{"model_type": "focalnet", "id2label": {"1": "b"}}', "without a gap"),
        ('{"model_type": "focalnet", "id2label": 7}', "id2label must be an object, got 7"),
        ('{"model_type": "focalnet", "id2label": {"0": "a", "00": "b"}}', "0 to 1 without a gap"),
        ('{"model_type": "focalnet", "hidden_act": []}', "hidden_act must be one of"),
        ('{"model_type": "focalnet", "patch_size": [[4], [4]]}', "patches must be square"),
        ('{"model_type": "focalnet", "image_size": []}', "image_size must be one or two integers"),
        ('{"model_type": "focalnet", "image_size": [224]}', "image_size must be one or two integers"),
        ('{"model_type": "focalnet", "mlp_ratio": 1e308}', None),
        ('{"model_type": "focalnet", "drop_path_rate": 1' + "0" * 400 + "}", "drop_path_rate must be a finite number"),
        ('{"model_type": "focalnet", "layer_norm_eps": 1e300}', "ln_eps must be above 0 and at most 1"),
        ('{"model_type": "focalnet", "depths": "x\\n\\u001b[31m"}', None),
        ('{"model_type": "focalnet", "image_size": 1' + "0" * 5000 + "}", "is no JSON"),
        ('{"architecture": "x", "pretrained_cfg": {"mean": ["a", "b", "c"]}}', 'expected "mean" and "std" as lists'),
        ('{"architecture": "x", "pretrained_cfg": {"mean": [1e300, 0, 0]}}', "mean and std must be those of images"),
        ('{"model_type": "focalnet", "layer_norm_eps": "x"}', "ln_eps must be a finite number"),
        ('{"model_type": "focalnet", "image_size": -3}', "image_size must be"),
        ('{"architecture": "focalnet_tiny_srf", "pretrained_cfg": 3}', "pretrained_cfg must be an object"),
        ('{"architecture": "x", "pretrained_cfg": {"input_size": 3}}', "input_size must be channels, height and width"),
        ('{"architecture": "x", "pretrained_cfg": {"crop_pct": 0}}', "crop_pct must be at least 0.01"),
        (
            '{"architecture": "x", "pretrained_cfg": {"input_size": [3, 1' + "0" * 400 + ", 1]}}",
            "input_size must be at most",
        ),
        ('{"architecture": "x", "pretrained_cfg": {"interpolation": "random"}}', "resample must be one of nearest"),
        (
            '{"architecture": "x", "pretrained_cfg": {"input_size": [3, 2000000, 1]}}',
            "resize must be at least",
        ),
    ],
)
def test_a_configuration_that_is_none_is_refused(tmp_path, text, message):
    save_pretrained(tiny(), tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(text)
    if message is None:  # the weights show it better; the warning is one line too
        opened = open_pretrained(tmp_path / "a", use_postln=True, normalize_modulator=True)
        assert any("the weights have" in warning for warning in opened.warnings)
        assert all(warning.isprintable() for warning in opened.warnings)
        return
    with pytest.raises(InputError, match=message) as error:
        load_pretrained(tmp_path / "a")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": "large"}, "a size must be a number of pixels"),
        ({"size": {"height": 3, "width": 4}}, "or a square"),
        ({"image_mean": 3}, "mean and deviation must be lists of numbers"),
        ({"image_std": [0, 0, 0]}, "std positive"),
        ({"rescale_factor": 0}, "rescale_factor must be a positive number"),
        ({"size": 10**9}, "at most 2097152 pixels"),
        ({"resample": 9}, "resample must be the number of a filter, 0 to 5, got 9"),
    ],
)
def test_a_preprocessor_that_is_none_is_refused(tmp_path, values, message):
    save_pretrained(tiny(), tmp_path / "a")
    (tmp_path / "a" / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=message) as error:
        load_pretrained(tmp_path / "a")
    assert "preprocessor_config.json" in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, bad):
    model = tiny()
    model.norm.bias.data[1] = bad
    save_pretrained(model, tmp_path / "a.pth", layout="official")
    with pytest.raises(InputError, match=r"norm.bias holds NaN or infinity"):
        load_pretrained(tmp_path / "a.pth")


def test_a_part_that_no_focalnet_has_is_named(tmp_path):
    write_torch(tmp_path / "a.pth", {**in_torch_shapes(tiny()), "layers.0.extra": np.zeros(2, "float32")}, {})
    with pytest.raises(InputError, match=r"unexpected layers\.0\.extra"):
        load_pretrained(tmp_path / "a.pth", **HIDDEN)


def test_an_entry_that_is_no_tensor_is_named(tmp_path):
    import zipfile

    from test_torch_file import program, unicode

    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("a/data.pkl", program(unicode("words")))
    with pytest.raises(InputError, match="'a' is no tensor of floating-point numbers"):
        load_pretrained(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["patch_embed.proj.bias", "head.bias", "layers.0.downsample.proj.weight"])
@pytest.mark.parametrize("shape", [(), (1, 1, 1)])
def test_a_weight_with_another_number_of_axes_is_named(tmp_path, name, shape):
    write_torch(tmp_path / "a.pth", {**in_torch_shapes(tiny()), name: np.zeros(shape, "float32")}, {})
    with pytest.raises(InputError, match=rf"{name} is {re.escape(str(shape))}, not of \d axes"):
        load_pretrained(tmp_path / "a.pth")


def test_numbers_that_float32_cannot_hold_are_refused_in_silence(tmp_path):
    model = tiny("float64")
    model.norm.bias.data[1] = 1e300
    save_pretrained(model, tmp_path / "a.pth", layout="official")
    assert load_pretrained(tmp_path / "a.pth").norm.bias.data[1] == 1e300
    with pytest.raises(InputError, match=r"norm.bias holds NaN or infinity"):
        load_pretrained(tmp_path / "a.pth", dtype="float32")


def test_numbers_of_numpy_are_written_as_pythons(tmp_path):
    prepared = Preprocess(np.int64(20), np.int64(16), Standardize((np.float32(0.25),), (np.float32(0.5),)), "bilinear")
    model = FocalNet(TINY, init="zeros", dtype=np.dtype("float32"))
    for layout, name in FILES:
        save_pretrained(model, tmp_path / name / name, layout=layout, preprocess=prepared)
        assert replace(open_pretrained(tmp_path / name / name).preprocess, rounding="even") == PREPARED


@pytest.mark.parametrize("kind", ["pipe", "device", "long"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    path = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "long": tmp_path / ("x" * 5000)}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(InputError, match=r"it is no regular file|File name too long"):
        load_pretrained(path)


def test_an_unknown_field_lists_those_there_are():
    with pytest.raises(InputError, match=r"unknown option postln; the options are image_size"):
        load_pretrained(CKPT_FILES["official"], postln=False)


def test_a_description_of_ours_that_is_damaged_is_refused(tmp_path):
    for text in (
        "{",
        "{}",
        "[]",
        '{"config": [1], "class_names": null, "preprocess": null}',
        "[" * 10**5,
        "1" * 5000,
        '{"config": 3, "class_names": null, "preprocess": null}',
    ):
        write_torch(tmp_path / "a.pth", in_torch_shapes(tiny()), {"minifocal.description": text})
        with pytest.raises(InputError, match=r"its minifocal.description is damaged"):
            load_pretrained(tmp_path / "a.pth")


# Writing for others


@pytest.mark.parametrize(
    ("changes", "layout", "message"),
    [
        (
            {"ln_eps": 1e-3},
            "official",
            r"has ln_eps 1e-05 only, this network has 0.001; store it as 'minifocal' or 'hf'",
        ),
        ({"ln_eps": 1e-3}, "timm", "has ln_eps 1e-05 only"),
        ({"mlp_act": "gelu_pytorch_tanh"}, "timm", "has mlp_act 'gelu' only"),
        ({"patch_norm": False}, "hf", "has patch_norm True only, this network has False"),
        ({"focal_factor": 4}, "hf", "has focal_factor 2 only"),
        ({"patch_size": 2}, "timm", "has patch_size 4 only"),
        ({}, "edifice", "has use_postln False only"),
    ],
)
def test_what_another_implementation_cannot_be_is_not_written_for_it(tmp_path, changes, layout, message):
    path = tmp_path / ("a" if layout == "hf" else "a.safetensors")
    with pytest.raises(InputError, match=message):
        save_pretrained(tiny(**changes), path, layout=layout)
    assert list(tmp_path.iterdir()) == []


def test_a_gated_network_stays_at_home(tmp_path):
    model = FocalNet.build(image_size=8, patch_size=4, hidden_size=6, num_layers=1)
    for layout, name in (("hf", "a"), ("official", "a.pth"), ("timm", "a.pth")):
        with pytest.raises(InputError, match=r"has modulation 'focal' only, .*store it as 'minifocal'$"):
            save_pretrained(model, tmp_path / name, layout=layout)


@pytest.mark.parametrize(
    ("layout", "name", "message"),
    [
        ("hf", "a.safetensors", r"is written to a folder, got .*; leave .safetensors out"),
        ("official", "a", r"is written to a file of .pth or .pt or .bin or .safetensors"),
        ("minifocal", "a.pth", r"is written to a file of .safetensors"),
        ("keras", "a", "layout must be one of minifocal, official, hf, timm, edifice"),
    ],
)
def test_a_name_of_another_kind_is_refused(tmp_path, layout, name, message):
    with pytest.raises(InputError, match=message):
        save_pretrained(tiny(), tmp_path / name, layout=layout)


def test_class_names_must_be_one_for_each_class(tmp_path):
    with pytest.raises(InputError, match="one for each of 3 classes, got 2"):
        save_pretrained(tiny(), tmp_path / "a", class_names=("a", "b"))


def test_the_rule_for_pixels_that_are_left_over_is_told_where_it_matters(tmp_path):
    odd = tiny(image_size=(18, 24))
    with pytest.warns(
        UserWarning, match=r"hf adds zeros .* \(pad_mode 'pad'\), this network leaves out .* sides are multiples of 8"
    ):
        save_pretrained(odd, tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_pretrained(tiny(), tmp_path / "b")
        save_pretrained(odd, tmp_path / "a.pth", layout="official")
    padding = make_model(load("hf_oddsize_pad"), "float32")
    with pytest.warns(UserWarning, match="timm leaves out pixels that fill no patch"):
        save_pretrained(padding, tmp_path / "c.pth", layout="timm")
    assert load_pretrained(tmp_path / "c.pth").config.pad_mode == "pad"  # the file says what it came from


def test_what_cannot_be_written_changes_nothing(tmp_path):
    (tmp_path / "file").write_text("precious")
    for layout, name in FILES:
        with pytest.raises(InputError, match="cannot write"):
            save_pretrained(tiny(), tmp_path / "file" / name, layout=layout)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "precious"


def test_a_folder_is_written_over_as_a_whole(tmp_path):
    save_pretrained(tiny(), tmp_path / "a", class_names=NAMES, preprocess=PREPARED)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    save_pretrained(tiny(num_classes=5), tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"model.safetensors", "config.json", "notes.txt"}
    opened = open_pretrained(tmp_path / "a")
    assert (opened.config.num_classes, opened.preprocess_is_assumed) == (5, True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_finished_stays_as_it_was(tmp_path, monkeypatch):
    save_pretrained(tiny(), tmp_path / "a", preprocess=PREPARED)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("minifocal.interop.export._write_json", fail)
    for folder in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            save_pretrained(tiny(num_classes=5), tmp_path / folder)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_moved_into_place_stays_as_it_was(tmp_path, monkeypatch):
    save_pretrained(tiny(), tmp_path / "a", preprocess=PREPARED)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    move = os.replace

    def refuse(source, target):
        if Path(target).parent == tmp_path / "a":
            raise PermissionError(13, "Permission denied")
        move(source, target)

    monkeypatch.setattr("minifocal.files.os.replace", refuse)
    with pytest.raises(InputError, match=r"cannot write .*: Permission denied"):
        save_pretrained(tiny(num_classes=5), tmp_path / "a")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# Memory


MEASURE = """
import resource, sys
import minifocal as mf
from minifocal.interop import load_pretrained
mf.FocalNet.build(image_size=16, num_layers=1)  # everything is imported
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_pretrained(sys.argv[1])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weights = sum(parameter.data.nbytes for parameter in model.parameters())
print((after - before) * 1024 / weights)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts in kilobytes on Linux only")
@pytest.mark.parametrize(("layout", "name"), [FILES[0], FILES[1], FILES[3], FILES[6]])
def test_reading_takes_memory_for_the_weights_once(tmp_path, layout, name):
    options = {"depths": (1, 1, 5, 1), "num_classes": 10, "image_size": 64}
    save_pretrained(mf.create_model("focalnet_tiny_srf", **options), tmp_path / name, layout=layout)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / name)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 1.3
