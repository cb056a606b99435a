"""The step-through page in a real browser: digits through a trained network of each modulation."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from equations import FILE, equations
from PIL import Image
from test_recorder import MODULATIONS, network

from minifocal import interop
from minifocal.cli import main
from minifocal.cli.inputs import read_input
from minifocal.data import digits_splits
from minifocal.functional.activations import sigmoid_forward
from minifocal.functional.cross_entropy import log_softmax
from minifocal.functional.depthwise_conv import depthwise_conv_backward, depthwise_conv_forward
from minifocal.viz import trace_page
from minifocal.viz.recorder import record
from minifocal.viz.trace import make_trace

IMAGE, IMAGE_LABEL = "digits:7", digits_splits().test.labels[7]
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>{{values}}"


@pytest.fixture(scope="session")
def traced(tmp_path_factory):
    """Train a network of a modulation on the digits, once, and write its page: the page and the run."""
    folder = tmp_path_factory.mktemp("traced")

    @cache
    def traced(modulation: str) -> tuple[Path, Path]:
        run, page = folder / modulation, folder / f"{modulation}.html"
        assert main(["train", "--epochs", "3", "--modulation", modulation, "--out", str(run)]) == 0
        assert main(["trace", IMAGE, "--checkpoint", str(run), "--html", str(page)]) == 0
        return page, run

    return traced


def ready(visit, path, address="", **options):
    """Open a page at a step and wait until it has unpacked its numbers."""
    window = visit(**options)
    page = window.open(f"{path.as_uri()}{address}")
    page.wait_for_selector("html[data-ready=true]")
    return window, page


def calls_of(run):
    """The calls of the pass on the page, recorded again."""
    pretrained = interop.open_pretrained(run)
    model = pretrained.build(dtype="float64", ops="reference")
    image = read_input(IMAGE, pretrained.preprocess, "float64")
    names = list(map(str, pretrained.class_names))
    return list(record(model, image.images, np.array([names.index(image.label)])).walk())


def printed(value):
    """A number as the page prints it, read back: six significant digits."""
    return float(f"{value:.5e}")


def read(text):
    return float(text.replace("−", "-"))


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_the_page_needs_nothing_beside_itself_and_complains_of_nothing(visit, traced, modulation):
    path, run = traced(modulation)
    assert path.stat().st_size < 3e6
    window, page = ready(visit, path)
    assert window.requests == []
    assert page.locator("h2").first.inner_text().startswith("The forward pass")
    probabilities = np.exp(log_softmax(calls_of(run)[0].result[0]))[0]
    likeliest = np.argsort(-probabilities)[:3]
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#answer tr").all()]
    assert rows == [[str(label), f"{100 * probabilities[label]:.1f} %"] for label in likeliest]
    assert f"the class {IMAGE_LABEL}: " in page.locator("#summary").inner_text()
    for key in ("ArrowDown", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
    assert page.locator("#step .trail li").count() == 2
    page.wait_for_function("() => location.hash.length > 1")
    assert (window.requests, window.complaints) == ([], [])


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_every_step_is_reached_by_keys_forward_and_back(visit, traced, modulation):
    """At each level of detail from the first step to the last and back, with keys as the browser sends them."""
    path, _ = traced(modulation)
    window, page = ready(visit, path)
    page.add_style_tag(content="#step > * { display: none }")  # what each step shows is built, but not laid out
    forward, backward, rows = page.evaluate(
        """() => {
          const {steps, detail} = window.minifocal, forward = new Set(), backward = new Set(), rows = [];
          const press = key => document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
          const walk = (key, seen) => {
            let before, count = 0;
            do { before = detail.step; seen.add(before); count++; press(key); } while (detail.step !== before);
            return count;
          };
          for (let depth = 0; depth <= detail.most; depth++) {
            rows.push([walk("ArrowRight", forward), walk("ArrowLeft", backward)]);
            // On to a step that has more inside.
            for (let n = 0; detail.depth === depth && n < 500; n++) {
              press("ArrowDown");
              if (detail.depth === depth) press("ArrowRight");
            }
            walk("ArrowLeft", backward);
          }
          return [[...forward], [...backward], rows];
        }"""
    )
    total = page.evaluate("window.minifocal.steps.length")
    assert sorted(forward) == sorted(backward) == list(range(total))
    assert all(there == back for there, back in rows)
    assert [there for there, _ in rows] == sorted(there for there, _ in rows)
    assert window.complaints == []


def test_real_keys_move_and_the_address_leads_back(visit, traced):
    path, _ = traced("focal")
    _, page = ready(visit, path)
    for _ in range(4):
        page.keyboard.press("ArrowDown")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    here, title = page.evaluate("window.minifocal.detail.step"), page.locator("h2").first.inner_text()
    page.wait_for_function("n => location.hash === `#${window.minifocal.steps[n].slug}`", arg=here)
    address = page.evaluate("location.hash")
    _, again = ready(visit, path, address)
    assert again.evaluate("window.minifocal.detail.step") == here
    assert again.locator("h2").first.inner_text() == title
    assert again.locator("#list [aria-current]").inner_text() in title
    assert again.locator("#map [aria-current]").count() == 1
    again.keyboard.press("ArrowUp")
    assert again.evaluate("window.minifocal.detail.step") == page.evaluate(f"window.minifocal.steps[{here}].parent")
    _, lost = ready(visit, path, "#nowhere/at%20all")
    assert lost.evaluate("window.minifocal.detail.step") == 0


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_values_under_the_pointer_are_numpy_s_to_the_printed_digits(visit, traced, modulation):
    path, run = traced(modulation)
    calls = calls_of(run)
    _, page = ready(visit, path)
    rng = np.random.default_rng(len(modulation))
    compared = 0
    for number in rng.choice(len(calls), 20, replace=False):
        page.evaluate("n => { location.hash = window.minifocal.steps[n].slug; }", int(number))
        page.wait_for_function("n => window.minifocal.detail.step === n", arg=int(number))
        call = calls[number]
        arrays = {name: value for name, value in call.arguments.items() if isinstance(value, np.ndarray)}
        step = page.evaluate("window.minifocal.steps[window.minifocal.detail.step]")
        if call.way == "backward":
            results = call.result if isinstance(call.result, tuple) else (call.result,)
            results = [part for part in results if isinstance(part, np.ndarray)]
        else:
            results = [part for part in call.result[:-1] if hasattr(part, "shape")] if call.kept else [call.result]
            if call.operation == "split":
                results = list(call.result[0])
        outputs = dict(zip([shown["name"] for shown in step["out"]], results, strict=True))
        for figure in page.locator("#step > figure").all():
            canvas = figure.locator("canvas")
            if not canvas.count():
                continue
            name = figure.get_attribute("data-name")
            canvas.scroll_into_view_if_needed()
            box = canvas.bounding_box()
            for x, y in rng.random((3, 2)):
                page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
                if page.locator("#tip").is_hidden():  # between two tiles
                    continue
                text = page.locator("#tip").inner_text()
                found = re.fullmatch(r"(\w+)\[([\d, ]*)\] = (\S+)", text)
                assert found[1] == name
                index = tuple(map(int, found[2].split(", ")))
                among = [outputs.get(name), arrays.get(name)]
                if call.operation == "split" and call.way == "backward":
                    among.append(
                        call.arguments["dparts"][("dq", "dctx", "dgates").index(name)] if name != "dx" else None
                    )
                expected = {printed(array[index]) for array in among if array is not None and array.ndim == len(index)}
                assert read(found[3]) in expected, (step["slug"], text)
                compared += 1
    assert compared > 60


def test_a_heat_map_that_has_the_focus_is_read_by_keys(visit, traced):
    path, run = traced("focal")
    calls = calls_of(run)
    _, page = ready(visit, path, "#forward/layers.0.blocks.0.modulation.f")
    step = page.evaluate("window.minifocal.detail.step")
    canvas = page.locator("#step figure[data-name=weight] canvas").first
    page.keyboard.press("Tab")
    canvas.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert page.evaluate("window.minifocal.detail.step") == step
    said = page.locator("#said").inner_text()
    assert said.startswith("weight[1, 2] = ")
    assert read(said.split(" = ")[1]) == printed(calls[step].arguments["weight"][1, 2])
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("window.minifocal.detail.step") != step


def test_gradients_stand_beside_their_check(visit, traced):
    path, _ = traced("focal")
    _, page = ready(visit, path, "#backward/layers.1.blocks.0.norm2")
    boxes = page.locator("#step details.check")
    assert boxes.count() == 3
    for box in boxes.all():
        assert box.inner_text().startswith("✓ ")
        box.locator("summary").click()
        rows = [row.locator("td").all_inner_texts() for row in box.locator("tbody tr").all()]
        assert len(rows) >= 8
        for _, by_hand, numeric, _ in rows:
            assert read(by_hand) == pytest.approx(read(numeric), rel=1e-5, abs=1e-12)


def test_the_parameters_inside_a_layer_stand_beside_the_norm_of_their_gradients(visit, traced):
    path, run = traced("focal")
    model = calls_of(run)[0].layer
    _, page = ready(visit, path, "#backward/layers.1.blocks.1.mlp")
    table = page.locator("#step table", has=page.locator("th", has_text="L2 norm of the gradient"))
    rows = [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]
    expected = [
        [
            name,
            f"({', '.join(map(str, p.data.shape))}{',' * (p.data.ndim == 1)})",
            float(f"{np.linalg.norm(p.grad):.3e}"),
        ]
        for name, p in model.named_parameters()
        if name.startswith("layers.1.blocks.1.mlp.")
    ]
    assert len(expected) == 4
    assert [[name, shape, read(norm)] for name, shape, norm in rows] == expected


def test_the_playgrounds_numerics_are_numpy_s(visit, traced):
    path, _ = traced("box_mean")
    _, page = ready(visit, path)
    rng = np.random.default_rng(3)
    H, W, k = 5, 4, 3
    x, dz, kernel = (rng.standard_normal(shape) for shape in ((H, W), (H, W), (k, k)))
    z, conv_cache = depthwise_conv_forward(x[None, ..., None], kernel[..., None])
    dx, dkernel = depthwise_conv_backward(dz[None, ..., None], conv_cache)
    found = page.evaluate(
        """([x, dz, kernel, H, W, k]) => {
          const {numerics} = window.minifocal, back = numerics.depthwiseConvBackward(dz, x, H, W, kernel, k);
          return [numerics.depthwiseConv(x, H, W, kernel, k), back.dx, back.dkernel].map(values => [...values]);
        }""",
        [x.ravel().tolist(), dz.ravel().tolist(), kernel.ravel().tolist(), H, W, k],
    )
    for here, there in zip(found, (z, dx, dkernel), strict=True):
        np.testing.assert_allclose(here, there.ravel(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_the_convolution_playground_agrees_with_numpy(visit, traced, modulation):
    path, _ = traced(modulation)
    window, page = ready(visit, path)
    section = page.locator("#conv")
    section.locator("#conv-back").check()
    section.locator(".kernel input").nth(1).fill("0.75")
    section.locator("figure[data-name=x] canvas").click(position={"x": 30, "y": 4})
    section.locator("figure[data-name=dz] canvas").click(position={"x": 4, "y": 30})
    state = page.evaluate(
        """() => { const s = window.minifocal.conv, list = a => [...a];
          return {H: s.H, W: s.W, k: s.k, x: list(s.x), kernel: list(s.kernel), dz: list(s.dz), z: list(s.z),
                  dx: list(s.dx), dkernel: list(s.dkernel)}; }"""
    )
    assert state["kernel"][1] == 0.75
    H, W, k = state["H"], state["W"], state["k"]
    x, dz = (np.array(state[name]).reshape(1, H, W, 1) for name in ("x", "dz"))
    assert np.count_nonzero(dz) == 2
    z, conv_cache = depthwise_conv_forward(x, np.array(state["kernel"]).reshape(k, k, 1))
    dx, dkernel = depthwise_conv_backward(dz, conv_cache)
    for name, expected in (("z", z), ("dx", dx), ("dkernel", dkernel)):
        np.testing.assert_allclose(state[name], expected.ravel(), rtol=1e-6, atol=1e-9, err_msg=name)
    # What is told of a token is the same number.
    page.locator("figure[data-name=z] canvas").click(position={"x": 4, "y": 4})
    told = section.locator(".sum").inner_text()
    assert told.startswith("z[0, 0] = ")
    assert read(told.rpartition(" = ")[2]) == printed(state["z"][0])
    assert window.complaints == []


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_the_gating_playground_agrees_with_numpy(visit, traced, modulation):
    path, run = traced(modulation)
    window, page = ready(visit, path)
    calls = calls_of(run)
    cache_ = calls[0].result[1]
    model = calls[0].layer
    seen, modulation_layer = cache_.layers[0].blocks[1].modulation, model.layers[0].blocks[1].modulation
    section = page.locator("#gating")
    section.locator("select").select_option("1")
    factors = [1.0] * section.locator("input[type=range]").count()
    for level, factor in ((0, -0.5), (len(factors) - 1, 1.75)):
        factors[level] = factor
        section.locator(f"#gating-{level}").fill(str(factor))
    state = page.evaluate(
        "() => { const {now} = window.minifocal.gating; return [[...now.modulator], [...now.product]]; }"
    )
    if modulation == "focal":
        contexts = [level.ctx for level in seen.context.levels] + [seen.context.global_level.ctx_global]
        total = sum(
            factor * seen.gates[..., n : n + 1] * ctx
            for n, (factor, ctx) in enumerate(zip(factors, contexts, strict=True))
        )
        modulator = total @ modulation_layer.h.weight.data + modulation_layer.h.bias.data
    else:
        levels = [seen.ctx] if modulation == "box_mean" else [level.ctx for level in seen.gather.levels.levels]
        gates, _ = sigmoid_forward(modulation_layer.gate(seen.gate.x))
        modulator = gates * sum(factor * ctx for factor, ctx in zip(factors, levels, strict=True))
    for here, there in zip(state, (modulator, seen.q * modulator), strict=True):
        np.testing.assert_allclose(here, there.ravel(), rtol=0, atol=1e-6 * np.abs(there).max())
    assert "in the pass" in section.inner_text()
    if modulation == "focal":  # what is told of a token is of the one that was chosen
        section.locator("figure canvas").first.click(position={"x": 60, "y": 30})
        row, column = map(int, re.search(r"row (\d+), column (\d+)", section.inner_text()).groups())
        assert (row, column) != (0, 0)
        told = [cells.locator("td").nth(1).inner_text() for cells in section.locator("tbody tr").all()]
        assert [read(gate) for gate in told] == [float(f"{gate:.3e}") for gate in seen.gates[0, row, column]]
    assert window.complaints == []


LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}},
}


@pytest.mark.parametrize("look", LOOKS)
def test_nothing_is_wrong_for_people_who_read_it_otherwise(visit, traced, look):
    path, _ = traced("focal")
    for address in ("", "#forward/layers.0.blocks.1.modulation/split", "#backward/layers.0.blocks.0"):
        _, page = ready(visit, path, address, **LOOKS[look])
        page.locator("#conv-back").check()
        page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
        found = Axe().run(page).response["violations"]
        # axe takes parts of the map that are scrolled out of sight for skip links.
        wrong = [(v["id"], [n["html"][:120] for n in v["nodes"]]) for v in found if v["id"] != "skip-link"]
        assert wrong == []
        wide, room = page.evaluate("[document.scrollingElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide <= room, f"at {address!r} the page is wider than the window"


def test_colours_can_be_chosen(visit, traced):
    path, _ = traced("focal")
    _, page = ready(visit, path, color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.locator("#theme").click()
    assert page.evaluate(background) == light
    page.locator("#theme").click()
    assert page.evaluate(background) != light
    assert page.locator("#theme").get_attribute("aria-label") == "Colours: dark"


def test_hostile_names_are_text(visit, traced, tmp_path, capsys):
    _, run = traced("focal")
    name = "<script>window.hacked = 1<⁄script>.png"  # a name of a file has no slash
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / name)
    (tmp_path / "names.json").write_text(json.dumps([HOSTILE] * 10))
    page_file = tmp_path / "hostile.html"
    command = ["trace", str(tmp_path / name), "--checkpoint", str(run), "--html", str(page_file)]
    assert main([*command, "--names", str(tmp_path / "names.json"), "--class", "3"]) == 0
    window, page = ready(visit, page_file)
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 3
    assert page.locator("img").count() == 1
    summary = page.locator("#summary").inner_text()
    assert HOSTILE in summary
    assert name in summary
    assert (window.requests, window.complaints) == ([], [])


def test_of_a_large_network_a_part_is_shown_and_said_to_be_one(visit, tmp_path, monkeypatch):
    images = np.random.default_rng(0).standard_normal((1, 2, 12, 8))
    recording = record(network("focal"), images, np.array([1]))
    trace = make_trace(recording, images[0, :1], 1, ["a", "b", "c"], "an image")
    assert sum(array.size for array in trace.arrays) > 4_000
    monkeypatch.setattr(trace_page, "MOST_NUMBERS", 4_000)
    path = tmp_path / "part.html"
    path.write_text(trace_page.trace_html(trace), encoding="utf-8")
    window, page = ready(visit, path, "#forward/layers.0.blocks.0.mlp.fc1")
    figure = page.locator("#step figure[data-name=weight]")
    assert "shown: the first (" in figure.inner_text()
    weight = recording.model.layers[0].blocks[0].mlp.fc1.weight.data
    assert f"L2 norm {np.linalg.norm(weight):.4g}" in figure.inner_text()
    assert "too large" in page.locator("#playgrounds").inner_text()
    assert window.complaints == []
    shown = page.evaluate("window.minifocal.arrays[window.minifocal.steps[window.minifocal.detail.step].in[1].array]")
    extremes = [shown["low"], shown["high"], shown["norm"]]  # of the whole
    assert extremes == [float(f"{value:.6g}") for value in (weight.min(), weight.max(), np.linalg.norm(weight))]
    rows, columns = shown["shown"]
    assert shown["shape"] == list(weight.shape)
    values = page.evaluate(
        "[...window.minifocal.values(window.minifocal.steps[window.minifocal.detail.step].in[1].array)]"
    )
    np.testing.assert_allclose(values, weight[:rows, :columns].ravel(), rtol=np.finfo("float32").eps)


def test_numbers_print_as_those_that_they_stand_for():
    rng = np.random.default_rng(5)
    numbers = rng.standard_normal(20_000) * 10.0 ** rng.integers(-20, 9, 20_000)
    kept = trace_page.as_printed(numbers)
    assert kept.dtype == np.float32
    assert [printed(value) for value in kept.tolist()] == [printed(value) for value in numbers.tolist()]
    np.testing.assert_allclose(kept, numbers, rtol=1.5 * np.finfo("float32").eps)
    assert [printed(v) for v in numbers.astype("float32").tolist()] != [printed(v) for v in numbers.tolist()]
    near_zero = trace_page.as_printed(np.array([3e-39, -1e-44, 1.25e-38])).tolist()
    assert list(map(printed, near_zero)) == [0, 0, 1.25e-38]


def test_the_formulas_of_the_pages_are_those_of_the_operations():
    assert FILE.read_text(encoding="utf-8") == equations()
