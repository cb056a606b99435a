"""Which branches of the library no test takes, and why: 95 % are taken at least, and each other one is on a list.

    coverage run -m pytest && coverage combine && python tests/trust/coverage_report.py
    python tests/trust/coverage_report.py --write    # lists what is new, for its reasons to be filled in

What is left out is in pyproject.toml, under [tool.coverage]. uncovered.tsv, next to this file, has a line for each
function with something that is not covered: file, function, what (lines as they stand, branches as "from → to"), and
the reason. It names no line numbers, so that it stays true while the code around it changes. coverage.json has the
counts.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("uncovered.tsv")
COUNTS = Path(__file__).with_name("coverage.json")
LEAST = 95.0
END = "end"
BETWEEN = " ¦ "


class Gap(NamedTuple):
    """Something in a function that is not covered."""

    file: str
    function: str
    what: str


def gaps(report: dict[str, Any], root: Path = ROOT) -> Iterator[Gap]:
    """Give what a JSON report of coverage.py says is not covered: lines, and branches between lines that are."""
    for file, found in sorted(report["files"].items()):
        lines = [line.strip() for line in (root / file).read_text(encoding="utf-8").splitlines()]
        for function, part in sorted(found["functions"].items()):
            missing = set(part["missing_lines"])
            for line in sorted(missing - {line + 1 for line in missing}):  # the first ones of ranges
                yield Gap(file, function, lines[line - 1])
            for start, stop in part["missing_branches"]:
                if start not in missing and stop not in missing:
                    yield Gap(file, function, f"{lines[start - 1]} → {lines[stop - 1] if stop > 0 else END}")


def read_list(path: Path = LIST) -> dict[Gap, str]:
    """Give the reasons on the list."""
    reasons = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        file, function, whats, reason = line.split("\t")
        reasons |= {Gap(file, function, what): reason for what in whats.split(BETWEEN)}
    return reasons


def write_list(found: Iterable[Gap], reasons: dict[Gap, str], path: Path = LIST) -> None:
    """Write the list, with the reasons that are known."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for gap in dict.fromkeys(found):
        rows.setdefault((gap.file, gap.function, reasons.get(gap, "")), []).append(gap.what)
    lines = ["file\tfunction\tnot covered\treason"]
    lines += [
        f"{file}\t{function}\t{BETWEEN.join(whats)}\t{reason}" for (file, function, reason), whats in rows.items()
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def counts(report: dict[str, Any]) -> dict[str, int]:
    """Count lines and branches, and those of them that are covered."""
    names = ("num_statements", "covered_lines", "num_branches", "covered_branches")
    return {name: report["totals"][name] for name in names}


def complaints(report: dict[str, Any], reasons: dict[Gap, str], root: Path = ROOT) -> list[str]:
    """Say what must not be: a share that is too small, or a gap without a reason."""
    share = report["totals"]["percent_covered"]
    said = [] if share >= LEAST else [f"{share:.2f} % are covered, and {LEAST:g} % must be"]
    unknown = [gap for gap in gaps(report, root) if not reasons.get(gap)]
    return said + [f"{gap.file}: {gap.function or 'the module'}: not covered: {gap.what}" for gap in unknown]


def main(arguments: list[str] | None = None) -> int:
    """Check the data of the last run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the list anew; keep the reasons that it has")
    given = parser.parse_args(arguments)
    import coverage  # the extra [test]; reading the list does without

    measured = coverage.Coverage()
    measured.load()
    with tempfile.TemporaryDirectory() as folder:
        measured.json_report(outfile=f"{folder}/report.json")
        report = json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))
    reasons = read_list() if LIST.exists() else {}
    if given.write:
        write_list(gaps(report), reasons)
        COUNTS.write_text(json.dumps(counts(report), indent=2) + "\n", encoding="utf-8")
    said = complaints(report, reasons)
    print(*said, sep="\n", end="\n" if said else "")
    closed = len(reasons.keys() - set(gaps(report)))
    print(
        f"{report['totals']['percent_covered']:.2f} % of lines and branches are covered; {closed} gaps listed are none"
    )
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())
