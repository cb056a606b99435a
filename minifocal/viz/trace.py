"""A recorded pass as data for the step-through page: steps, arrays, sources, caches, and every gradient checked."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import minifocal.viz.recorder as recorder
from minifocal.arrays import random_generator
from minifocal.functional.cross_entropy import log_softmax
from minifocal.models.config import FOCAL
from minifocal.models.focalnet import FocalNet
from minifocal.models.modulation import SigmoidGateCache
from minifocal.viz.call_arrays import card_of, gradients_of, inputs_of, outputs_of, settings_of
from minifocal.viz.operations import part_title
from minifocal.viz.recorder import BACKWARD, FORWARD, Call, Recording, arrays_of
from minifocal.viz.trace_checks import check_call

PACKAGE = Path(inspect.getfile(recorder)).parents[1]
PASSES = (
    ("The forward pass", FORWARD),
    ("The loss", FORWARD),
    ("Back from the loss", BACKWARD),
    ("The backward pass", BACKWARD),
)


@dataclass
class Trace:
    """What the page is made of.

    Attributes:
        pixels: (1, H, W) or (3, H, W), from 0 to 1: the image.
        steps: in the order in which they began, each a dict ready for JSON; an array is an index into `arrays`.
        arrays: every array of the pass, once.
        sources: the functions that ran, each a dict of its file, first line and text.
        about: what the layers compute, in the words of their classes, by name.
        summary: of the network and the answer.
    """

    pixels: np.ndarray
    steps: list[dict[str, Any]] = field(default_factory=list)
    arrays: list[np.ndarray] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


def make_trace(
    recording: Recording,
    pixels: np.ndarray,
    label: int,
    class_names: list[str],
    name: str,
    on_step: Callable[[], object] | None = None,
) -> Trace:
    """Describe a recorded pass, and check its gradients.

    A gradient is checked against the complex step of its own operation, Im f(x + ih)/h, exact to rounding, or where
    that is refused against central differences: its largest elements and some drawn at random.

    Args:
        recording: of one image.
        pixels: (1, H, W) or (3, H, W), from 0 to 1: the image as a person sees it.
        label: of the loss. class_names: of all classes. name: of the image.
        on_step: is called after each step.
    """
    return _Maker(recording, pixels, on_step).make(label, class_names, name)


class _Maker:
    def __init__(self, recording: Recording, pixels: np.ndarray, on_step: Callable[[], object] | None) -> None:
        self.recording, self.on_step = recording, on_step
        self.trace = Trace(pixels)
        self.numbers: dict[int, int] = {}  # of arrays, by identity; `trace.arrays` keeps them alive
        self.makers: dict[int, int] = {}  # of arrays by number: the innermost step that returned it first
        self.source_numbers: dict[Callable[..., Any], int] = {}
        self.names = {id(p.data): name for name, p in recording.model.named_parameters()}
        self.forward_calls = {
            id(call.kept): call for call in recording.walk() if call.way == FORWARD and call.kept is not None
        }
        self.gatings = {id(call.kept.gating) for call in recording.walk() if isinstance(call.kept, SigmoidGateCache)}
        self.slugs: dict[str, int] = {}
        self.rng = random_generator(0)

    def make(self, label: int, class_names: list[str], name: str) -> Trace:
        for call, (title, way) in zip(self.recording.calls, PASSES, strict=True):
            self.trace.steps[self._add(call, None, way, 0)]["title"] = title
        config = self.recording.model.config
        probabilities = np.exp(log_softmax(self.recording.logits))[0]
        self.trace.summary = {
            "name": name,
            "modulation": config.modulation,
            "parameters": self.recording.model.count_parameters(),
            "dims": config.dims,
            "depths": config.depths,
            "levels": config.focal_levels,
            "label": label,
            "loss": self.recording.loss,
            "classes": class_names,
            "probabilities": self._array(probabilities),
            "playground": self._playground(),
        }
        for step in self.trace.steps:
            for shown in step["in"]:
                maker = self.makers.get(shown["array"])
                if maker is not None and maker < step["number"]:
                    shown["from"] = maker
        return self.trace

    def _add(self, call: Call, parent: int | None, way: str, depth: int) -> int:
        number = len(self.trace.steps)
        step: dict[str, Any] = {"number": number, "parent": parent, "depth": depth, "way": way, "path": call.path}
        self.trace.steps.append(step)
        step |= self._words(call, way)
        step["slug"] = self._slug(call, way)
        step["in"] = [self._named(name, array) for name, array in inputs_of(call)]
        step["settings"] = [[name, repr(value)] for name, value in settings_of(call)]
        results = gradients_of(call) if call.way == BACKWARD else outputs_of(call)
        step["out"] = [self._named(name, array) for name, array in results]
        if call.way == BACKWARD:
            checks = check_call(call, self.forward_calls[id(call.kept)], results, self.rng)
            for shown in step["out"]:
                shown["check"] = checks[shown["name"]]
        if isinstance(call.layer, FocalNet):  # images and their gradient are (B, C, H, W)
            for shown in step["in" if call.way == FORWARD else "out"]:
                shown["channels_first"] = True
        step["kept"] = self._kept(call)
        step["sources"] = [self._source(f) for f in (call.function, call.wrapper) if f is not None]
        step["parameters"] = self._parameters(call)
        step["steps"] = [self._add(part, number, way, depth + 1) for part in call.inside]
        for _, array in results:
            self.makers.setdefault(self._array(array), number)
        if self.on_step is not None:
            self.on_step()
        return number

    def _words(self, call: Call, way: str) -> dict[str, Any]:
        model, back = self.recording.model, way == BACKWARD
        if not call.operation:
            title = part_title(call.path, model)
            says = (call.function.__doc__ or "").strip().partition("\n")[0]
            layer = type(call.layer)
            self.trace.about[layer.__name__] = _about(layer)
            return {"title": title, "says": says, "formulas": [], "about": layer.__name__}
        card = card_of(call)
        title = card.title if call.wrapper is None else part_title(call.path, model)
        weight = call.arguments.get("weight")
        if call.operation == "focal_level":
            conv = call.kept.conv.weight if weight is None else weight
            title += f" of {conv.shape[0]} × {conv.shape[0]}"
        if call.operation == "box_mean":
            title += f" over {call.kept.width} token{'s' if call.kept.width > 1 else ''}"
        if id(call.kept) in self.gatings:
            title = "Context times gates"
        if back and call.way != BACKWARD:  # a sum on the way back
            title = "Sum of two gradients"
        return {
            "title": title,
            "operation": call.operation,
            "says": card.says_back if back else card.says,
            "formulas": card.formulas_back if back else card.formulas,
        }

    def _slug(self, call: Call, way: str) -> str:
        names = [way, call.path, call.operation if call.wrapper is None else ""]
        slug = "/".join(filter(None, names))
        count = self.slugs[slug] = self.slugs.get(slug, 0) + 1
        return slug if count == 1 else f"{slug}/{count}"

    def _array(self, array: np.ndarray) -> int:
        """Number an array; one that is met again keeps its number."""
        if id(array) not in self.numbers:
            self.numbers[id(array)] = len(self.trace.arrays)
            self.trace.arrays.append(array)
        return self.numbers[id(array)]

    def _named(self, name: str, array: np.ndarray) -> dict[str, Any]:
        shown: dict[str, Any] = {"name": name, "array": self._array(array)}
        if id(array) in self.names:
            shown["parameter"] = self.names[id(array)]
        return shown

    def _kept(self, call: Call) -> list[dict[str, Any]]:
        """List what the cache holds: arrays, or for parts of a tree how many numbers."""
        kept = call.kept
        if kept is None or not hasattr(kept, "_fields"):
            fields: Iterator[tuple[str, Any]] = iter([("", kept)] if kept is not None else [])
        else:
            fields = zip(kept._fields, kept, strict=True)
        known = (
            {id(array): name for name, array in (*inputs_of(call), *outputs_of(call))} if call.way == FORWARD else {}
        )
        found = []
        for name, value in fields:
            item: dict[str, Any] = {"name": name, "type": type(value).__name__}
            if isinstance(value, np.ndarray):
                item |= {"array": self._array(value), "same": known.get(id(value)) or self.names.get(id(value))}
            elif arrays := arrays_of(value):
                unique = {id(array): array.size for array in arrays}
                item |= {"arrays": len(unique), "numbers": sum(unique.values())}
            else:
                item["value"] = repr(value)
            found.append(item)
        return found

    def _source(self, function: Callable[..., Any]) -> int:
        if function not in self.source_numbers:
            self.source_numbers[function] = len(self.trace.sources)
            self.trace.sources.append(_source_of(function))
        return self.source_numbers[function]

    def _parameters(self, call: Call) -> list[dict[str, Any]]:
        """The parameters inside a layer, with the sizes of their gradients; only on the way back."""
        if call.layer is None or call.way != BACKWARD:
            return []
        inside = {id(p) for p in call.layer.parameters()}
        return [
            {"name": name, "shape": p.data.shape, "norm": float(np.linalg.norm(p.grad))}
            for name, p in self.recording.model.named_parameters()
            if id(p) in inside
        ]

    def _playground(self) -> list[dict[str, Any]]:
        """The arrays of each block's modulation that the playgrounds compute with."""
        blocks = []
        model = self.recording.model
        cache = self.recording.calls[0].result[1]
        for stage, (layer, stage_cache) in enumerate(zip(model.layers, cache.layers, strict=True)):
            for number, (block, block_cache) in enumerate(zip(layer.blocks, stage_cache.blocks, strict=True)):
                blocks.append(
                    {"name": f"stage {stage + 1}, block {number + 1}"}
                    | self._modulation(model, block.modulation, block_cache.modulation)
                )
        return blocks

    def _modulation(self, model: FocalNet, modulation: Any, seen: Any) -> dict[str, Any]:
        arrays: dict[str, Any] = {"q": seen.q, "gates": seen.gates, "modulator": seen.modulator}
        if model.config.modulation == FOCAL:
            levels = seen.context.levels
            arrays["contexts"] = [level.ctx for level in levels] + [seen.context.global_level.ctx_global]
            arrays |= {"weight": modulation.h.weight.data, "bias": modulation.h.bias.data}
        elif hasattr(seen.gather, "levels"):
            levels = seen.gather.levels.levels
            arrays["contexts"] = [level.ctx for level in levels]
        else:
            levels = ()
            arrays["contexts"] = [seen.ctx]
        arrays["maps"] = [level.conv.x for level in levels] or [seen.q]
        arrays["kernels"] = [level.conv.weight for level in levels]
        return {
            name: [self._array(a) for a in value] if isinstance(value, list) else self._array(value)
            for name, value in arrays.items()
        }


def _about(layer: type) -> str:
    """The docstring of a class without its arguments."""
    return re.split(r"\n\n(?:Args|Attributes|Raises|Source):", inspect.getdoc(layer) or "")[0]


@cache
def _source_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The text of a function without its docstring, and where it stands."""
    lines, first = inspect.getsourcelines(function)
    definition = ast.parse(textwrap.dedent("".join(lines))).body[0]
    assert isinstance(definition, ast.FunctionDef)
    body = definition.body
    skipped = range(0)
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        skipped = range(body[0].lineno - 1, body[0].end_lineno or body[0].lineno)
    text = textwrap.dedent("".join(lines)).splitlines()
    shown = [[first + number, line] for number, line in enumerate(text) if number not in skipped]
    path = Path(inspect.getfile(function)).relative_to(PACKAGE.parent)
    return {"file": path.as_posix(), "name": function.__qualname__, "lines": shown}
