"""What is seen at its corners: a class that is not likely, a network without a classifier, a run that is stopped."""

import json
from socketserver import TCPServer

import numpy as np
import pytest

import minifocal as mf
from minifocal.data import shapes_splits
from minifocal.errors import InputError
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import Trainer
from minifocal.viz import explain_picture, step_pictures, training_pictures, watched_run
from minifocal.viz.explain import explain
from minifocal.viz.live_server import Document, LiveServer
from minifocal.viz.pictures import draw_architecture, draw_curves
from minifocal.viz.training_pictures import measure_trainings, read_ablation


def network(**options):
    config = mf.FocalNetConfig(
        image_size=16, patch_size=2, **({"num_classes": 4} | options), embed_dim=4, depths=(2,), focal_levels=(2,),
        focal_windows=(3,),
    )  # fmt: skip
    return mf.FocalNet(config, init="lecun")


@pytest.fixture(scope="module")
def splits():
    return shapes_splits(size=16, train=24, test=8)


def quick(epochs=2):
    return TrainConfig(epochs=epochs, batch_size=8, warmup_steps=1, lr=0.01)


def test_a_class_that_is_explained_and_not_likely_is_named_below_the_likely_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(explain_picture, "LIKELIEST", 2)
    model, written = network(), []
    write = explain_picture._Picture._write

    def noted(picture, x, y, text, **style):
        written.append((text, style.get("weight")))
        return write(picture, x, y, text, **style)

    monkeypatch.setattr(explain_picture._Picture, "_write", noted)
    image = np.random.default_rng(1).random((1, 3, 16, 16), "float32")
    model.head.bias.data[...] = 4.0, 3.0, 2.0, -9.0
    names = ("cat", "dog", "cow", "yak")
    explanation = explain(model, image, label=3)
    explain_picture.draw_explanation(
        explanation, image[0], tmp_path / "a.png", names=names, modulation="focal", title="an image"
    )
    likely = [(text, weight) for text, weight in written if text in names]
    assert likely[:3] == [("cat", "normal"), ("dog", "normal"), ("yak", "bold")]


def test_a_network_without_a_classifier_is_drawn_without(tmp_path):
    for classes, expected in ((4, True), (0, False)):
        draw_architecture(network(num_classes=classes), tmp_path / "a.svg")
        assert ("<!-- classifier -->" in (tmp_path / "a.svg").read_text(encoding="utf-8")) == expected


@pytest.mark.parametrize("options", [{"modulation": "sigmoid_gate"}, {"focal_levels": (0,)}], ids=str)
def test_a_picture_of_focal_levels_needs_some(options, tmp_path):
    shape = {"image_size": 16, "patch_size": 2, "depths": (2,), "focal_levels": (2,), "focal_windows": (3,)}
    model = mf.FocalNet(mf.FocalNetConfig(**{**shape, **options}), init="zeros")
    with pytest.raises(InputError, match="the picture shows focal levels, got modulation"):
        draw_architecture(model, tmp_path / "a.svg")


def test_progress_is_called_as_often_as_it_is_counted(monkeypatch):
    monkeypatch.setattr(step_pictures, "STEPS", step_pictures.STEPS[::20])
    calls = []
    step_pictures.measure_steps(lambda: calls.append(1))
    assert len(calls) == step_pictures.count_steps()


def test_a_measurement_that_is_stopped_gives_no_record(splits, monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda trainer: False)
    data = splits.train, splits.test, splits.test
    with pytest.raises(KeyboardInterrupt):
        measure_trainings(lambda modulation, seed: (network(), quick()), ["focal"], [0], data)
    with pytest.raises(KeyboardInterrupt):
        watched_run.measure_run(network(), *data, quick())


def test_epochs_that_are_not_wanted_are_passed_over(splits, monkeypatch):
    monkeypatch.setattr(watched_run, "EPOCHS", (0, 1))
    calls = []
    record = watched_run.measure_run(
        network(), splits.train, splits.test, splits.test, quick(3), lambda: calls.append(1)
    )
    assert record["epochs"] == [0, 1, 3]
    assert len(calls) == 3


def test_a_record_of_more_datasets_than_a_picture_has_room_for_is_refused():
    record = {"nearest_neighbour": {str(n): 0.5 for n in range(training_pictures.MOST_LINES + 1)}, "runs": []}
    with pytest.raises(ValueError, match="more datasets than a picture has room for"):
        read_ablation(json.loads(json.dumps(record)))


@pytest.mark.parametrize(("port", "bare"), [(80, True), (8080, False)])
def test_at_the_usual_port_its_names_are_used_without_a_number(port, bare, monkeypatch):
    """As browsers do. The port itself would need rights."""
    monkeypatch.setattr(TCPServer, "server_bind", lambda server: setattr(server, "server_address", ("127.0.0.1", port)))
    server = LiveServer(Document(number=1), port)
    try:
        names = {"127.0.0.1", "localhost"}
        assert server.hosts == {f"{name}:{port}" for name in names} | (names if bare else set())
    finally:
        server.server_close()


def test_a_title_is_written_as_it_stands(tmp_path):
    """It may be the name of a folder, which holds anything."""
    record = dict.fromkeys(("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"), 1)
    for title in ("a$b_$", "a\udcff", "a\nb"):
        draw_curves([record], tmp_path / "a.svg", title=title)
        assert (tmp_path / "a.svg").stat().st_size > 1000
