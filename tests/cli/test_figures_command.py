"""`minifocal figures`: every file of the folder has a maker, and the maker gives its bytes again."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from minifocal.cli import figures, main
from minifocal.cli.figures import FIGURES, MEASURED
from minifocal.models.config import FOCAL
from minifocal.training.augment import Augmentation
from minifocal.training.train_config import TrainConfig
from minifocal.viz import training_pictures, watched_run

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "figures"
MATPLOTLIB = "3.11"  # that drew the files in the repository: another version may set other bytes

checkout = pytest.mark.skipif(not KEPT.is_dir(), reason="not a checkout")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder like figures/, with records and no pictures, and the tutorials' record beside it."""
    root = tmp_path_factory.mktemp("root")
    (root / "figures").mkdir()
    (root / "tutorials" / "data").mkdir(parents=True)
    for record in KEPT.glob("*.json"):
        shutil.copy(record, root / "figures")
    shutil.copy(ROOT / "tutorials" / "data" / "ablation.json", root / "tutorials" / "data")
    assert main(["figures", "--out", str(root / "figures")]) == 0
    return root / "figures"


def made_files():
    return [file for name, figure in FIGURES.items() for file in figure.files(name)]


@checkout
def test_every_file_has_a_maker_and_every_maker_its_files():
    records = {figure.record for figure in FIGURES.values() if "/" not in figure.record} - {""}
    assert {path.name for path in KEPT.iterdir()} == {*made_files(), *records}
    assert MEASURED.keys() <= records
    assert all((KEPT / record).stat().st_size < 100_000 for record in records)


@checkout
def test_every_picture_that_a_page_shows_exists_and_has_a_maker():
    pages = [ROOT / "README.md", *sorted((ROOT / "tutorials").glob("*.md"))]
    shown = {name for page in pages for name in re.findall(r"\(?(?:\.\./)?figures/([\w.]+)\)", page.read_text("utf-8"))}
    assert "architecture.png" in shown
    assert shown <= set(made_files())


@checkout
def test_all_are_drawn_again_as_they_are_in_the_repository(folder):
    if not matplotlib.__version__.startswith(f"{MATPLOTLIB}."):
        pytest.skip(f"the pictures in the repository are Matplotlib {MATPLOTLIB}'s, here is {matplotlib.__version__}")
    assert [name for name in made_files() if not same_picture(folder / name, KEPT / name)] == []


def same_picture(drawn: Path, kept: Path) -> bool:
    """Whether two files are the same to the byte, or would be but for the processor.

    NumPy's logarithms differ in the last bit from one kind of processor to another. Matplotlib rounds coordinates to
    256ths of a pixel, so that such a bit can turn the edge of a line by one level of 255.
    """
    if drawn.read_bytes() == kept.read_bytes():
        return True
    if drawn.suffix != ".png":
        return False
    images = [np.asarray(Image.open(path).convert("RGBA")).astype(int) for path in (drawn, kept)]
    return images[0].shape == images[1].shape and int(abs(images[0] - images[1]).max()) <= 1


def test_a_picture_with_another_pixel_is_another_picture(tmp_path):
    files = []
    for value in (100, 101, 102):
        pixels = np.full((3, 4, 4), 100, dtype=np.uint8)
        pixels[1, 2, 0] = value
        files.append(tmp_path / f"{value}.png")
        Image.fromarray(pixels).save(files[-1])
    assert same_picture(files[1], files[0])
    assert not same_picture(files[2], files[0])


@checkout
@pytest.mark.parametrize("name", FIGURES)
def test_drawn_twice_gives_the_same_bytes_and_what_is_named_is_all_that_is_drawn(folder, name, capsys):
    files = FIGURES[name].files(name)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for file in files:
        (folder / file).unlink()
    assert main(["figures", name, "--out", str(folder)]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(folder / file) for file in files]
    assert captured.err == ""
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_without_numbers_only_models_are_drawn(tmp_path, capsys):
    assert main(["figures", "--out", str(tmp_path / "a")]) == 0
    expected = [f"{name}.{kind}" for name in ("architecture", "block") for kind in ("png", "svg")]
    captured = capsys.readouterr()
    assert [Path(line).name for line in captured.out.splitlines()] == expected
    assert captured.err == (
        "minifocal figures: not drawn, for want of numbers: gradcheck, receptive_fields, gates, training, ablation, "
        "bench, scaling, ranks; name one to see what writes them\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gate"], "there is no figure 'gate'; the figures are architecture, block, gradcheck"),
        (
            ["gates"],
            "gates is drawn from {}/shapes.json, which is not there; write it with minifocal figures --measure",
        ),
        (["bench"], "write it with minifocal bench --workload all --json"),
        (["ablation"], "tutorials/data/ablation.json, which is not there; write it with python tutorials/10"),
        (["--measure", "block"], "--measure does nothing for block: it is drawn from a model"),
        (["--measure", "gates", "scaling"], "its numbers come from minifocal bench --scaling"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_made(tmp_path, capsys, arguments, words):
    assert main(["figures", *arguments, "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert words.format(tmp_path) in message
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setitem(
        MEASURED, "gradcheck.json", figures.Measured(lambda progress: pytest.fail("measured"), lambda: 1)
    )
    assert main(["figures", "--measure", "gradcheck", "--out", str(tmp_path / "file" / "figures")]) == 2
    assert "cannot write" in capsys.readouterr().err


def damaged(record):
    """Records that are no longer what they were, in many ways."""
    yield b"{"
    yield b"[]"
    yield b"{}"
    yield json.dumps({**record, next(iter(record)): None}).encode()[:-20]
    for key, value in record.items():
        if isinstance(value, list | dict):
            for other in (None, [], {}, 7, "text"):
                yield json.dumps({**record, key: other}).encode()


@checkout
@pytest.mark.parametrize("name", ["gradcheck", "gates", "training", "ablation", "bench", "scaling"])
def test_a_damaged_record_is_named_in_one_line(tmp_path, capsys, name):
    path = tmp_path / "figures" / FIGURES[name].record
    path.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "figures").mkdir(exist_ok=True)
    whole = json.loads((KEPT / FIGURES[name].record).read_bytes())
    about = {"numpy", "shape", "training", "machine", "memory", "start_up", *(["images"] if name == "training" else [])}
    for content in damaged({key: value for key, value in whole.items() if key not in about}):
        path.write_bytes(content)
        assert main(["figures", name, "--out", str(tmp_path / "figures")]) == 2, content[:200]
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "does not hold what is drawn from it; write it again with" in message


@checkout
@pytest.mark.parametrize(
    ("name", "place", "wrong"),
    [
        ("gradcheck", ("operations", 0, "float64", 3), -1.0),
        ("gradcheck", ("operations", 1, "complex"), 0.0),
        ("gradcheck", ("operations", 1, "steps", 2), 1e300),
        ("gates", ("maps", "modulator", 0, 0, 0, 0), "NaN"),
        ("gates", ("images", 0), 99),
        ("gates", ("block",), "$x_{$"),
        ("bench", ("rows", 0, "workload"), "small\n"),
        ("training", ("runs", 0, "modulation"), "m" * 1000),
        ("receptive_fields", ("token", 1), 16),
        ("receptive_fields", ("fields", "after", 0, 0, 0), -0.1),
        ("receptive_fields", ("fields", "before", 0, 0, 0), 1e300),
        ("bench", ("rows", 0, "medians", "numpy"), -1.0),
        ("scaling", ("series", 2, "mode"), "dreaming"),
        ("scaling", ("series", 3, "sizes", 1), 10**30),
        ("training", ("runs", 0, "val_loss", 0), None),
        ("ablation", ("runs", 0, "lr"), 0.0),
    ],
)
def test_one_wrong_number_is_noticed(tmp_path, capsys, name, place, wrong):
    record = json.loads((KEPT / FIGURES[name].record).read_bytes())
    home = record
    for key in place[:-1]:
        home = home[key]
    home[place[-1]] = wrong
    path = tmp_path / "figures" / FIGURES[name].record
    path.parent.mkdir(parents=True)
    (tmp_path / "figures").mkdir(exist_ok=True)
    path.write_text(json.dumps(record))
    assert main(["figures", name, "--out", str(tmp_path / "figures")]) == 2
    assert "write it again with" in capsys.readouterr().err


def test_measure_trains_with_the_recipes_and_draws_what_comes_of_it(tmp_path, monkeypatch, capsys):
    """Small ones here: what is tested is that measuring, writing, reading and drawing fit together."""
    recipe_for = figures.recipe_for

    def small(data):
        recipe = recipe_for(data)

        def choose(modulation):
            network, _ = recipe.choose(modulation)
            return network, TrainConfig(epochs=2, batch_size=16, lr=0.03, augmentation=Augmentation(shift=1))

        return type("Recipe", (), {"choose": staticmethod(choose)})

    monkeypatch.setattr(figures, "recipe_for", small)
    monkeypatch.setattr(figures, "SEEDS", (0, 3))
    monkeypatch.setattr(figures, "SHAPES_SIZE", 24)
    monkeypatch.setattr(figures, "shapes_splits", partial(figures.shapes_splits, train=100, test=20))
    calls = {}

    class Bar:
        def __init__(self, total, unit):
            self.total = total
            self.name = len(calls)

        def __enter__(self):
            calls[self.name] = [self.total, 0]
            return self

        def __exit__(self, *_):
            pass

        def update(self):
            calls[self.name][1] += 1

    monkeypatch.setattr(figures, "progress_bar", Bar)
    monkeypatch.setattr(figures, "digits_splits", lambda: few_digits(250))
    trained, tested = [], []

    def spy_on(module):
        trainer, evaluate = module.Trainer, module.evaluate

        def make(model, train, validation, standardize, config, **options):
            trained.append((config.lr, config.seed))
            return trainer(model, train, validation, standardize, config, **options)

        def count(model, data, standardize):
            tested.append(len(data))
            return evaluate(model, data, standardize)

        monkeypatch.setattr(module, "Trainer", make)
        monkeypatch.setattr(module, "evaluate", count)

    spy_on(watched_run)
    spy_on(training_pictures)
    out = str(tmp_path / "figures")
    assert main(["figures", "--measure", "gates", "training", "--out", out]) == 0
    assert trained == [(0.03, 0), (0.03, 0), (0.03, 3), (0.03, 0), (0.03, 3)]
    assert tested == [20, 40, 40, 40, 40]
    assert [Path(line.removeprefix("measuring ")).name for line in capsys.readouterr().out.splitlines()] == [
        *("shapes.json", "shapes.json", "training.json", "training.json"),
        *("receptive_fields.png", "gates.png", "training.png"),
    ]
    assert calls == {0: [2, 2], 1: [8, 8]}
    shapes = json.loads((tmp_path / "figures" / "shapes.json").read_text())
    assert shapes["epochs"] == [0, 1, 2]
    assert shapes["token"] == [3, 3]
    runs = json.loads((tmp_path / "figures" / "training.json").read_text())["runs"]
    assert [(run["modulation"], run["seed"]) for run in runs] == [
        *((FOCAL, 0), (FOCAL, 3), ("sigmoid_gate", 0), ("sigmoid_gate", 3))
    ]
    assert all(len(run["val_loss"]) == 2 for run in runs)


def few_digits(count):
    from minifocal.data import Splits, digits_splits

    splits = digits_splits()
    part = range(count)
    return Splits("digits", splits.train.subset(list(part)), splits.test.subset(list(range(40))), "a few")
