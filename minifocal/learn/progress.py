"""How far a learner has come: one small JSON file beside the answers."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minifocal.errors import InputError, is_integer
from minifocal.files import read_bytes, write_bytes

FILE_NAME = "progress.json"
LARGEST = 2**20  # bytes
LONGEST_STATE, MOST = 40, 10**9  # letters of a state; a count


@dataclass
class Record:
    """What is kept of one exercise."""

    state: str = ""  # of the last check
    checks: int = 0
    hints: int = 0  # that were shown
    solution_asked: int = 0


@dataclass
class Progress:
    """What is kept of all exercises, by number."""

    folder: Path
    records: dict[str, Record] = field(default_factory=dict)

    def __getitem__(self, number: str) -> Record:
        return self.records.setdefault(number, Record())

    def save(self) -> None:
        """Write the file, wholly or not at all. Raises InputError where that cannot be."""
        content = {number: asdict(record) for number, record in sorted(self.records.items())}
        write_bytes(self.folder / FILE_NAME, json.dumps(content, indent=1).encode() + b"\n")


def load_progress(folder: Path) -> Progress:
    """Read the file of a folder; a new learner has none.

    Raises:
        InputError: it cannot be read as what `Progress.save` wrote.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return Progress(folder)
    try:
        content = json.loads(read_bytes(path, LARGEST))
        records = {number: _read_record(values) for number, values in content.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no progress file: mend it, or delete it; the answers beside it stay") from error
    return Progress(folder, records)


def _read_record(values: dict[str, Any]) -> Record:
    record = Record(**values)
    counts = (record.checks, record.hints, record.solution_asked)
    known = isinstance(record.state, str) and record.state.isprintable() and len(record.state) <= LONGEST_STATE
    if not known or not all(is_integer(count) and 0 <= count < MOST for count in counts):
        raise TypeError("a record of another kind")
    return record
