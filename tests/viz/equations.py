"""Write minifocal/viz/pages/equations.json: the MathML of every formula of the step-through page.

python tests/viz/equations.py
"""

import json
from pathlib import Path

from latex2mathml.converter import convert

from minifocal.viz import operations

FILE = Path(operations.__file__).parent / "pages" / "equations.json"


def equations() -> str:
    made = {tex: convert(tex, display="block") for tex in operations.all_formulas()}
    return json.dumps(made, indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(equations(), encoding="utf-8")
