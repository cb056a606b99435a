"""What happened in a pass, call by call: recorded while it happens, with nothing of the library changed.

Python tells a profiler of every call and every return. The recorder listens for the forward and backward methods of
layers and for the operations in `functional/`, and keeps what went in and what came out as a tree: a network's
forward pass holds its stages', a stage's its blocks', down to the operations.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import CodeType, FrameType
from typing import Any

import numpy as np

from minifocal import functional
from minifocal.arrays import Array, overflow_is_looked_for
from minifocal.errors import InputError
from minifocal.functional.add import add
from minifocal.functional.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minifocal.functional.drop_path import DropCache
from minifocal.layers.base import Layer
from minifocal.models.focalnet import FocalNet

FORWARD, BACKWARD = "forward", "backward"


@dataclass(eq=False)
class Call:
    """One call of a layer's forward or backward method, or of an operation.

    Attributes:
        function: that ran. arguments: by name, without `self`. result: what it returned.
        path: the layer, as attributes lead to it from the network; of an operation, the layer that called it.
        layer: whose method it is; None of an operation.
        inside: the calls that it made, in order.
        wrapper: of an operation that is all its layer does, the layer's own method; None of others.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    path: str
    layer: Layer | None
    inside: list["Call"] = field(default_factory=list)
    result: Any = None
    wrapper: Callable[..., Any] | None = None

    @property
    def operation(self) -> str:
        """Name of the operation, such as "linear"; "" of a layer's method."""
        return "" if self.layer is not None else self.function.__name__.removesuffix("_" + self.way)

    @property
    def way(self) -> str:
        """Forward or backward."""
        return BACKWARD if self.function.__name__.endswith(BACKWARD) else FORWARD

    @property
    def kept(self) -> Any:
        """The cache: what forward returned beside its results, and backward was given; None where there is none."""
        if self.function is add:
            return None
        return self.arguments["cache"] if self.way == BACKWARD else self.result[-1]

    def walk(self) -> Iterator["Call"]:
        """Go through this call and all inside it, in the order in which they began."""
        yield self
        for call in self.inside:
            yield from call.walk()


@dataclass(frozen=True)
class Recording:
    """A forward pass, the loss, and the way back.

    Attributes:
        model: the network; its parameters hold the gradients. logits: (1, N). loss: of the label.
        calls: of the network's forward, the loss's forward and backward, and the network's backward.
    """

    model: FocalNet
    logits: Array
    loss: float
    calls: tuple[Call, ...]

    def walk(self) -> Iterator[Call]:
        """Go through all calls in order."""
        for call in self.calls:
            yield from call.walk()


def record(model: FocalNet, images: Array, labels: Array) -> Recording:
    """Record inference, the loss and the way back.

    Args:
        model: with the table "reference", on the CPU, in float64, and with a classifier; its gradients are cleared.
        images: (1, in_chans, H, W). labels: (1,).
    Raises:
        InputError: another table, device or dtype, no classifier, or an answer that is not finite.
    """
    if model.ops.name != "reference" or model.ops.precision != "float32" or model.dtype != "float64":
        raise InputError(
            'a pass is recorded in float64 with ops "reference", the code that you read; this network computes in '
            f'{model.dtype} with ops "{model.ops.name}"'
        )
    if model.head is None:
        raise InputError("this network has no classifier, so there is no loss to go back from")
    model.zero_grad()
    recorder = _Recorder(model)
    with recorder.listening(), overflow_is_looked_for():
        logits, cache = model.forward(images)
        loss, loss_cache = cross_entropy_forward(logits, labels)
        dlogits = cross_entropy_backward(loss_cache)
        model.backward(dlogits, cache)
    if not all(np.isfinite(array).all() for array in (logits, loss)):
        raise InputError("the network's answer to this image is not finite: its weights or the image are too large")
    calls = tuple(call for made in recorder.root.inside if (call := _simplified(made)) is not None)
    return Recording(model, logits, float(loss), calls)


class _Recorder:
    """Keeps the calls under way as a stack; `root` holds the finished ones."""

    def __init__(self, model: FocalNet) -> None:
        self.paths = {id(layer): path for path, layer in _named_layers(model, "")}
        methods: dict[CodeType, Callable[..., Any]] = {
            method.__code__: method
            for layer in model.layers_inside()
            for method in (type(layer).forward, type(layer).backward)
        }
        self.watched: dict[CodeType, Callable[..., Any]] = {**_operations(), **methods}
        self.root = Call(record, {}, "", None)
        self.stack = [self.root]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of every call inside the `with` block, on this thread."""
        before = sys.getprofile()
        sys.setprofile(self._hear)
        try:
            yield
        finally:
            # Before Python 3.12 cProfile listens by other means: it cannot be called here, nor put back.
            sys.setprofile(before if callable(before) else None)

    def _hear(self, frame: FrameType, event: str, value: Any) -> None:
        function = self.watched.get(frame.f_code)
        if function is None or event not in ("call", "return"):
            return
        if event == "return":
            self.stack.pop().result = value
            return
        arguments = dict(frame.f_locals)
        layer = arguments.pop("self", None)
        path = self.stack[-1].path if layer is None else self.paths[id(layer)]
        call = Call(function, arguments, path, layer)
        self.stack[-1].inside.append(call)
        self.stack.append(call)


@cache
def _operations() -> dict[CodeType, Callable[..., Any]]:
    """Every operation in `functional/`, with its way back."""
    found: list[Any] = [add]
    for module in pkgutil.iter_modules(functional.__path__):
        names = vars(importlib.import_module(f"{functional.__name__}.{module.name}"))
        found += [f for name, f in names.items() if name.endswith((f"_{FORWARD}", f"_{BACKWARD}"))]
    return {function.__code__: function for function in found}


def _named_layers(layer: Layer, path: str) -> Iterator[tuple[str, Layer]]:
    yield path, layer
    for name, child in layer.children():
        yield from _named_layers(child, f"{path}.{name}" if path else name)


def _simplified(call: Call) -> Call | None:
    """Leave out what does nothing (drop path and dropout at rest) and layers that pass everything to one operation."""
    if _does_nothing(call):
        return None
    call.inside = [part for part in map(_simplified, call.inside) if part is not None]
    only = call.inside[0] if len(call.inside) == 1 else None
    if call.layer is not None and only is not None and only.layer is None:
        only.wrapper, only.path = call.function, call.path
        return only
    return call


def _does_nothing(call: Call) -> bool:
    return isinstance(call.kept, DropCache) and call.kept.scale is None


def arrays_of(values: Any) -> list[np.ndarray]:
    """All arrays in tuples of tuples, in order."""
    if isinstance(values, tuple | list):
        return [array for value in values for array in arrays_of(value)]
    return [values] if isinstance(values, np.ndarray) else []
