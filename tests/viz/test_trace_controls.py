"""The step-through page under hands: keys, pointer, finger, links and addresses, where the focus stays."""

import matplotlib
import numpy as np
import pytest
from test_recorder import MODULATIONS
from test_trace import traced
from test_trace_page import read, ready

from minifocal.viz.canvas import SIGNED
from minifocal.viz.trace_page import trace_html

STEP = "window.minifocal.detail.step"
FOCUS = "document.activeElement.id"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of a small network that has learned nothing, by modulation."""
    folder = tmp_path_factory.mktemp("pages")
    for modulation in MODULATIONS:
        _, trace = traced(modulation)
        (folder / f"{modulation}.html").write_text(trace_html(trace), encoding="utf-8")
    return folder


def test_a_link_is_an_entry_of_the_history_and_a_key_is_not(visit, pages):
    window, page = ready(visit, pages / "focal.html")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("() => location.hash.length > 1")
    start = page.evaluate(STEP)
    page.locator("#map a").nth(3).click()
    page.wait_for_function(f"() => {STEP} !== {start}")
    there = page.evaluate(STEP)
    page.go_back()
    page.wait_for_function(f"() => {STEP} === {start}")
    page.go_forward()
    page.wait_for_function(f"() => {STEP} === {there}")
    assert window.complaints == []


@pytest.mark.parametrize("address", ["#%zz", "#%", "#", "#forward/nowhere"])
def test_an_address_that_leads_nowhere_leads_to_the_start(visit, pages, address):
    window, page = ready(visit, pages / "focal.html", address)
    assert page.evaluate(STEP) == 0
    assert window.complaints == []


def test_a_new_step_is_seen_from_its_beginning(visit, pages):
    _, page = ready(visit, pages / "focal.html", "#forward/layers.0.blocks.0.modulation")
    page.evaluate("scrollTo(0, 900)")
    page.keyboard.press("ArrowRight")
    box, bar = page.locator("#step h2").bounding_box(), page.locator("#bar").bounding_box()
    assert bar["y"] + bar["height"] <= box["y"] < page.viewport_size["height"] / 2


def test_the_focus_stays_where_it_led(visit, pages):
    _, page = ready(visit, pages / "focal.html")
    page.locator("#next").focus()
    for _ in range(5):  # to the last step and against the end
        page.keyboard.press("Enter")
    last = page.evaluate(STEP)
    assert (page.evaluate(FOCUS), page.locator("#next").get_attribute("aria-disabled")) == ("next", "true")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(STEP) < last
    assert page.locator("#next").get_attribute("aria-disabled") == "false"
    page.locator("#list a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.matches('#list a[data-step=\"0\"]')")
    page.locator("#step .parts a").nth(1).focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.id === 'step'")


def test_a_playground_keeps_the_focus_of_what_it_makes_anew(visit, pages):
    window, page = ready(visit, pages / "focal.html")
    step = page.evaluate(STEP)
    page.locator("#conv-x").focus()
    x = page.evaluate("[...window.minifocal.conv.x]")
    for key in ("ArrowRight", "ArrowDown", "Enter", "ArrowRight"):
        page.keyboard.press(key)
    width = page.evaluate("window.minifocal.conv.W")
    assert page.evaluate(f"window.minifocal.conv.x[{width + 1}]") == (0 if x[width + 1] else 1)
    assert page.evaluate(FOCUS) == "conv-x"
    assert page.locator("#said").inner_text().startswith("x[1, 2] = ")
    page.locator("#gating-product").focus()
    for key in ("ArrowDown", "Enter", "ArrowRight"):
        page.keyboard.press(key)
    assert page.evaluate("window.minifocal.gating.token") == width
    assert page.evaluate(FOCUS) == "gating-product"
    for name in ("conv-block", "gating-block"):
        page.locator(f"#{name}").focus()
        for block in (1, 2):
            page.keyboard.press("ArrowDown")
            page.wait_for_function(f"() => window.minifocal.{name.partition('-')[0]}.block === {block}")
            assert page.evaluate(FOCUS) == name
    assert page.evaluate(STEP) == step
    assert window.complaints == []


def test_a_channel_is_one_that_the_block_has(visit, pages):
    """The second stage has eight channels, the first four."""
    _, page = ready(visit, pages / "focal.html")
    page.locator("#conv-block").select_option(index=2)
    box = page.locator("#conv-channel")
    for typed, taken in (("7", 7), ("99", 7), ("-3", 0), ("", 0), ("6.4", 6)):
        box.fill(typed)
        box.press("Enter")
        assert (page.evaluate("window.minifocal.conv.channel"), box.input_value()) == (taken, str(taken))
    page.locator("#conv-block").select_option(index=0)
    assert (page.evaluate("window.minifocal.conv.channel"), box.input_value()) == (3, "3")
    shown = page.evaluate(
        """() => { const {arrays, values, conv, steps} = window.minifocal;
          const step = steps.find(s => s.slug === "forward/layers.0.blocks.0.modulation.context/depthwise_conv");
          const x = [...values(step.in[0].array)].filter((_, n) => n % 4 === 3);
          return [x, [...conv.x]]; }"""
    )
    assert shown[0] == shown[1]


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_every_choice_of_the_convolution_tells_the_sum_that_it_draws(visit, pages, modulation):
    window, page = ready(visit, pages / f"{modulation}.html")
    state = "window.minifocal.conv"
    for choice in ("conv-block", "conv-level", "conv-size"):
        for index in range(page.locator(f"#{choice} option").count()):
            page.locator(f"#{choice}").select_option(index=index)
            for kernel in range(page.locator("#conv-kernel option").count()):
                page.locator("#conv-kernel").select_option(index=kernel)
                for kind in range(3):
                    page.locator("#conv-map").select_option(index=kind)
                    told = read(page.locator("#conv .sum").inner_text().rpartition(" = ")[2])
                    assert told == pytest.approx(page.evaluate(f"{state}.z[{state}.at]"), rel=1e-5)
    page.locator(".kernel input").first.fill("")
    assert page.evaluate(f"{state}.kernel[0]") == 0
    assert window.complaints == []


def test_a_tap_leaves_the_number_to_be_read(visit, pages):
    window, page = ready(
        visit, pages / "focal.html", "#forward/norm", viewport={"width": 390, "height": 844}, has_touch=True
    )
    page.locator("#step canvas").first.tap(position={"x": 3, "y": 3})
    assert page.locator("#tip").inner_text().startswith("x[0, 0, 0, 0] = ")
    page.locator("h2").first.tap()
    assert page.locator("#tip").is_hidden()
    assert window.complaints == []


def test_the_cursor_of_a_map_larger_than_its_frame_is_in_sight(visit, pages):
    _, page = ready(visit, pages / "focal.html", "#forward/layers.0.blocks.0.modulation.f")
    canvas = page.locator("#step figure[data-name=weight] canvas")
    page.add_style_tag(content="#step .map { max-height: 40px; max-width: 60px }")
    page.keyboard.press("Tab")
    canvas.focus()
    for _ in range(100):
        page.keyboard.press("ArrowRight")
    frame = canvas.locator("..")
    assert frame.evaluate("f => [f.scrollTop + f.clientHeight - f.scrollHeight, f.scrollLeft > 0]") == [0, True]


def test_without_javascript_the_page_says_what_it_needs(visit, pages):
    page = visit(java_script_enabled=False).open(pages / "focal.html")
    assert "JavaScript" in page.locator("noscript").inner_text()


PLACES = {  # how an index follows from tile, row and column
    ("forward", "x"): lambda t, r, q: (0, t, r, q),  # images, channels first
    ("backward", "dx"): lambda t, r, q: (0, t, r, q),
    ("forward/layers.0.blocks.1", "x"): lambda t, r, q: (0, r, q, t),
    ("forward/layers.0.blocks.0.modulation.context/focal_level", "weight"): lambda t, r, q: (r, q, t),
    ("forward/layers.0.blocks.0.mlp.fc1", "weight"): lambda t, r, q: (r, q),
    ("forward/layers.0.blocks.0.mlp.fc1", "bias"): lambda t, r, q: (q,),
}


@pytest.mark.parametrize(("slug", "name"), PLACES)
def test_a_number_is_drawn_and_read_where_it_stands(visit, pages, slug, name):
    _, trace = traced()
    step = next(step for step in trace.steps if step["slug"] == slug)
    array = next(trace.arrays[shown["array"]] for shown in step["in"] + step["out"] if shown["name"] == name)
    _, page = ready(visit, pages / "focal.html", f"#{slug}")
    canvas = page.locator(f"#step > figure[data-name={name}] canvas")
    canvas.scroll_into_view_if_needed()
    tiles, rows, columns, cell, gap, across = canvas.evaluate(
        """({heatMap: {tiling: {tiles, rows, columns}, placed: {cell, gap, across}}}) =>
           [tiles, rows, columns, cell, gap, across]"""
    )
    assert tiles * rows * columns == array.size
    colours = np.array(matplotlib.colormaps[SIGNED]([0.0, 1.0]))[:, :3] * 255
    box = canvas.bounding_box()
    for t, r, q in {(tiles - 1, 0, columns - 1), (0, rows - 1, 0), (tiles // 2, rows // 2, columns // 3)}:
        x, y = (t % across) * (columns * cell + gap) + q * cell, (t // across) * (rows * cell + gap) + r * cell
        page.mouse.move(box["x"] + x + cell / 2, box["y"] + y + cell / 2)
        index = PLACES[slug, name](t, r, q)
        told, _, value = page.locator("#tip").inner_text().partition(" = ")
        assert told == f"{name}[{', '.join(map(str, index))}]"
        assert read(value) == pytest.approx(array[index], rel=1e-5)
    for t, r, q in np.ndindex(tiles, rows, columns):
        if abs(array[PLACES[slug, name](t, r, q)]) == np.abs(array).max() > 0:
            x, y = (t % across) * (columns * cell + gap) + q * cell, (t // across) * (rows * cell + gap) + r * cell
            drawn = canvas.evaluate(
                "(map, [x, y]) => [...map.getContext('2d').getImageData(x, y, 1, 1).data]",
                [x + cell // 2, y + cell // 2],
            )
            expected = colours[int(array[PLACES[slug, name](t, r, q)] > 0)]
            np.testing.assert_allclose(drawn[:3], expected, atol=2)


def test_a_link_from_deep_inside_leads_to_the_detail_of_its_step(visit, pages):
    _, page = ready(visit, pages / "focal.html", "#forward/layers.0.blocks.0.modulation.context/depthwise_conv")
    page.locator("#map a", has_text="Stage 1: Block 2").first.click()
    page.wait_for_function("() => document.querySelector('h2').textContent.startsWith('Block 2')")
    assert page.locator("#position").inner_text() == "step 5 of 22, detail 3 of 7"
