"""What the arrays of a recorded call are called: those that went in, came out, came back and go on."""

import inspect
from typing import Any

import numpy as np

from minifocal.viz.operations import CARDS, UNGATED_LEVEL, Card
from minifocal.viz.recorder import Call, arrays_of


def card_of(call: Call) -> Card:
    """Give what is said of an operation as it was called."""
    if call.operation == "focal_level" and call.kept.gate is None:
        return UNGATED_LEVEL
    return CARDS[call.operation]


def inputs_of(call: Call) -> list[tuple[str, np.ndarray]]:
    """The arrays that went in, by name; the cache is told of elsewhere."""
    found = []
    for name, value in call.arguments.items():
        if name == "cache":
            continue
        if isinstance(value, tuple) and any(isinstance(part, np.ndarray) for part in value):
            found += list(zip(CARDS[call.operation].upstream, value, strict=True))
        elif isinstance(value, np.ndarray):
            found.append((name, value))
    return found


def settings_of(call: Call) -> list[tuple[str, Any]]:
    """What went in that is no array, by name: sizes, and a number or nothing where an array may stand."""
    return [
        (name, value) for name, value in call.arguments.items() if name not in ("cache", "rng") and not arrays_of(value)
    ]


def outputs_of(call: Call) -> list[tuple[str, np.ndarray]]:
    """What forward returned before its cache, by name; a loss, one number, as an array without axes."""
    result = call.result if call.kept is None else call.result[:-1]
    names = CARDS[call.operation].outputs if call.operation else _layer_outputs(call)
    return [(name, np.asarray(value)) for name, value in zip(names, flat(result), strict=True)]


def gradients_of(call: Call) -> list[tuple[str, np.ndarray]]:
    """The arrays that backward returned, each called after the forward argument whose gradient it is."""
    values = flat(call.result)
    names = CARDS[call.operation].gradients if call.operation else _layer_gradients(call)
    return [(name, value) for name, value in zip(names, values, strict=True) if isinstance(value, np.ndarray)]


def _layer_outputs(call: Call) -> tuple[str, ...]:
    arguments = inspect.signature(type(call.layer).backward).parameters  # type: ignore[union-attr]
    return tuple(name.removeprefix("d") for name in arguments if name not in ("self", "cache"))


def _layer_gradients(call: Call) -> tuple[str, ...]:
    arguments = inspect.signature(type(call.layer).forward).parameters  # type: ignore[union-attr]
    names = [name for name in arguments if name not in ("self", "rng")]
    return tuple(f"d{name}" for name in names)


def upstream_of(call: Call) -> list[Any]:
    """What came back to each output of forward, in their order."""
    return [part for name, value in call.arguments.items() if name != "cache" for part in flat(value)]


def flat(value: Any) -> list[Any]:
    """Give the items of tuples of tuples, in order; a cache, or what is no tuple, is one item."""
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return [part for item in value for part in flat(item)]
    return [value]
