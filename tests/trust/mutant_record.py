"""The records of mutation testing: tables of text, in the order of the sources."""

import os
from pathlib import Path

from mutants import Mutant

Name = tuple[str, str, str, str]
COLUMNS = ("module", "function", "line", "change", "outcome", "test")
EQUIVALENTS = Path(__file__).with_name("equivalent_mutants.tsv")


class Record:
    """What became of each mutant: "killed" or "timeout", and the test that did it; or "survived".

    Args:
        path: of the table. mutants: all of today's; rows of others are forgotten.
    """

    def __init__(self, path: Path, mutants: list[Mutant]) -> None:
        self.path = path
        self.order = [mutant.name for mutant in mutants]
        known = read_table(path)
        self.rows = {name: known[name] for name in self.order if name in known}

    def outcome(self, mutant: Mutant) -> str:
        """Give what became of a mutant; "" where it was not run yet."""
        return self.rows.get(mutant.name, ("", ""))[0]

    def test(self, mutant: Mutant) -> str:
        """Give the test that killed it."""
        return self.rows.get(mutant.name, ("", ""))[1]

    def set(self, mutant: Mutant, outcome: str, test: str) -> None:
        """Note what became of a mutant."""
        self.rows[mutant.name] = (outcome, test)

    def save(self) -> None:
        """Write the table."""
        temporary = self.path.with_suffix(".part")
        with open(temporary, "w", encoding="utf-8") as file:
            file.write("\t".join(COLUMNS) + "\n")
            for name in self.order:
                if name in self.rows:
                    file.write("\t".join((*name, *self.rows[name])) + "\n")
        os.replace(temporary, self.path)


def read_table(path: Path) -> dict[Name, tuple[str, str]]:
    """Read a table of mutants by their names; an empty one where there is no file."""
    if not path.exists():
        return {}
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return {(row[0], row[1], row[2], row[3]): (row[4], row[5] if len(row) > 5 else "") for row in rows}


def read_equivalents() -> dict[Name, str]:
    """Read the mutants that no test can tell from the original, and why."""
    return {name: reason for name, (reason, _) in read_table(EQUIVALENTS).items()}
