"""Run a tutorial as `python` would, and note which of its assertions were passed and what it drew.

    python tests/tutorials/running.py tutorials/04_layer_norm.py --figures FOLDER

prints one JSON object as its last line: lines of assertions, lines of those that were passed, pictures, and those
that say neither by labels nor by titles what they show. There is no network.
"""

import argparse
import ast
import json
import os
import socket
import sys
import types
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"


class _Noting(ast.NodeTransformer):
    """Put a note behind every assertion: it is reached when the assertion holds."""

    def __init__(self) -> None:
        self.lines: list[int] = []

    def note(self, node: ast.stmt) -> list[ast.stmt]:
        self.lines.append(node.lineno)
        call = ast.parse(f"__passed__.add({node.lineno})").body[0]
        return [node, ast.fix_missing_locations(ast.copy_location(call, node))]

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        return self.note(node)

    def visit_Expr(self, node: ast.Expr) -> ast.stmt | list[ast.stmt]:
        """`np.testing.assert_allclose(...)` and its like assert too."""
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).startswith("np.testing.assert_"):
            return self.note(node)
        return node


def _says_what_it_shows(axes) -> bool:
    texts = (axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(text.get_text() for text in axes.texts))
    return any(texts)


def run(path: Path, figures: Path | None) -> dict[str, list]:
    """Run it; `figures` gets a PNG file for every figure that it shows."""
    import matplotlib.pyplot as plt

    noting = _Noting()
    tree = noting.visit(ast.parse(path.read_text(encoding="utf-8")))
    pictures: list[str] = []
    nameless: list[str] = []

    def refuse(*_: object, **__: object) -> None:
        raise OSError("a tutorial needs no network")

    socket.socket.connect = refuse

    def show(*_: object, **__: object) -> None:
        for number in plt.get_fignums():
            pictures.append(f"{path.stem}-{len(pictures) + 1}.png")
            if not any(map(_says_what_it_shows, plt.figure(number).axes)):
                nameless.append(pictures[-1])
            if figures is not None:
                figures.mkdir(parents=True, exist_ok=True)
                plt.figure(number).savefig(figures / pictures[-1], dpi=100)
        plt.close("all")

    plt.show = show
    passed: set[int] = set()
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    vars(module).update(__passed__=passed, __file__=str(path))
    exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), vars(module))
    left_open = len(plt.get_fignums())
    return {
        "assertions": noting.lines,
        "passed": sorted(passed),
        "pictures": pictures,
        "nameless": nameless,
        "never_shown": [f"{left_open} figures"] * bool(left_open),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tutorial", type=Path)
    parser.add_argument("--figures", type=Path)
    args = parser.parse_args()
    print(json.dumps(run(args.tutorial, args.figures)))
