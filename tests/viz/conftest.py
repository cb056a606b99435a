"""A real browser for the pages: Chromium without a window, which may open files and loopback and nothing else."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")


@pytest.fixture(scope="session")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """Chromium, found by its name or in the environment variable CHROMIUM."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        message = "no Chromium: install it (apt-get install chromium), or let CHROMIUM name its program"
        (pytest.fail if request.config.getoption("--require-browser") else pytest.skip)(message)
    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, and containers have none to give.
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS), chromium_sandbox=False)
        yield browser
        browser.close()


class Visit:
    """A page that has been opened, and all that it asked for or complained of.

    Attributes:
        page: as Playwright drives it.
        requests: addresses that it asked for, its own left out.
        complaints: errors and warnings on its console, and exceptions that nothing caught.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._hear)

    def open(self, address: str | Path) -> Page:
        """Go to a page and wait until it is there."""
        url = address.as_uri() if isinstance(address, Path) else address
        self.page.goto(url)
        self.requests = [asked for asked in self.requests if asked != url.partition("#")[0]]
        return self.page

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Open a new window: options as for Playwright's `new_context`, such as color_scheme or viewport."""
    contexts = []

    def visit(**options: Any) -> Visit:
        context = browser.new_context(**options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        return Visit(context.new_page())

    yield visit
    for context in contexts:
        context.close()
