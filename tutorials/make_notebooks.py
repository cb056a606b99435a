"""Write the tutorials as notebooks: the same cells, no outputs, and one cell more that installs minifocal.

    python tutorials/make_notebooks.py

The scripts are what is edited; tests/tutorials holds the notebooks to them. Needs jupytext (the extra [tutorials]).
"""

import hashlib
from pathlib import Path

import jupytext
import nbformat
from nbformat.v4 import new_code_cell, new_notebook

HERE = Path(__file__).parent
INSTALL = """\
# Only where minifocal is not installed, as in Colab: from a wheel that was uploaded beside this notebook, or from PyPI.
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("minifocal") is None:
    wheels = sorted(str(path) for path in Path.cwd().glob("minifocal-*.whl"))
    source = wheels[-1] if wheels else "minifocal"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", source], check=True)"""


def scripts() -> list[Path]:
    """Give the tutorials in their order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def notebook_path(script: Path) -> Path:
    """Where the notebook of a script belongs."""
    return HERE / "notebooks" / f"{script.stem}.ipynb"


def make_notebook(script: Path) -> str:
    """Give the text of the notebook of a script; the same script gives the same bytes."""
    cells = jupytext.reads(script.read_text(encoding="utf-8"), fmt="py:percent").cells
    cells.insert(1, new_code_cell(INSTALL))
    for number, cell in enumerate(cells):
        cell.source = cell.source.replace("](../", "](../../")  # a notebook lies one folder deeper
        cell.id = hashlib.sha256(f"{number} {cell.source}".encode()).hexdigest()[:12]
        cell.metadata = {}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    nbformat.validate(notebook)
    return nbformat.writes(notebook, indent=1) + "\n"


if __name__ == "__main__":
    for script in scripts():
        path = notebook_path(script)
        path.parent.mkdir(exist_ok=True)
        path.write_text(make_notebook(script), encoding="utf-8")
        print(path.relative_to(HERE.parent))
