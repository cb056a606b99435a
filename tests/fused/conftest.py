"""What the tests of the fast tables share."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from minifocal import threads
from minifocal.fused import blocks


@pytest.fixture
def three_threads(monkeypatch):
    """Split all work, however little, over three threads, whatever the machine has."""
    with ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(threads, "thread_count", lambda: 3)
        monkeypatch.setattr(threads, "LEAST_WORK", 1)
        monkeypatch.setattr(threads, "_pool", lambda: pool)
        yield


@pytest.fixture
def small_blocks(monkeypatch):
    """Go through arrays in many blocks, as through large ones."""
    monkeypatch.setattr(blocks, "BLOCK", 16)


@pytest.fixture(params=["at once", "small blocks", "three threads"])
def every_way(request):
    """Compute in this thread, all at once; then in blocks; then in three threads."""
    if request.param != "at once":
        request.getfixturevalue(request.param.replace(" ", "_"))
