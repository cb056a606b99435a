"""The house as its plan says: who may import whom, what stays in its room, and docstrings that name what is there."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import minifocal
from minifocal.ops import REFERENCE, Op

PACKAGE = Path(minifocal.__file__).parent
# From the ground up. A room is a folder or a file; it may import from rooms below its floor only, and within itself.
FLOORS = (
    ("errors",),
    ("arrays", "files", "safe_pickle", "threads"),
    ("functional", "data"),
    ("fused",),
    ("ops",),
    ("layers",),
    ("models", "training", "gradcheck"),
    ("interop", "viz", "learn", "bench"),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ENTRANCES = ("minifocal", "minifocal.__main__")  # they open the house to users and may name every room


def module_name(path: Path) -> str:
    parts = ("minifocal", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


HANDED_OUT = PACKAGE / "learn" / "exercises"  # what learners get and would write: files to copy, no modules
FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if HANDED_OUT not in path.parents}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}


def room(module: str) -> str:
    """The folder or file of the package that a module belongs to; none for the package itself."""
    return module.split(".")[1] if "." in module else ""


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: what stands under `if TYPE_CHECKING` does not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from statements(other)
        else:
            yield child
            yield from statements(child)


@cache
def imports(module: str) -> set[str]:
    """Full names of the modules that a file imports, at its top or in a function."""
    found = set()
    for node in statements(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively in line {node.lineno}"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = names & FILES.keys()
            found |= modules
            if len(modules) < len(names):
                found.add(node.module)
    return found


def importers(library: str) -> set[str]:
    """The files that import a library from outside."""
    return {module for module in FILES if any(name.split(".")[0] == library for name in imports(module))}


HOUSE = [module for module in FILES if module not in ENTRANCES]


def test_every_file_has_a_room_on_a_floor():
    assert {room(module) for module in HOUSE} <= FLOOR.keys(), "a new room needs a floor: enter it in FLOORS"


@pytest.mark.parametrize("module", HOUSE)
def test_a_file_imports_from_lower_floors_or_its_own_room(module):
    own = room(module)
    for name in imports(module):
        if name.split(".")[0] != "minifocal":
            continue
        if name == "minifocal":  # it imports every room, so only the top floor can have it back
            assert FLOOR[own] == len(FLOORS) - 1, f"{module} imports the whole package"
            continue
        below = FLOOR.get(room(name), len(FLOORS)) < FLOOR[own]
        assert room(name) == own or below, f"{module} imports {name}, which is not below it"


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_imports_within_a_room_go_one_way(name):
    graph = {
        module: {other for other in imports(module) if other in FILES and other != module and room(other) == name}
        for module in HOUSE
        if room(module) == name
    }
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))


@pytest.mark.parametrize(
    ("libraries", "allowed"),
    [
        (("cupy", "cupyx"), {"minifocal.arrays", "minifocal.fused.gpu"}),
        (("pickle", "_pickle", "dill", "cloudpickle", "joblib"), set()),
        (
            ("torch", "tensorflow", "jax", "autograd"),
            {module for module in HOUSE if room(module) in ("bench", "interop")},
        ),
    ],
    ids=["cupy", "pickle", "frameworks"],
)
def test_a_library_is_imported_only_where_it_belongs(libraries, allowed):
    assert set().union(*map(importers, libraries)) <= allowed


def test_the_mathematics_imports_no_array_library():
    """Only typing, math and the like, and the two rooms below."""
    for module in HOUSE:
        if room(module) == "functional":
            outside = {name.split(".")[0] for name in imports(module)} - {"minifocal"}
            assert outside <= {"math", "typing", "collections"}, module


@pytest.mark.parametrize("module", HOUSE)
def test_only_the_command_line_prints(module):
    lines = [
        node.lineno
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert room(module) == "cli" or not lines, f"{module} prints in lines {lines}"


# The operations

SINGLE = ("add", "sgd_update", "adamw_update", "clip", "unscale")  # functions that need no way back
ABOUT_THE_TABLE = ("name", "threaded", "precision")


def test_every_operation_of_the_table_has_both_ways():
    for field in fields(REFERENCE):
        op = getattr(REFERENCE, field.name)
        if field.name in SINGLE:
            assert op.__name__ == field.name
        elif field.name not in ABOUT_THE_TABLE:
            assert isinstance(op, Op), field.name
            assert op.forward.__name__ == f"{field.name}_forward"
            way_back = "drop" if field.name in ("drop_path", "dropout") else field.name
            assert op.backward.__name__ == f"{way_back}_backward"


def test_every_forward_function_has_its_backward_in_the_same_file():
    seen = set()
    for module in HOUSE:
        if room(module) != "functional":
            continue
        public = {name for name, function in functions(module) if not name.startswith("_")}
        forward = {name.removesuffix("_forward") for name in public if name.endswith("_forward")}
        backward = {name.removesuffix("_backward") for name in public if name.endswith("_backward")}
        wanted = {"drop" if name in ("drop_path", "dropout") else name for name in forward}
        assert wanted == backward, module
        seen |= forward
    assert seen == {field.name for field in fields(REFERENCE)} - {*ABOUT_THE_TABLE, *SINGLE}


# Docstrings


def functions(module: str) -> list[tuple[str, object]]:
    """Functions, classes and their methods that a module defines, by dotted name."""
    home = importlib.import_module(module)
    found = []
    for name, thing in inspect.getmembers(home, lambda t: inspect.isfunction(t) or inspect.isclass(t)):
        if thing.__module__ == module:
            found.append((name, thing))
            if inspect.isclass(thing):
                methods = ((key, getattr(value, "__func__", value)) for key, value in vars(thing).items())
                found += [(f"{name}.{key}", method) for key, method in methods if inspect.isfunction(method)]
    return found


def documented_arguments(docstring: str) -> list[str]:
    """The names in front of a colon under "Args:", at the start of a line or of a sentence, alone or in a group."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", inspect.cleandoc(docstring), re.MULTILINE)
    if section is None:
        return []
    entry = re.compile(r"(?:^    |(?<=\. ))([a-z_]\w*(?:, [a-z_]\w*)*): ", re.MULTILINE)
    return [name for group in entry.findall(section[1]) for name in group.split(", ")]


DOCUMENTED = [
    (f"{module}.{name}", thing)
    for module in HOUSE
    if room(module) in ("functional", "layers", "models", "gradcheck", "interop", "safe_pickle", "files", "errors")
    for name, thing in functions(module)
    if "Args:" in (thing.__doc__ or "")
]


@pytest.mark.parametrize(("name", "thing"), DOCUMENTED, ids=[name for name, _ in DOCUMENTED])
def test_every_documented_argument_exists(name, thing):
    documented = documented_arguments(thing.__doc__)
    assert documented, "an Args section that names nothing"
    assert set(documented) <= set(inspect.signature(thing).parameters)


def test_public_operations_document_all_their_arguments():
    for name, thing in DOCUMENTED:
        if name.startswith("minifocal.functional."):
            assert set(documented_arguments(thing.__doc__)) == set(inspect.signature(thing).parameters), name


def test_names_under_args_are_found_alone_in_groups_and_after_a_sentence():
    """The reader of docstrings itself."""
    text = """Do.

    Args:
        x: (B, C), float. Tokens outside count as zero: always.
        weight, bias: (C,).
            eps: of a line that goes on.
        size: P. stride: the step.
    Returns:
        y: not an argument.
    """
    assert documented_arguments(text) == ["x", "weight", "bias", "size", "stride"]
    assert documented_arguments("Nothing to see.") == []
