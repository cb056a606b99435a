"""The numbers behind the pictures, and what the pictures say of the models that they are drawn from."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import minifocal as mf
from minifocal.data import Standardize, make_shapes, shapes_splits
from minifocal.errors import InputError
from minifocal.functional.layer_norm import layer_norm_backward, layer_norm_forward
from minifocal.gradcheck import check_gradients
from minifocal.ops import REFERENCE
from minifocal.training.step import evaluate
from minifocal.training.train_config import TrainConfig
from minifocal.viz import step_pictures, watched_run
from minifocal.viz.block_picture import draw_block, kept_arrays
from minifocal.viz.fields import effective_fields, level_names, receptive_widths
from minifocal.viz.pictures import draw_architecture
from minifocal.viz.records import numbers, positive, read_record, rounded, write_record
from minifocal.viz.training_pictures import read_ablation, read_trainings

ROOT = Path(__file__).parents[2]


def texts(svg):
    """The lines of text in a picture: Matplotlib leaves each one in a comment beside its outlines."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"), re.DOTALL)


# Records


def test_rounding_keeps_significant_digits_of_large_and_small_numbers():
    assert rounded([[123456.0, -0.00123456], [0.0, 7.0]], 3) == [[123000.0, -0.00123], [0.0, 7.0]]
    assert rounded(np.float32(0.1), 4) == 0.1


def test_a_record_comes_back_as_it_was_and_lists_take_one_line(tmp_path):
    record = {"name": "a", "maps": [[1.5, 2.0], [3.0, -4e-7]], "empty": [], "run": {"seed": 3, "x": None}}
    path = tmp_path / "folder" / "r.json"
    write_record(path, record)
    assert read_record(path, dict, "x") == record
    assert "  [1.5, 2.0],\n" in path.read_text()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_record(path, {"x": [[float("nan")]]})
    assert read_record(path, dict, "x") == record


@pytest.mark.parametrize(
    "values",
    [[[1.0], [2.0, 3.0]], [[1.0, float("inf")]], [[float("nan")]], [[-1e31]], [], "text", None, [[]], {"a": 1}],
)
def test_anything_but_finite_numbers_of_the_shape_is_refused(values):
    with pytest.raises((ValueError, TypeError)):
        numbers(values, None, None)
    assert numbers([[1, 2, 3]], 1, None).shape == (1, 3)
    with pytest.raises(ValueError, match="above 0"):
        positive([1.0, 0.0], None)


# Receptive fields


def network(**options):
    config = mf.FocalNetConfig(
        image_size=(36, 28),
        patch_size=2,
        in_chans=2,
        num_classes=3,
        embed_dim=5,
        depths=(2,),
        focal_levels=(2,),
        focal_windows=(3,),
        **options,
    )
    return mf.FocalNet(config, dtype="float64", init="lecun")


IMAGES = np.random.default_rng(5).standard_normal((3, 2, 36, 28))


def square(shape, token, width):
    inside = np.zeros(shape, bool)
    half = width // 2
    inside[token[0] - half : token[0] + half + 1, token[1] - half : token[1] + half + 1] = True
    return inside


def test_widths_add_up_over_a_chain_of_kernels():
    assert receptive_widths((3, 5, 7)) == [3, 7, 13]
    assert receptive_widths((7,)) == [7]
    assert receptive_widths(()) == []


@pytest.mark.parametrize("options", [{}, {"use_postln": True}, {"patch_norm": False}])
def test_a_level_depends_on_its_square_and_on_nothing_else(options):
    token = (8, 6)
    fields = effective_fields(network(**options), IMAGES, token)
    assert len(fields) == len(level_names((3, 5))) == 4
    for field, width in zip(fields, (3, 7), strict=False):
        assert field.shape == (18, 14)
        np.testing.assert_array_equal(field > 0, square(field.shape, token, width))
    assert (fields[2] > 0).all()
    assert (fields[3] > 0).all()
    for field in fields:
        assert field.sum() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("which", [0, 3], ids=["level 1", "modulation"])
def test_the_way_back_equals_differences_of_what_one_token_gathers(which):
    """Every pixel of a patch in and beside the square moved by hand: level 1 or the modulation of a token answers."""
    model, token = network(), (4, 5)
    model.use_ops(REFERENCE)
    image = IMAGES[:1]
    field = effective_fields(model, image, token)[which]
    signs = np.random.default_rng([0]).choice([-1.0, 1.0], (1, 5))

    def gathered(pixels):
        _, cache = model.forward(pixels)
        seen = cache.layers[0].blocks[0].modulation
        found = model.layers[0].blocks[0].modulation.proj(seen.proj.x) if which else seen.context.levels[0].ctx
        return (signs[0] * found[0, token[0], token[1]]).sum()

    sums = {}
    for patch in ((4, 5), (3, 4), (5, 5), (4, 7)):
        total = 0.0
        for channel, row, column in np.ndindex(2, 2, 2):
            step = np.zeros_like(image)
            step[0, channel, 2 * patch[0] + row, 2 * patch[1] + column] = 1e-6
            total += abs(gathered(image + step) - gathered(image - step)) / 2e-6
        sums[patch] = total
    assert (sums[4, 7] == 0.0) == (which == 0)
    for patch, total in sums.items():
        assert field[patch] / field[4, 5] == pytest.approx(total / sums[4, 5], rel=1e-6, abs=1e-12)


def test_what_levels_and_the_whole_map_gather_has_no_gate_in_it():
    model = network()
    before = effective_fields(model, IMAGES, (8, 6))
    f = model.layers[0].blocks[0].modulation.f
    f.bias.data[-3:] += [1.0, -2.0, 3.0]
    after = effective_fields(model, IMAGES, (8, 6))
    for level in range(3):
        np.testing.assert_allclose(after[level], before[level], rtol=1e-12)
    assert np.abs(after[3] - before[3]).max() > 1e-3


def test_the_models_gradients_and_table_stay_as_they_are():
    model = network()
    ops = model.ops
    for parameter in model.parameters():
        parameter.grad += 1.0
    effective_fields(model, IMAGES, (8, 6))
    assert all((parameter.grad == 1.0).all() for parameter in model.parameters())
    assert model.ops is ops


def test_other_modulations_are_refused():
    with pytest.raises(InputError, match="focal modulation"):
        effective_fields(network(modulation="sigmoid_gate"), IMAGES, (8, 6))


def test_a_kernel_that_reaches_too_far_would_be_seen(monkeypatch):
    """A planted mistake: the way back of a level moved by one token leaves the square."""
    backward = REFERENCE.focal_level.backward

    def moved(dctx, daggregate, cache):
        dbefore, *others = backward(dctx, daggregate, cache)
        return np.roll(dbefore, 1, axis=1), *others

    wrong = REFERENCE.focal_level._replace(backward=moved)
    monkeypatch.setattr("minifocal.viz.fields.REFERENCE", _with(focal_level=wrong))
    field = effective_fields(network(), IMAGES, (8, 6))[0]
    assert not ((field > 0) == square(field.shape, (8, 6), 3)).all()


def _with(**changes):
    from dataclasses import replace

    return replace(REFERENCE, **changes)


# Gates during training


@pytest.fixture(scope="module")
def run():
    splits = shapes_splits(size=16, train=64, test=16)
    config = mf.FocalNetConfig(
        image_size=16, patch_size=2, num_classes=4, embed_dim=4, depths=(2,), focal_levels=(2,), focal_windows=(3,)
    )
    model = mf.FocalNet(config, init="lecun")
    start = {name: parameter.data.copy() for name, parameter in model.named_parameters()}
    train, validation = splits.train.subset(range(48)), splits.train.subset(range(48, 64))
    record = watched_run.measure_run(model, train, validation, splits.test, TrainConfig(epochs=3, batch_size=8))
    return record, model, start, Standardize.fit(train)


@pytest.mark.parametrize(("position", "when"), [(0, "before"), (-1, "after")])
def test_what_is_recorded_are_the_caches_before_and_after_training(run, position, when):
    record, model, start, standardize = run
    assert record["epochs"] == [0, 1, 2, 3]
    read = watched_run.read_run(json.loads(json.dumps(record)))
    weights = start if when == "before" else {name: p.data.copy() for name, p in model.named_parameters()}
    twin = mf.FocalNet(model.config, init="zeros")
    twin.load_state_dict(weights)
    pictures = make_shapes(48, 16, seed=1).images
    _, cache = twin.forward(standardize(pictures, 255.0, np.float32))
    seen = cache.layers[0].blocks[1].modulation
    for number, image in enumerate(record["images"]):
        gates, norms = read.maps["gate 3 × 3"][number, position], read.maps["modulator"][number, position]
        np.testing.assert_allclose(gates, seen.gates[image, :, :, 0], rtol=6e-3, atol=1e-6)
        np.testing.assert_allclose(norms, np.linalg.norm(seen.modulator[image], axis=-1), rtol=6e-3, atol=1e-6)
    fields = effective_fields(twin, standardize(pictures, 255.0, np.float32), (4, 4))
    np.testing.assert_allclose(read.fields[when], np.stack(fields), rtol=1e-2, atol=1e-6)


def test_the_accuracy_is_that_of_the_test_images(run):
    record, model, _, standardize = run
    test = shapes_splits(size=16, train=64, test=16).test
    assert record["accuracy"] == evaluate(model, test, standardize).accuracy


def test_training_changes_what_is_recorded(run):
    maps = np.array(run[0]["maps"]["gate 3 × 3"])
    assert (np.abs(maps[:, 0] - maps[:, -1]) > 1e-3).mean() > 0.5


def test_the_images_shown_are_one_of_each_kind(run):
    record = run[0]
    labels = make_shapes(48, 16, seed=1).labels[record["images"]]
    assert [("circle", "square", "triangle", "cross")[label] for label in labels] == ["circle", "triangle", "cross"]
    shown = watched_run.watched_images(16, record["images"])
    expected = make_shapes(48, 16, seed=1).images[record["images"]].transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(shown, expected)


# Step sizes


@pytest.fixture(scope="module")
def steps():
    return {found.name: found for found in step_pictures.read_steps(step_pictures.measure_steps())}


@pytest.mark.parametrize("name", ["layer_norm", "focal_level"])
def test_errors_make_a_v_with_the_slopes_and_the_bottom_of_the_theory(steps, name):
    found = steps[name]
    assert len(found.steps) == 57
    for dtype, eps in (("float64", 2.0**-52), ("float32", 2.0**-23)):
        errors = found.errors[dtype]
        best = found.steps[int(errors.argmin())]
        assert eps ** (1 / 3) / 10 < best < eps ** (1 / 3) * 10
        assert errors.min() < 100 * eps ** (2 / 3)
    logs = np.log10(found.steps), np.log10(found.errors["float64"])
    for low, high, power in ((-3.6, -1.1, 2), (-13.0, -7.0, -1)):
        part = (logs[0] > low) & (logs[0] < high)
        assert np.polyfit(logs[0][part], logs[1][part], 1)[0] == pytest.approx(power, abs=0.12)
    assert found.complex_step < 1e-14 < found.extrapolated < found.errors["float64"].min()


def test_the_curve_is_what_gradcheck_finds_with_that_step(steps):
    """By another way than the module's: one direction at a time, with the public checker on the layer norm itself."""
    rng = np.random.default_rng([0, 1])
    weight, bias = 1.0 + 0.2 * rng.standard_normal(6), 0.2 * rng.standard_normal(6)
    x = np.random.default_rng([0, 3]).standard_normal((2, 5, 4, 6))
    report = check_gradients(
        lambda x: layer_norm_forward(x, weight, bias),
        lambda dy, cache: layer_norm_backward(dy, cache)[0],
        {"x": x},
        step=1e-2,
        directions=15,
    )
    median = float(np.median([entry.relative_error for entry in report["x"].entries]))
    found = steps["layer_norm"]
    at = int(np.abs(found.steps - 1e-2).argmin())
    assert found.errors["float64"][at] == pytest.approx(median, rel=1.0)  # other directions, the same size


def test_a_wrong_way_back_has_no_v(monkeypatch):
    """A planted mistake: without the hidden term through the variance no step makes the error small."""

    def forgetful(dy, cache):
        _, rstd, weight = cache
        dx_hat = dy * weight
        return rstd * (dx_hat - dx_hat.mean(axis=-1, keepdims=True)), None, None

    monkeypatch.setattr(step_pictures, "layer_norm_backward", forgetful)
    monkeypatch.setattr(step_pictures, "STEPS", np.array([1e-8, 1e-5, 1e-2]))
    record = step_pictures.measure_steps()["operations"][0]
    assert min(record["float64"]) > 1e-3
    assert record["complex"] > 1e-3


# Drawings of models


def test_the_architecture_shows_shapes_and_parameters_that_add_up(tmp_path):
    model = mf.create_model("focalnet_tiny_srf", init="zeros", ops="reference")
    draw_architecture(model, tmp_path / "a.svg")
    words = texts(tmp_path / "a.svg")
    counts = [int(word.replace(",", "")) for word in words if re.fullmatch(r"\d+(,\d{3})+", word)]
    assert len(counts) == 7
    assert sum(counts) == model.count_parameters() == 28_427_116
    assert any("14×14×384" in word for word in words)


def test_a_cache_lists_its_arrays_once_and_no_parameters():
    model = network()
    model.use_ops(REFERENCE)
    _, cache = model.forward(IMAGES)
    block = cache.layers[0].blocks[0]
    known = {id(parameter.data) for parameter in model.parameters()}
    norm = kept_arrays(block.modulation_branch.norm, known)
    assert norm == [("x_hat", (3, 18, 14, 5)), ("rstd", (3, 18, 14, 1))]
    levels = [kept_arrays(level, known) for level in block.modulation.context.levels]
    assert [name for name, _ in levels[0]] == ["x", "slope", "ctx", "gate"]
    assert [name for name, _ in levels[1]] == ["slope", "ctx", "gate"]  # its x is the level before's ctx
    assert kept_arrays(block.modulation.context.levels[1], known) == []


def test_the_block_shows_what_its_cache_keeps(tmp_path):
    config = mf.FocalNetConfig(
        image_size=(12, 20), embed_dim=7, depths=(1,), focal_levels=(3,), focal_windows=(3,), mlp_ratio=3, num_classes=0
    )
    model = mf.FocalNet(config, init="lecun")
    draw_block(model, tmp_path / "b.svg")
    words = texts(tmp_path / "b.svg")
    assert [word for word in words if word.startswith("level ")] == [
        f"level {number}:  {k} × {k}, GELU" for number, k in enumerate((3, 5, 7), start=1)
    ]
    for word in ("linear f:  7 → 18", "linear fc1:  7 → 21", "gates  2×3×5×4", "q  2×3×5×7"):
        assert word in words
    C, tokens = 7, 2 * 3 * 5
    kept = tokens * (C + 1)  # norm1
    kept += tokens * C  # f
    kept += tokens * C + 3 * tokens * (2 * C + 1)  # ctx_0; slope, context and gate of each level
    kept += 2 * 2 * C + tokens  # of the whole map
    kept += tokens * (C + 2 * C + C)  # h, q and modulator, proj
    kept += tokens * (C + 1) + tokens * C + 2 * tokens * 3 * C  # norm2 and the MLP
    assert {f"together {kept:,} numbers,", f"{kept / (tokens * C):.1f} times as many as x has"} <= set(words)


@pytest.mark.parametrize(
    "options", [{"use_postln": True}, {"use_layerscale": True}, {"modulation": "box_mean"}, {"focal_levels": (0,)}]
)
def test_a_block_that_the_picture_does_not_show_is_refused(tmp_path, options):
    config = mf.FocalNetConfig(
        **{"image_size": 16, "embed_dim": 4, "depths": (1,), "focal_levels": (1,), "focal_windows": (3,), **options}
    )
    with pytest.raises(InputError, match="the picture shows"):
        draw_block(mf.FocalNet(config, init="zeros"), tmp_path / "b.svg")
    assert list(tmp_path.iterdir()) == []


# Recorded runs


def test_the_ablation_is_that_of_the_tutorial():
    record = json.loads((ROOT / "tutorials" / "data" / "ablation.json").read_text())
    digits, shapes = read_ablation(record)
    assert sum(len(s) for found in (digits, shapes) for s in found.test.values()) == 48
    assert sum(s.size for found in (digits, shapes) for s in found.validation.values()) == 48
    assert digits.chosen == {"focal": 0.2, "sigmoid_gate": 0.1, "box_mean": 0.1}
    for found in (digits, shapes):
        for name, shares in found.validation.items():
            assert found.rates[int(shares.mean(axis=1).argmax())] == found.chosen[name]
    assert digits.test["focal"].min() == pytest.approx(0.267, abs=5e-4)


def test_the_watched_run_has_learned_what_it_is_shown_for():
    """A training that went astray on its way would show other gates."""
    run = watched_run.read_run(json.loads((ROOT / "figures" / "shapes.json").read_text()))
    assert run.accuracy > 0.95
    largest = {name: np.abs(maps).max(axis=(0, 2, 3)) for name, maps in run.maps.items()}  # by epoch
    assert (largest["gate 3 × 3"] < 8).all()
    assert (largest["modulator"] < 40).all()


def test_the_recorded_trainings_are_those_of_the_readme():
    found = read_trainings(json.loads((ROOT / "figures" / "training.json").read_text()))
    assert {recipe.modulation for recipe in found} == {"focal", "sigmoid_gate"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for recipe in found:
        assert recipe.seeds == [0, 1, 2, 3, 4]
        assert ", ".join(f"{100 * accuracy:.2f}" for accuracy in recipe.accuracies) in readme
        assert recipe.curves["val_loss"].shape == (5, 36)
