"""Mutants: the package's arithmetic with one small mistake in it, made from the syntax tree.

A mutant is named by its module, the function, the text of the line and the change, and not by a line's number: an edit
elsewhere leaves its name as it is. Left alone is what computes nothing: docstrings, annotations, decorators, imports,
the texts of errors, `__repr__`, and the `strict` of zips, which guards against callers that do not exist.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mutant_kinds import OPERATORS, Place, Scope

ROOT = Path(__file__).parents[2]
ROOMS = ("minifocal/functional", "minifocal/layers", "minifocal/models")
TRAINING = ("augment", "distributed", "loss_scale", "optim", "schedule", "shards")
ALSO = tuple(f"minifocal/training/{name}.py" for name in TRAINING)


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        path: of the module, from the root of the repository.
        function: dotted name of the outermost function, with its class; "" in the module's or a class's body.
        line: text of the line. change: "before -> after", and a number where the line has several of the kind.
        at: first and last line of the statement; of the function, where it lies in the signature.
        body: whether the change lies in a function's body, which can be exchanged by itself.
        tree: gives the module's tree with the mistake in it.
    """

    path: str
    function: str
    line: str
    change: str
    at: tuple[int, int] = field(compare=False)
    body: bool = field(compare=False)
    tree: Callable[[], ast.Module] = field(compare=False, repr=False)

    @property
    def name(self) -> tuple[str, str, str, str]:
        """What it is called in the records."""
        return self.path, self.function, self.line, self.change


def sources() -> list[str]:
    """The modules that are mutated, as paths from the root."""
    files = (path for room in ROOMS for path in sorted((ROOT / room).glob("*.py")) if path.name != "__init__.py")
    return [path.relative_to(ROOT).as_posix() for path in files] + list(ALSO)


def all_mutants() -> list[Mutant]:
    """Every mutant of every module, in the order of the text."""
    return [mutant for path in sources() for mutant in mutants_of(path, (ROOT / path).read_text(encoding="utf-8"))]


def mutants_of(path: str, source: str) -> list[Mutant]:
    """Every mutant of a module."""
    tree = ast.parse(source)
    lines = source.splitlines()
    found, seen = [], {}
    for place in _places(tree, Scope(tree)):
        for change, edit in _changes(place):
            line = lines[place.node.lineno - 1].strip()
            key = (place.scope.function, line, change)
            seen[key] = seen.get(key, 0) + 1
            numbered = change if seen[key] == 1 else f"{change} ({seen[key]})"
            build = _builder(tree, place, edit)
            span = place.scope.statement or (place.node.lineno, place.node.end_lineno)
            found.append(Mutant(path, key[0], line, numbered, span, place.scope.body, build))
    return found


def _places(node: ast.AST, scope: Scope, way: tuple[tuple[str, int | None], ...] = ()) -> Iterator[Place]:
    """Go through all nodes that compute something."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", "format_spec", "type_comment", "ctx"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or _computes_nothing(child):
                continue
            inner = _enter(child, name, node, scope)
            here = (*way, (name, index))
            if hasattr(child, "lineno"):
                yield Place(child, node, here, inner)
            yield from _places(child, inner, here)


def _enter(child: ast.AST, name: str, parent: ast.AST, scope: Scope) -> Scope:
    if isinstance(child, ast.FunctionDef) and not scope.body:
        return _function(
            child, f"{parent.name}.{child.name}" if isinstance(parent, ast.ClassDef) else child.name, scope
        )
    if isinstance(parent, ast.FunctionDef) and name == "body":
        scope = replace(scope, body=True)
    if isinstance(child, ast.stmt):
        body = getattr(child, "body", None)
        last = max(child.lineno, body[0].lineno - 1) if body else child.end_lineno  # of several: that of its head
        scope = replace(scope, statement=(child.lineno, last))
    return scope


def _function(node: ast.FunctionDef, qualified: str, scope: Scope) -> Scope:
    arguments = [*node.args.args, *node.args.kwonlyargs]
    types = {a.arg: ast.unparse(a.annotation) for a in arguments if a.annotation}
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | set(types)
    names |= {n.attr for n in ast.walk(scope.module) if isinstance(n, ast.Attribute)}
    lines = (node.lineno, node.end_lineno)  # a default is seen where the function runs
    return Scope(scope.module, qualified, statement=lines, types=types, names=frozenset(names))


def _computes_nothing(node: ast.AST) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.FunctionDef):
        return node.name == "__repr__"
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    if isinstance(node, ast.Assign):  # of a name for a type
        return isinstance(node.value, ast.Subscript) and ast.unparse(node.value.value) in ("tuple", "Callable")
    if isinstance(node, ast.AnnAssign):
        return node.value is None or ast.unparse(node.annotation) == "TypeAlias"
    return isinstance(node, ast.keyword) and node.arg == "strict"


def _builder(tree: ast.Module, place: Place, edit: Callable[[Any], Any]) -> Callable[[], ast.Module]:
    def build() -> ast.Module:
        module = copy.deepcopy(tree)
        node: Any = module
        for name, index in place.way[:-1]:
            node = getattr(node, name) if index is None else getattr(node, name)[index]
        name, index = place.way[-1]
        owner = getattr(node, name)
        old = owner if index is None else owner[index]
        new = ast.copy_location(edit(old), old)
        if index is None:
            setattr(node, name, new)
        else:
            owner[index] = new
        return ast.fix_missing_locations(module)

    return build


def _changes(place: Place) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Every mistake at one node: how it reads, and a function that makes it of the node's copy."""
    before, told = None, set()
    for operator in OPERATORS:
        for edit in operator(place.node, place):
            before = before or ast.unparse(place.node)
            new = ast.copy_location(edit(copy.deepcopy(place.node)), place.node)
            after = ast.unparse(ast.fix_missing_locations(new))
            if after != before and after not in told:
                told.add(after)
                yield f"{_short(before)} -> {_short(after)}", edit


def _short(code: str) -> str:
    text = " ".join(code.split())
    return text if len(text) <= 90 else f"{text[:60]}...{text[-27:]}"
