"""The live page in a real browser: what it shows is what the trainer recorded, whatever names and browsers do."""

import re

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from live_runs import NAMES, SCRIPT, make_trainer, network
from playwright.sync_api import expect

from minifocal.training.listener import Listener, Listeners
from minifocal.training.trainer import TrainingError
from minifocal.viz import live, live_server
from minifocal.viz.live import LiveView, choose_images
from minifocal.viz.live_server import Document, LiveServer
from minifocal.viz.maps import block_maps

PIXELS = """canvas => ({
    width: canvas.width, height: canvas.height,
    data: [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data],
})"""


@pytest.fixture(autouse=True)
def look_always(monkeypatch):
    """Look at the gates at the end of every epoch, however short."""
    monkeypatch.setattr(live, "GATE_SHARE", float("inf"))


class AfterEpoch(Listener):
    """Calls a function with the epoch's record, after the view has heard of it."""

    def __init__(self, function):
        self.on_epoch = function


def run(view, function=lambda record: None, **changes):
    trainer = make_trainer(view, **changes)
    trainer.listener = Listeners(view, AfterEpoch(function))
    return trainer


def rows(page):
    """The table of epochs, the first one first."""
    cells = page.locator("#epochs tr").evaluate_all("rows => rows.map(row => [...row.cells].map(c => c.textContent))")
    return cells[::-1]


def as_shown(record):
    rate = record["lr"]
    return [
        str(record["epoch"]),
        f"{record['train_loss']:.4f}",
        f"{100 * record['train_accuracy']:.2f}",
        f"{record['val_loss']:.4f}",
        f"{100 * record['val_accuracy']:.2f}",
    ], rate


def check_numbers(page, trainer):
    last = trainer.history[-1]
    expect(page.locator("#epochs tr")).to_have_count(last["epoch"])
    for shown, record in zip(rows(page), trainer.history, strict=True):
        cells, rate = as_shown(record)
        assert shown[:5] == cells
        assert float(shown[5].replace("−", "-")) == pytest.approx(rate, rel=5e-3)
    expect(page.locator("#now-epoch")).to_have_text(f"{last['epoch']} of {trainer.config.epochs}")
    done = last["epoch"] * trainer.steps_per_epoch
    expect(page.locator("#now-step")).to_have_text(f"{done} of {trainer.schedule.total_steps}")
    expect(page.locator("#now-val-loss")).to_have_text(f"{last['val_loss']:.4f}")
    expect(page.locator("#now-val-accuracy")).to_have_text(f"{100 * last['val_accuracy']:.2f} %")
    expect(page.locator("#summary")).to_contain_text(f"Epoch {last['epoch']} of {trainer.config.epochs}: training loss")
    assert page.get_attribute("#bar", "aria-valuenow") == str(done)


def check_gates(page, trainer, block):
    """Every pixel of every map has the colour that Matplotlib gives the number of block_maps."""
    from matplotlib import colormaps

    step = trainer.progress.epoch * trainer.steps_per_epoch
    expect(page.locator("#gates-step")).to_contain_text(f"after step {step} ")
    page.select_option("#block", str(block))
    chosen = choose_images(trainer.validation)
    pixels = trainer.standardize(trainer.validation.images[chosen], 255, trainer.model.dtype)
    _, cache = trainer.model.forward(pixels)
    wanted = [block_maps(trainer.model, cache, image)[block] for image in range(len(chosen))]
    shown = page.locator("#gates .row")
    expect(shown).to_have_count(len(wanted[0].maps))
    for number, maps in enumerate(zip(*(image.maps for image in wanted), strict=True)):
        row = shown.nth(number)
        assert row.locator("h3").inner_text() == maps[0].name
        largest = max(np.float64(abs(seen.values.astype(np.float32)).max()) for seen in maps)
        gate, focal = maps[0].kind == "gate", trainer.model.config.modulation == "focal"
        colours, low, high = ("viridis", 0.0, 1.0) if gate and not focal else ("viridis", 0.0, largest)
        if gate and focal:
            colours, low = "RdBu_r", -largest
        ends = row.locator(".ends span").all_inner_texts()
        assert [float(ends[0].replace("−", "-")), float(ends[-1])] == pytest.approx([low, high], rel=5e-3)
        canvases = row.locator(".maps canvas")
        assert canvases.count() == len(chosen)
        for image, seen in enumerate(maps):
            drawn = canvases.nth(image).evaluate(PIXELS)
            assert (drawn["height"], drawn["width"]) == seen.values.shape
            index = np.floor(256 * (seen.values.astype(np.float32).astype(np.float64) - low) / (high - low))
            expected = colormaps[colours](index.clip(0, 255).astype(int), bytes=True)
            np.testing.assert_array_equal(np.reshape(drawn["data"], expected.shape), expected)
            label = canvases.nth(image).get_attribute("aria-label")
            assert f"image {image + 1} ({NAMES[trainer.validation.labels[chosen[image]]]})" in label
            mean = float(re.search(r"mean (\S+),", label)[1].replace("−", "-"))
            assert mean == pytest.approx(seen.values.mean(), rel=6e-3, abs=1e-6 * largest)


@pytest.mark.parametrize(("modulation", "block"), [("focal", 0), ("focal", 2), ("sigmoid_gate", 1)])
def test_a_page_shows_the_run_as_it_goes_on_and_stays_when_it_is_over(visit, modulation, block):
    view, visitor = LiveView(f"runs/{SCRIPT}"), visit()

    def check(record):
        if record["epoch"] == 1:
            visitor.open(server.url)
        elif record["epoch"] == 3:
            visitor.page.reload()  # it gets the history again
        check_numbers(visitor.page, trainer)
        check_gates(visitor.page, trainer, block)
        expect(visitor.page.locator("#status")).to_have_attribute("data-kind", "training")

    trainer = run(view, check, epochs=4, model=network(modulation))
    with LiveServer(view.document) as server:
        trainer.fit()
        view.end()
    page = visitor.page
    expect(page.locator("#status-text")).to_have_text("The run is over: all epochs are done.")
    assert {page.get_attribute(f"#{name}", "role") for name in ("status", "summary")} == {"status"}  # read aloud
    check_numbers(page, trainer)  # the server has gone; the page has it all
    check_gates(page, trainer, 0)
    assert page.locator("h1").inner_text() == f"runs/{SCRIPT}"
    assert page.locator("script").count() == 4
    assert "broken" not in page.title().split("–")[0]
    assert page.title().startswith("4/4, ")
    assert all(asked.startswith(server.url) for asked in visitor.requests)
    assert len(visitor.requests) >= 8
    assert visitor.complaints == []


def test_curves_are_drawn_at_their_places(visit):
    """The points of the path, taken back to numbers by the ticks of the axes, are those of the run."""
    view, visitor = LiveView("x"), visit()
    trainer = run(view)
    with LiveServer(view.document) as server:
        trainer.fit()
        view.end()
        page = visitor.open(server.url)
        expect(page.locator("#epochs tr")).to_have_count(3)
        expect(page.locator("#status")).to_have_attribute("data-kind", "finished")
        for axis, per in (("step", 1), ("epoch", trainer.steps_per_epoch)):
            page.check(f"[value={axis}]")
            expect(page.locator("#curve-loss text").last).to_have_text(axis)
            for curve, column, value in (
                ("loss", 1, lambda p: p),
                ("wrong", 2, lambda p: 100 * (1 - p)),
                ("lr", 3, lambda p: p),
            ):
                x_of, y_of = axes(page, curve)
                path = page.locator(f"#curve-{curve} path").first.get_attribute("d")
                points = [tuple(map(float, point.split())) for point in re.split("h0M|L", path[1:].removesuffix("h0"))]
                wanted = [(point[0] / per, value(point[column])) for point in view.curve.points]
                for (x, y), (step, number) in zip(points, wanted, strict=True):
                    assert x == pytest.approx(x_of(step), abs=0.06)
                    assert y == pytest.approx(y_of(number), abs=0.06)
            dots = page.locator("#curve-loss circle.validation").evaluate_all(
                "all => all.map(c => [c.cx.baseVal.value, c.cy.baseVal.value])"
            )
            x_of, y_of = axes(page, "loss")
            for (x, y), record in zip(dots, trainer.history, strict=True):
                assert x == pytest.approx(x_of(record["epoch"] * trainer.steps_per_epoch / per), abs=0.06)
                assert y == pytest.approx(y_of(record["val_loss"]), abs=0.06)
    assert visitor.complaints == []


def axes(page, curve):
    """Where numbers lie in a drawn curve, as its ticks say."""
    texts = page.locator(f"#curve-{curve} text").evaluate_all(
        "all => all.slice(0, -1).map(t => [t.textContent, t.x.baseVal[0].value, t.y.baseVal[0].value])"
    )
    left = page.locator(f"#curve-{curve} .gridline").first.evaluate("line => line.x1.baseVal.value")
    across = [(float(text), x) for text, x, _ in texts if x > left - 1]
    up = [(float(text), y - 4) for text, x, y in texts if x < left - 1]
    if curve == "wrong":
        assert [number for number, _ in up] == [0, 1, 10, 100]

        def y_of(number):
            return up[0][1] + (up[3][1] - up[0][1]) * (number if number < 1 else 1 + np.log10(number)) / 3
    else:

        def y_of(number):
            return up[0][1] + (up[-1][1] - up[0][1]) * (number - up[0][0]) / (up[-1][0] - up[0][0])

    middle = across[1]
    return lambda number: across[0][1] + (middle[1] - across[0][1]) * number / middle[0], y_of


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nobody_is_shut_out(visit, scheme, width):
    """No serious violation that axe-core finds, nothing wider than the window, and all of it by keyboard."""
    view = LiveView(f"runs/{SCRIPT}{'long' * 40}")
    with LiveServer(view.document) as server:
        trainer = run(view, lr=1e-6)
        visitor = visit(color_scheme=scheme, viewport={"width": width, "height": 800})
        page = visitor.open(server.url)
        expect(page.locator("#status")).to_have_attribute("data-kind", "training")
        check_axe(page)  # before there is anything to see
        trainer.fit()
        expect(page.locator("#epochs tr")).to_have_count(3)
        expect(page.locator("#messages li")).to_have_count(1)
        page.locator("summary").press("Enter")
        check_axe(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("[value=step]").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#curve-loss text").last).to_have_text("epoch")
        page.locator("#block").focus()
        page.keyboard.press("ArrowDown")
        expect(page.locator("#gates canvas").nth(1)).to_have_attribute("aria-label", re.compile("stage 2, block 1"))
        view.fail(TrainingError(SCRIPT))
        expect(page.locator("#status-text")).to_have_text(f"The run is over, it failed: {SCRIPT}")
        check_axe(page)
    assert visitor.complaints == []


def check_axe(page):
    found = Axe().run(page).response["violations"]
    assert [problem["id"] for problem in found if problem["impact"] in ("serious", "critical")] == []


def test_many_tabs_share_a_stream_and_all_hear_of_the_end(visit):
    """More than the six connections that a browser opens to one server."""
    view, visitor = LiveView("x"), visit()
    with LiveServer(view.document) as server:
        first = visitor.open(server.url)
        tabs = [first, *(first.context.new_page() for _ in range(9))]
        trainer = run(view, lambda record: check_all())

        def check_all():
            for tab in tabs:
                if tab.url == "about:blank":
                    tab.goto(server.url)
                check_numbers(tab, trainer)

        trainer.fit()
        tabs.pop().close()
        view.end()
    for tab in tabs:
        expect(tab.locator("#status")).to_have_attribute("data-kind", "finished")


def test_a_browser_without_shared_workers_has_a_stream_of_its_own(visit):
    view, visitor = LiveView("x"), visit()
    visitor.page.add_init_script(
        "delete window.SharedWorker; window.sources = []; const Real = EventSource;"
        "window.EventSource = class extends Real { constructor(url) { super(url); sources.push(this); } }"
    )
    with LiveServer(view.document) as server:
        trainer = run(view, lambda record: check_numbers(visitor.page, trainer))
        visitor.open(server.url)
        trainer.fit()
        view.end()
    expect(visitor.page.locator("#status")).to_have_attribute("data-kind", "finished")
    assert visitor.page.evaluate("sources.map(source => source.readyState)") == [2]  # closed: it will not ask again
    assert f"{server.url}events" in visitor.requests
    assert visitor.complaints == []


@pytest.fixture
def one_token(monkeypatch):
    """Let all servers have the same token: as if one server were lost for a while, as through ssh."""
    monkeypatch.setattr(live_server.secrets, "token_urlsafe", lambda size: "x" * size)


def lose(visitor, monkeypatch):
    """Let a page follow a run that dies; give the port."""
    view = LiveView("x")
    with monkeypatch.context() as patch:
        patch.setattr(Document, "close", lambda self: None)  # as when the process is killed: nobody says good-bye
        with LiveServer(view.document) as server:
            visitor.open(server.url)
            run(view).fit()
            expect(visitor.page.locator("#epochs tr")).to_have_count(3)
    status = visitor.page.locator("#status")
    expect(status).to_have_attribute("data-kind", "lost")
    expect(status).to_contain_text("The run does not answer")
    return server.server_port


def test_a_resumed_run_has_another_address_and_the_page_says_so(visit, monkeypatch):
    visitor, again = visit(), LiveView("resumed")
    port = lose(visitor, monkeypatch)
    status = visitor.page.locator("#status")
    with LiveServer(again.document, port) as server:
        expect(status).to_contain_text("it printed a new one")
        expect(status).to_have_attribute("data-kind", "lost")
        expect(visitor.page.locator("h1")).to_have_text("x")
        visitor.page.goto(server.url)
        expect(status).to_have_attribute("data-kind", "training")


def test_a_run_that_is_lost_is_found_again(visit, monkeypatch, one_token):
    visitor = visit()
    port = lose(visitor, monkeypatch)
    status = visitor.page.locator("#status")
    again = LiveView("resumed")
    with LiveServer(again.document, port):
        resumed = run(again, lr=0.01)
        resumed.fit()
        expect(status).to_have_attribute("data-kind", "training")
        expect(visitor.page.locator("h1")).to_have_text("resumed")
        check_numbers(visitor.page, resumed)
        again.end()
    expect(status).to_have_attribute("data-kind", "finished")


def test_a_page_of_a_run_that_is_over_keeps_to_it(visit):
    view, visitor = LiveView("first"), visit()
    with LiveServer(view.document) as server:
        page = visitor.open(server.url)
        expect(page.locator("#status")).to_have_attribute("data-kind", "training")  # it follows
        trainer = run(view)
        trainer.fit()
        view.end()
    expect(page.locator("#status")).to_have_attribute("data-kind", "finished")
    other = LiveView("second")
    with LiveServer(other.document, server.server_port) as second:
        run(other, lr=0.01).fit()
        newcomer = page.context.new_page()
        newcomer.goto(second.url)
        expect(newcomer.locator("h1")).to_have_text("second")
        expect(newcomer.locator("#epochs tr")).to_have_count(3)
    assert page.locator("h1").inner_text() == "first"
    check_numbers(page, trainer)


def test_a_server_that_ends_before_its_run_began_says_that_it_is_over(visit):
    view, visitor = LiveView("x"), visit()
    with LiveServer(view.document) as server:
        page = visitor.open(server.url)
        expect(page.locator("#status-text")).to_have_text("preparing")
    expect(page.locator("#status-text")).to_have_text("The run is over; it did not say how it ended.")


def test_a_page_that_comes_too_late_for_its_feed_says_so(visit):
    visitor = visit()
    with LiveServer(Document()) as server:
        server.files.pop("live_feed.js")  # as if the server had gone in between
        page = visitor.open(server.url)
        expect(page.locator("#status")).to_contain_text("The run does not answer")


def test_a_pointer_reads_a_token(visit):
    view, visitor = LiveView("x"), visit(viewport={"width": 1280, "height": 2000})
    with LiveServer(view.document) as server:
        page = visitor.open(server.url)
        trainer = run(view)
        trainer.fit()
        view.end()
        expect(page.locator("#status")).to_have_attribute("data-kind", "finished")
        chosen = choose_images(trainer.validation)
        pixels = trainer.standardize(trainer.validation.images[chosen], 255, "float32")
        _, cache = trainer.model.forward(pixels)
        values = block_maps(trainer.model, cache, 1)[0].maps[0].values
        canvas = page.locator("#gates .row").first.locator(".maps canvas").nth(1)
        box = canvas.bounding_box()
        height, width = values.shape
        canvas.hover(position={"x": box["width"] * 4.5 / width, "y": box["height"] * 1.5 / height})
        text = page.locator("#under").inner_text()
        assert "token in row 2, column 5: " in text
        assert float(text.rpartition(" ")[2].replace("−", "-")) == pytest.approx(values[1, 4], rel=6e-3)
