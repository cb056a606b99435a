"""The harnesses of crash safety: a little of each runs here, and what they look for they find."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# In a process of its own, as they fork; one after the other, as that is warm by then. Curves are drawn elsewhere.
TOGETHER = """
import sys
import minifocal.cli.train
import crash_damage, kills
minifocal.cli.train.draw_curves = lambda *_, **__: None
folder = sys.argv[1]
statuses = [
    kills.main(["--kills", "6", "--epochs", "3", "--out", folder + "/kills"]),
    crash_damage.main(["--each", "4", "--whole", "1", "--out", folder + "/damage"]),
]
sys.exit(any(statuses))
"""


def in_a_process(code, *arguments):
    """Run code beside the harnesses."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=HERE, capture_output=True, text=True, check=False
    )


def test_kills_and_damage_lose_nothing(tmp_path):
    done = in_a_process(TOGETHER, str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    kills, damage = (json.loads((tmp_path / name).read_text()) for name in ("kills", "damage"))
    assert kills["kills"] == sum(kills["kills by what they left"].values()) == 6
    assert kills["wrong"] == []
    assert set(kills["ends"]) == {"the same bits"}
    for kind in ("cut", "flipped byte"):
        assert damage[f"{kind}, load_checkpoint"]["refused in one line"] >= 3  # one may have met padding
    assert damage["cut, resume"]["ends with the same bits"] == 1


@pytest.mark.parametrize(
    ("name", "minimum"), [("kills.json", 200), ("crash_damage.json", 100), ("crash_disk.json", 20)], ids=str
)
def test_the_records_tell_of_nothing_lost(name, minimum):
    text = (HERE / name).read_text()
    record = json.loads(text)
    assert "WRONG" not in text
    assert not record.get("wrong")
    counts = [count for counts in record.values() if isinstance(counts, dict) for count in counts.values()]
    assert max([*counts, record.get("kills", 0)]) >= minimum


# A copy of a finished run is changed by each of PLANTS; what a harness says of it is written down.
PLANTED = """
import json, shutil, sys
from pathlib import Path
import crash_runs
import test_crash_harnesses
work = Path(sys.argv[1])
crash_runs.warm_up(work)
run = work / "run"
assert crash_runs.finish(crash_runs.start(crash_runs.command(run, crash_runs.options("sgd", 2, 1)), work / "log")) == 0
said = {}
for number, (name, (plant, _)) in enumerate(test_crash_harnesses.PLANTS.items()):
    changed = work / str(number)
    shutil.copytree(run, changed)
    plant(changed)
    try:
        crash_runs.look(changed)
        said[name] = str(crash_runs.differences(run, changed))
    except (AssertionError, ValueError) as error:
        said[name] = repr(error)
Path(sys.argv[2]).write_text(json.dumps(said))
"""


def rewrite(folder, change):
    """Save the last checkpoint again, with something changed."""
    from safetensors import safe_open

    from minifocal.files import write_safetensors
    from minifocal.training.checkpoint import CHECKSUM, METADATA, checksum

    path = folder / "last.safetensors"
    with safe_open(path, framework="numpy") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
    header = json.loads(metadata[METADATA])
    change(arrays, header)
    text = json.dumps(header)
    write_safetensors(path, arrays, {METADATA: text, CHECKSUM: checksum(text, arrays)})


def last_bit(arrays, header):
    arrays["optimizer.head.bias.velocity"].view("uint8")[0] ^= 1


def random_state(arrays, header):
    header["meta"]["progress"]["rng_state"]["state"]["state"] += 1


PLANTS = {
    "nothing": (lambda run: rewrite(run, lambda arrays, header: None), "[]"),
    "a bit of the optimizer": (lambda run: rewrite(run, last_bit), "last.safetensors: 1 parts, such as optimizer head"),
    "the state of the generator": (lambda run: rewrite(run, random_state), "last.safetensors: 1 parts, such as meta"),
    "a line of metrics": (lambda run: (run / "metrics.jsonl").write_text("{}"), "metrics.jsonl"),
    "a last checkpoint that is cut": (lambda run: (run / "last.safetensors").write_bytes(b"x"), "Damaged"),
    "no last checkpoint": (lambda run: (run / "last.safetensors").unlink(), "there is no checkpoint"),
    "leftovers": (lambda run: [(run / f"a.part{n}").touch() for n in range(2)], "piles up"),
    "a leftover": (lambda run: (run / "a.part7").touch(), "keeps a.part7"),
}


def test_a_harness_sees_what_is_planted(tmp_path):
    (tmp_path / "work").mkdir()
    done = in_a_process(PLANTED, str(tmp_path / "work"), str(tmp_path / "said"))
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads((tmp_path / "said").read_text())
    assert said.keys() == PLANTS.keys()
    for name, (_, words) in PLANTS.items():
        assert words in said[name], name
