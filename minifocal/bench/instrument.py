"""Looking into a network that runs: its table of operations, exchanged for one that watches."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from minifocal.ops import Op, Ops


def wrap_ops(ops: Ops, wrap: Callable[[str, str, Callable[..., Any]], Callable[..., Any]]) -> Ops:
    """Exchange every function of a table.

    Args:
        ops: the table.
        wrap: given the operation's name, "forward" or "backward", and the function, it gives the one to call instead.
            A function without a way back counts as forward.
    """
    wrapped: dict[str, Any] = {}
    for field in fields(ops):
        op = getattr(ops, field.name)
        if isinstance(op, Op):
            wrapped[field.name] = Op(*(wrap(field.name, way, function) for way, function in op._asdict().items()))
        elif callable(op):
            wrapped[field.name] = wrap(field.name, "forward", op)
    return replace(ops, **wrapped)
