"""The kinds of mistakes: each operator takes a node and yields functions that make one of it in a copy of the node."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

Edit = Callable[[Any], Any]
PACKAGE = Path(__file__).parents[2] / "minifocal"

ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
}  # fmt: skip
ORDER_MATTERS = (ast.Sub, ast.Div, ast.MatMult, ast.FloorDiv, ast.Mod, ast.Pow)
COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
FUNCTIONS = {"mean": "sum", "sum": "mean", "max": "min", "min": "max", "all": "any", "any": "all", "zeros": "ones"}
DROPPED_FUNCTIONS = (
    "abs", "as_rows", "beside", "cos", "erf", "exp", "float", "int", "log", "reversed", "round_to", "sorted", "sqrt",
    "tanh",
)  # fmt: skip
DROPPED_METHODS = ("astype", "max", "mean", "min", "reshape", "sum", "transpose")
# Their arguments may stand in any order.
SYMMETRIC = ("add", "check_same_shape", "get_array_module", "isinstance", "max", "min", "result_type")
# What may be called without the last argument; elsewhere Python itself refuses, as it does without `init`.
OPTIONAL_ARGUMENTS = ("forward", "get_array_module", "multiply_adds", "summarize", "layer_norm_forward", "replica")
PAIRS = (
    ("H", "W"), ("height", "width"), ("top", "left"), ("tops", "lefts"), ("rows", "columns"), ("above", "below"),
    ("left", "right"), ("i", "j"), ("before", "after"), ("beta1", "beta2"), ("mean", "square"), ("in_dim", "out_dim"),
    ("new_mean", "new_square"), ("mean_hat", "root_hat"), ("norm1", "norm2"), ("gamma_1", "gamma_2"), ("fc1", "fc2"),
    ("x", "dy"), ("x", "dz"), ("size", "stride"), ("data", "grad"), ("fan_in", "fan_out"), ("N", "C"), ("q", "ctx"),
    ("dctx", "dgates"), ("dq", "dctx"), ("batch", "takers"), ("old", "new"), ("ctx", "gates"), ("dq", "dmodulator"),
    ("focal_levels", "focal_windows"), ("peak", "final"), ("lr", "weight_decay"), ("lr", "momentum"),
)  # fmt: skip


@dataclass(frozen=True)
class Scope:
    """Where in a module a node stands."""

    module: ast.Module
    function: str = ""
    body: bool = False  # of a function
    statement: tuple[int, int] | None = None  # first and last line of the innermost one, or of its head
    types: dict[str, str] = field(default_factory=dict)  # annotations of the arguments
    names: frozenset[str] = frozenset()  # all names and attributes of the outermost function, or of the module


@dataclass(frozen=True)
class Place:
    """A node, and the way to it."""

    node: Any
    parent: ast.AST
    way: tuple[tuple[str, int | None], ...]  # fields and indices from the module to the node
    scope: Scope


def arithmetic(node: ast.AST, place: Place) -> Iterator[Edit]:
    """Another operator, operands exchanged, one operand left out."""
    if not isinstance(node, ast.BinOp) or _is_text(node.left):
        return
    if type(node.op) in ARITHMETIC:
        yield lambda n: _set(n, op=ARITHMETIC[type(n.op)]())
    if isinstance(node.op, ORDER_MATTERS):
        yield lambda n: ast.BinOp(n.right, n.op, n.left)
    yield lambda n: n.left
    if not isinstance(node.op, ast.Pow):
        yield lambda n: n.right


def in_place(node: ast.AST, place: Place) -> Iterator[Edit]:
    """`+=` becomes `=`, or the other sign."""
    if isinstance(node, ast.AugAssign):
        yield lambda n: ast.Assign([n.target], n.value)
        if type(node.op) in ARITHMETIC:
            yield lambda n: _set(n, op=ARITHMETIC[type(n.op)]())


def statement(node: ast.AST, place: Place) -> Iterator[Edit]:
    """A statement that changes something is left out."""
    stored = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript | ast.Attribute)
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    makes = place.scope.function.endswith("__init__")  # without an attribute nothing works
    if isinstance(node, ast.AugAssign) or called or (stored and not makes):
        yield lambda n: ast.Pass()


def sign(node: ast.AST, place: Place) -> Iterator[Edit]:
    """A minus, a `not` or a `~` is left out."""
    if isinstance(node, ast.UnaryOp) and not (isinstance(node.op, ast.USub) and _is_number(node.operand)):
        yield lambda n: n.operand


def comparison(node: ast.AST, place: Place) -> Iterator[Edit]:
    """The border moves, or the comparison turns round."""
    if isinstance(node, ast.Compare):
        for index, op in enumerate(node.ops):
            for other in COMPARISONS[type(op)]:
                yield lambda n, i=index, o=other: _set(n, ops=[*n.ops[:i], o(), *n.ops[i + 1 :]])


def logic(node: ast.AST, place: Place) -> Iterator[Edit]:
    """`and` becomes `or`; a part of a condition is left out."""
    if isinstance(node, ast.BoolOp):
        yield lambda n: _set(n, op=ast.Or() if isinstance(n.op, ast.And) else ast.And())
        for index in range(len(node.values)):
            yield lambda n, i=index: _only([*n.values[:i], *n.values[i + 1 :]], lambda rest: _set(n, values=rest))


def condition(node: ast.AST, place: Place) -> Iterator[Edit]:
    """A condition always holds, or never; a loop that would never end is spared."""
    if place.way[-1][0] in ("test", "ifs"):
        yield lambda n: ast.Constant(False)
        if not isinstance(place.parent, ast.While):
            yield lambda n: ast.Constant(True)


def constant(node: ast.AST, place: Place) -> Iterator[Edit]:
    """A number one more and, in a function, one less; a fraction half as much again; a truth value turned round."""
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and _is_number(node.operand)
    if isinstance(place.parent, ast.UnaryOp) and isinstance(place.parent.op, ast.USub) and not negative:
        return
    value = -node.operand.value if negative else node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, bool):
        yield lambda n: ast.Constant(not value)
    elif isinstance(value, int):
        yield lambda n: ast.Constant(value + 1)
        if place.scope.body and value > 0:
            yield lambda n: ast.Constant(value - 1)
    elif isinstance(value, float):
        yield lambda n: ast.Constant(1.5 * value if value else 1.0)


def bounds(node: ast.AST, place: Place) -> Iterator[Edit]:
    """Slices and ranges that end, or begin, elsewhere."""
    if isinstance(node, ast.Slice):
        for end in ("lower", "upper"):
            if getattr(node, end) is not None:
                yield lambda n, e=end: _set(n, **{e: None})
        if node.upper is not None and not _is_number(node.upper):
            yield lambda n: _set(n, upper=_less(n.upper))
    elif _calls(node) in ("range", "arange") and not _is_number(node.args[-1]):
        yield lambda n: _set(n, args=[*n.args[:-1], _less(n.args[-1])])


def call(node: ast.AST, place: Place) -> Iterator[Edit]:
    """An argument is forgotten; two are exchanged."""
    if not isinstance(node, ast.Call) or isinstance(node.func, ast.Lambda):
        return
    for index, keyword in enumerate(node.keywords):
        if keyword.arg not in ("strict", "init"):
            yield lambda n, i=index: _set(n, keywords=[*n.keywords[:i], *n.keywords[i + 1 :]])
    if len(node.args) > 1 and _calls(node) in OPTIONAL_ARGUMENTS:
        yield lambda n: _set(n, args=n.args[:-1])
    if _calls(node) not in SYMMETRIC and not any(isinstance(a, ast.Starred) for a in node.args):
        for index in range(len(node.args) - 1):
            yield lambda n, i=index: _set(n, args=_exchanged(n.args, i))


def function(node: ast.AST, place: Place) -> Iterator[Edit]:
    """A function is left out, or becomes its neighbour; so does an attribute that is a function of an array."""
    if isinstance(node, ast.Call):
        name = _calls(node)
        method = isinstance(node.func, ast.Attribute)
        of_library = method and isinstance(node.func.value, ast.Name) and node.func.value.id in ("xp", "math")
        if name in FUNCTIONS and (method or len(node.args) == 1):
            yield lambda n: _set(n, func=_renamed(n.func, FUNCTIONS[name]))
        if name in DROPPED_METHODS and method and not of_library:
            yield lambda n: n.func.value
        elif name in DROPPED_FUNCTIONS and node.args and not isinstance(node.args[0], ast.GeneratorExp):
            yield lambda n: n.args[0]
    elif isinstance(node, ast.Attribute) and node.attr == "T":
        yield lambda n: n.value


def neighbour(node: ast.AST, place: Place) -> Iterator[Edit]:
    """A name is taken for one like it: height for width, the first norm for the second."""
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
        name = node.id if isinstance(node, ast.Name) else node.attr
        for pair in PAIRS:
            if name in pair and set(pair) <= place.scope.names:
                yield lambda n, p=pair: _renamed(n, p[1] if name == p[0] else p[0])


def cache_field(node: ast.AST, place: Place) -> Iterator[Edit]:
    """Another field of the same cache."""
    if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
        return
    annotation = place.scope.types.get(node.value.id, "") if isinstance(node.value, ast.Name) else ""
    if isinstance(node.value, ast.Name) and node.value.id in ("self", "xp", "model", "config", "np", "math"):
        return
    for kind, names in named_tuples().items():
        if node.attr in names and (kind in annotation or not annotation):
            if len(names) > 1:
                yield lambda n, f=names: _renamed(n, f[(f.index(n.attr) + 1) % len(f)])
            return


def order(node: ast.AST, place: Place) -> Iterator[Edit]:
    """Two results are exchanged; an axis of several is left out."""
    if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load) and not isinstance(place.parent, ast.Subscript):
        axes = isinstance(place.parent, ast.keyword) and place.parent.arg == "axis"
        if axes:
            for index in range(len(node.elts)):
                yield lambda n, i=index: _set(n, elts=[*n.elts[:i], *n.elts[i + 1 :]])
        else:
            for index in range(len(node.elts) - 1):
                yield lambda n, i=index: _set(n, elts=_exchanged(n.elts, i))


OPERATORS = (
    arithmetic, in_place, statement, sign, comparison, logic, condition, constant, bounds, call, function, neighbour,
    cache_field, order,
)  # fmt: skip


@cache
def named_tuples() -> dict[str, list[str]]:
    """The fields of every cache of the package, by its name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Cache"):
                found[node.name] = [part.target.id for part in node.body if isinstance(part, ast.AnnAssign)]
    return found


def _set(node: Any, **fields: Any) -> Any:
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _only(values: list[Any], together: Callable[[list[Any]], Any]) -> Any:
    return values[0] if len(values) == 1 else together(values)


def _exchanged(values: list[Any], at: int) -> list[Any]:
    return [*values[:at], values[at + 1], values[at], *values[at + 2 :]]


def _less(node: Any) -> ast.BinOp:
    return ast.BinOp(node, ast.Sub(), ast.Constant(1))


def _renamed(node: Any, name: str) -> Any:
    return _set(node, **{"id" if isinstance(node, ast.Name) else "attr": name})


def _calls(node: Any) -> str:
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _is_number(node: Any) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
