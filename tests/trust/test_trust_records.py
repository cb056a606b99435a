"""What the README says of trust is what the records of the harnesses hold."""

import json
import re
from pathlib import Path

import pytest
from coverage_report import LEAST
from mutant_record import Record, read_equivalents
from mutants import all_mutants
from soak import CASES

HERE = Path(__file__).parent
README = (HERE.parents[1] / "README.md").read_text(encoding="utf-8")


def record(name):
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def told(harness):
    """The last column of a harness's row."""
    (row,) = re.findall(rf"^\|[^|]*\| `{harness}\.py`[^|]*\|([^|]*)\|$", README, re.MULTILINE)
    return row.strip()


def test_kills():
    found = record("kills")
    assert found["wrong"] == []
    assert found["ends"] == {"the same bits": found["runs"]}
    assert told("kills") == (
        f"{found['kills']} kills, 0 runs lost, every end with the bits of a run that was not killed"
    )
    assert found["kills"] >= 200


def test_damage():
    found = record("crash_damage")
    for reader in ("load_checkpoint", "open_pretrained"):
        refused = [found[f"{damage}, {reader}"] for damage in ("cut", "flipped byte")]
        assert refused == [{"refused in one line": 100}] * 2
    assert all(found[f"{damage}, resume"]["from previous.safetensors"] == 100 for damage in ("cut", "flipped byte"))
    assert told("crash_damage") == "200 of 200 refused in one line; `--resume` went on from the one before"


def test_disks():
    found = record("crash_disk")
    cases = [found[name] for name in ("files limited in size", "full disk")]
    refused = sum(count for case in cases for what, count in case.items() if what.startswith("refused in one line"))
    assert refused == sum(case["then ends with the same bits"] for case in cases)
    assert told("crash_disk") == f"{refused} of {refused} writes refused in one line; with room, the same bits"


def test_hostile_files():
    found = record("fuzz")["seeded"]
    readers = found["readers"]
    assert sum(reader["executions"] for reader in readers.values()) == found["executions"] >= 1_000_000
    assert {reader["exceptions"] for reader in readers.values()} == {found["exceptions"]} == {0}
    peaks = {name: reader["peak_mib_at_most"] for name, reader in readers.items()}
    image, config = peaks.pop("image"), peaks.pop("run_config")
    assert told("fuzz") == (
        f"1,000,000 files, 0 other exceptions; at most {max(peaks.values())} MiB more memory ({config} for a run's "
        f"configuration, {image} for images)"
    )
    assert f"for {len(readers)} readers" in README


def test_extreme_numbers():
    largest = max(share for operation in record("extremes").values() for share in operation.values())
    assert told("extremes") == f"at most {largest} of the bound that each operation's arithmetic gives"


def test_long_runs():
    found = record("soak")
    assert {name: case["steps"] for name, case in found.items()} == dict.fromkeys(CASES, 10_000)
    assert all(case["growth"]["resident"] < 2**20 for case in found.values())
    assert all(case["left"] == {"files": [], "threads": [], "model": False} for case in found.values())
    assert told("soak") == "under 1 MiB of growth, no file, thread or model left"


def test_mutants():
    mutants = all_mutants()
    kept = Record(HERE / "mutants.tsv", mutants)
    argued = read_equivalents()
    killed = sum(kept.outcome(mutant) in ("killed", "timeout") for mutant in mutants)
    equivalent = sum(mutant.name in argued for mutant in mutants)
    assert killed + equivalent == len(mutants)
    assert told("mutate") == f"{killed:,} of {len(mutants):,} are; the other {equivalent} are argued to change nothing"


def test_coverage():
    found = record("coverage")
    covered = (
        100 * (found["covered_lines"] + found["covered_branches"]) / (found["num_statements"] + found["num_branches"])
    )
    assert covered >= LEAST
    assert told("coverage_report") == f"{covered:.1f} %; each of the rest has its reason in `uncovered.tsv`"


@pytest.mark.parametrize(
    "harness", ["kills", "crash_damage", "crash_disk", "fuzz", "extremes", "soak", "mutate", "coverage_report"]
)
def test_there_is_a_command_for_each_claim(harness):
    assert (HERE / f"{harness}.py").is_file()
    assert told(harness)
