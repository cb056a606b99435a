"""The short version of soak.py: nothing grows with the steps, nothing stays, and what is planted is seen."""

import json
import re
import socket
import threading

import numpy as np
import pytest
import soak

from minifocal.training.listener import Listener

STEPS, LOOKS = 100, 10  # so few steps: what leaks a few bytes is seen by the long runs, whose record is read here
HERE = ("blocks", "objects", "files", "threads")  # the memory of the process is also that of other tests


def short(name, beside=None):
    return soak.soak(soak.CASES[name], STEPS, LOOKS, beside)


def test_nothing_grows_and_nothing_stays():
    found = short("checkpoints")
    assert soak.complaints(found, HERE) == []
    assert found["growth"].keys() == set(soak.Looks.NAMES)


def test_nothing_stays_of_a_run_that_was_watched():
    assert soak.complaints(short("live"), ("files", "threads")) == []


class Leak(Listener):
    """Keeps the trainer, and at every fourth step lists of numbers, a socket and a thread."""

    def __init__(self):
        self.wake, self.kept, self.sockets, self.threads = threading.Event(), [], [], []

    def on_start(self, trainer):
        self.trainer = trainer

    def on_step(self, step, total, record, images):
        if step % 4 == 0:
            self.kept += [[number] for number in np.random.default_rng(step).standard_normal(20)]
            self.sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self.threads.append(threading.Thread(target=self.wake.wait, name="planted", daemon=True))
            self.threads[-1].start()


def test_planted_leaks_are_seen():
    leak = Leak()
    try:
        said = "\n".join(soak.complaints(short("numpy", leak), HERE))
    finally:
        leak.wake.set()
        for end in [*(one.close for one in leak.sockets), *(one.join for one in leak.threads)]:
            end()
    for name in HERE:
        assert re.search(rf"^{name} grew by \d+, more than \d+$", said, re.MULTILINE), said
    assert re.search(r"^left behind: files \['socket:", said, re.MULTILINE)
    assert re.search(r"^left behind: threads \['planted', ", said, re.MULTILINE)
    assert "left behind: model True" in said


def test_the_record_has_every_case_and_no_complaint():
    record = json.loads(soak.RECORD.read_text())
    assert list(record) == list(soak.CASES)
    for name, found in record.items():
        assert found["case"] == soak.CASES[name]._asdict()
        assert found["steps"] == soak.CASES[name].steps
        assert soak.complaints(found) == [], name


def test_the_command_runs_what_is_not_on_record_and_says_what_grew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(soak, "RECORD", tmp_path / "soak.json")
    ran = []

    def child(name, steps):
        ran.append(name)
        growth = dict.fromkeys(soak.Looks.NAMES, 0.0) | {"resident": 2.0**21 if name == "numba" else 0.0}
        case = soak.CASES[name]._asdict()
        return {"case": case, "steps": steps, "steps_between": 8, "epochs": 1, "growth": growth, "left": {"files": []}}

    assert soak.main(["numpy", "--steps", "500"], child) == 0
    assert soak.main(["--steps", "500"], child) == 1
    assert sorted(ran) == sorted(soak.CASES)
    assert "numba: resident grew by 2097152, more than 1048576" in capsys.readouterr().out
    assert list(json.loads(soak.RECORD.read_text())) == list(soak.CASES)
    for wrong in (["x"], ["--steps", "5"]):
        with pytest.raises(SystemExit):
            soak.main(wrong, child)
