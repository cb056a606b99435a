"""What the step-through page is made of: names, caches and checks, for every modulation and option."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_recorder import MODULATIONS, OPTIONS, network

from minifocal.functional import layer_norm as home
from minifocal.functional.layer_norm import layer_norm_backward
from minifocal.ops import Op
from minifocal.viz import operations, recorder
from minifocal.viz.recorder import record
from minifocal.viz.trace import make_trace
from minifocal.viz.trace_page import TOLERANCE

NAMES = ["a", "b", "c"]
CASES = [
    *((modulation, "plain") for modulation in MODULATIONS),
    *((modulation, "all") for modulation in MODULATIONS),
    ("focal", "in the modulation"),
]


def traced(modulation="focal", options="plain", label=1, model=None):
    images = np.random.default_rng(0).standard_normal((1, 2, 12, 8))
    model = model or network(modulation, options)
    recording = record(model, images, np.array([label]))
    return recording, make_trace(recording, images[0, :1], label, NAMES, "an image")


@pytest.mark.parametrize(("modulation", "options"), CASES)
def test_every_gradient_agrees_with_differences(modulation, options):
    _, trace = traced(modulation, options)
    checks = [shown["check"] for step in trace.steps for shown in step["out"] if "check" in shown]
    assert len(checks) > 40
    for check in checks:
        assert check["error"] < TOLERANCE[check["method"]]
        assert len(check["rows"]) >= 2
        assert len({row["index"] for row in check["rows"]}) == len(check["rows"])
    # Numbers were compared, and not zeros with zeros.
    assert all(any(row["by_hand"] for row in check["rows"]) for check in checks)


def test_a_wrong_way_back_is_shown_to_be_wrong(monkeypatch):
    def without_variance(dy, cache):
        _, dweight, dbias = layer_norm_backward(dy, cache)
        dx_hat = dy * cache.weight
        return cache.rstd * (dx_hat - dx_hat.mean(axis=-1, keepdims=True)), dweight, dbias

    without_variance.__name__ = "layer_norm_backward"
    monkeypatch.setattr(home, "layer_norm_backward", without_variance)
    recorder._operations.cache_clear()
    model = network("focal")
    model.use_ops(replace(model.ops, layer_norm=Op(model.ops.layer_norm.forward, without_variance)))
    try:
        _, trace = traced(model=model)
    finally:
        recorder._operations.cache_clear()
    wrong = {
        (step["path"], shown["name"])
        for step in trace.steps
        if step.get("operation") == "layer_norm"
        for shown in step["out"]
        if "check" in shown and shown["check"]["error"] > TOLERANCE[shown["check"]["method"]]
    }
    norms = {step["path"] for step in trace.steps if step.get("operation") == "layer_norm"}
    assert wrong == {(path, "dx") for path in norms}


@pytest.mark.parametrize(("modulation", "options"), CASES)
def test_arrays_parameters_and_caches_are_called_what_they_are(modulation, options):
    recording, trace = traced(modulation, options)
    model = recording.model
    parameters = dict(model.named_parameters())
    gradients = {}
    for step, call in zip(trace.steps, recording.walk(), strict=True):
        assert step["path"] == call.path
        for shown in step["in"]:
            if "parameter" in shown:
                assert trace.arrays[shown["array"]] is parameters[shown["parameter"]].data
        if call.operation and call.way == "backward" and call.arguments.get("cache") is not None:
            weights = {id(p.data): name for name, p in parameters.items()}
            forward = next(c for c in recording.walk() if c.way == "forward" and c.kept is call.kept)
            for shown in step["out"]:
                source = forward.arguments.get(shown["name"][1:])
                if id(source) in weights:
                    gradients[weights[id(source)]] = trace.arrays[shown["array"]]
    # Each parameter's gradient is on the page, under the name of what it is the gradient of.
    assert gradients.keys() == parameters.keys()
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, parameters[name].grad)


def test_an_array_that_is_kept_is_the_very_one_that_went_in():
    _, trace = traced()
    step = next(step for step in trace.steps if step["slug"] == "forward/layers.0.blocks.0.modulation.f")
    kept = {item["name"]: item for item in step["kept"]}
    assert kept["x"]["array"] == step["in"][0]["array"]
    assert kept["x"]["same"] == "x"
    assert kept["weight"]["same"] == "weight"
    back = next(step for step in trace.steps if step["slug"] == "backward/layers.0.blocks.0.modulation.f")
    assert [item["same"] for item in back["kept"]] == [None, "layers.0.blocks.0.modulation.f.weight"]
    assert [item["array"] for item in back["kept"]] == [item["array"] for item in step["kept"]]


def test_what_is_taken_apart_is_called_what_it_is_for():
    recording, trace = traced()
    step = next(step for step in trace.steps if step["slug"] == "forward/layers.0.blocks.0.modulation/split")
    seen = recording.calls[0].result[1].layers[0].blocks[0].modulation
    parts = {shown["name"]: trace.arrays[shown["array"]] for shown in step["out"]}
    assert parts.keys() == {"q", "ctx", "gates"}
    assert parts["q"] is seen.q
    assert parts["ctx"] is seen.context.levels[0].conv.x
    assert parts["gates"] is seen.gates


def test_where_an_array_comes_from_is_the_step_that_made_it():
    _, trace = traced()
    found = 0
    for step in trace.steps:
        for shown in step["in"]:
            if "from" in shown:
                maker = trace.steps[shown["from"]]
                assert shown["array"] in [out["array"] for out in maker["out"]]
                assert maker["number"] < step["number"]
                found += 1
    assert found > 60


def test_every_step_has_an_address_of_its_own_and_a_place_in_the_tree():
    _, trace = traced("sigmoid_gate")
    assert len({step["slug"] for step in trace.steps}) == len(trace.steps)
    for step in trace.steps:
        assert step["title"]
        assert step["says"]
        for inner in step["steps"]:
            assert trace.steps[inner]["parent"] == step["number"]
            assert trace.steps[inner]["depth"] == step["depth"] + 1


def test_the_source_is_the_library_s_own_without_its_docstring():
    _, trace = traced()
    root = Path(operations.__file__).parents[2]
    assert len(trace.sources) > 30
    for source in trace.sources:
        lines = (root / source["file"]).read_text(encoding="utf-8").splitlines()
        text = "\n".join(text for _, text in source["lines"])
        assert '"""' not in text
        assert f"def {source['name'].rpartition('.')[2]}(" in text
        for number, shown in source["lines"]:
            assert lines[number - 1].strip() == shown.strip()


def test_titles_tell_the_two_products_of_gated_modulations_apart():
    _, trace = traced("sigmoid_gate")
    products = [step["title"] for step in trace.steps if step.get("operation") == "modulate"]
    assert products[:2] == ["Context times gates", "Query times modulator"]
    assert set(products) == set(products[:2])


def test_a_level_without_a_gate_has_no_gate_in_its_formulas():
    for modulation, gated in (("focal", True), ("sigmoid_gate", False)):
        levels = [step for step in traced(modulation)[1].steps if step.get("operation") == "focal_level"]
        assert {step["way"] for step in levels} == {"forward", "backward"}
        for step in levels:
            assert any("g_l" in tex for tex in step["formulas"]) is gated
            has_gate = any(shown["name"] in ("gate", "dgate") for shown in step["in"] + step["out"])
            assert has_gate is gated


def test_patches_are_laid_out_as_their_formula_says():
    _, trace = traced(options="all")  # with padding
    step = next(step for step in trace.steps if step["slug"] == "forward/layers.0.downsample/patches")
    x, patches = (trace.arrays[step[way][0]["array"]] for way in ("in", "out"))
    given = {name: ast.literal_eval(value) for name, value in step["settings"]}
    k, s, ((p, _), (q, _)) = given["size"], given["stride"], given["padding"]
    assert step["formulas"][0].startswith(r"y_{b,h,w,(c,i,j)} = x_{b,\,sh+i-p,\,sw+j-q,\,c}")
    assert p == q == 1
    h, w, c, i, j = 1, 0, 3, 0, 1
    assert patches[0, h, w, (c * k + i) * k + j] == x[0, s * h + i - p, s * w + j - q, c] != 0


def test_the_loss_and_what_is_no_array_are_shown():
    recording, trace = traced("box_mean")
    steps = {step["slug"]: step for step in trace.steps}
    (loss,) = steps["forward/cross_entropy"]["out"]
    assert (loss["name"], trace.arrays[loss["array"]]) == ("loss", recording.loss)
    assert steps["backward/cross_entropy"]["settings"] == [["dloss", "1.0"]]
    boxes = [step for slug, step in steps.items() if slug.startswith("forward/") and "box_mean" in slug]
    assert [step["title"] for step in boxes[:2]] == ["Box mean over 1 token", "Box mean over 6 tokens"]
    assert [step["settings"] for step in boxes[:2]] == [[["width", "1"]], [["width", "6"]]]


def test_what_a_layer_gives_is_called_what_its_gradient_is():
    _, trace = traced("focal")
    steps = {step["slug"]: step for step in trace.steps}
    for path in ("layers.0.blocks.0.modulation.context", "layers.0.blocks.0.mlp", "layers.1"):
        gives = [shown["name"] for shown in steps[f"forward/{path}"]["out"]]
        assert [f"d{name}" for name in gives] == [shown["name"] for shown in steps[f"backward/{path}"]["in"]]
    assert steps["forward/layers.0.blocks.0.modulation.context"]["out"][0]["name"] == "aggregate"


def test_a_layer_is_described_as_its_class_is():
    _, trace = traced("focal")
    about = {step["about"] for step in trace.steps if not step.get("operation")}
    assert about == trace.about.keys()
    assert "y = proj(q * h(context(ctx, gates)))" in trace.about["FocalModulation"]
    assert not any("Args:" in text for text in trace.about.values())


def test_every_operation_of_a_pass_has_a_card():
    names = {call.operation for m, o in CASES for call in traced(m, o)[0].walk() if call.operation}
    assert names == operations.CARDS.keys()


def test_every_option_is_among_the_cases():
    assert {options for _, options in CASES} == OPTIONS.keys()
