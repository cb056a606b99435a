"""A workload of a moment and tables of operations, known by their names."""

import pytest
from micro import MICRO

from minifocal import ops
from minifocal.bench import measure
from minifocal.bench.workloads import WORKLOADS


@pytest.fixture
def micro(monkeypatch):
    """The workload, known to the command line, and measured without pauses."""
    monkeypatch.setitem(WORKLOADS, MICRO.name, MICRO)
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    return MICRO


@pytest.fixture
def plant(monkeypatch):
    """Make a table of operations known by its name."""
    planted = {}

    def get_ops(name="auto", *device):
        return planted[name] if name in planted else ops.get_ops(name, *device)

    for module in ("minifocal.models.focalnet", "minifocal.cli.bench"):
        monkeypatch.setattr(f"{module}.get_ops", get_ops)
    return lambda table: planted.update({table.name: table})
