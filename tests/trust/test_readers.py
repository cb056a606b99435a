"""Hostile files: whatever stands in one, a reader gives a value or one line that says what is wrong.

The long run over a million files is `fuzz.py`; here are a few hundred for each reader, everything that was ever found,
and what takes more than a few bytes to make.
"""

import contextlib
import gzip
import io
import json
import os
import signal
import struct
import tarfile
import tempfile
import tracemalloc
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from unittest import mock

import hostile
import numpy as np
import pytest
import readers
import seeds
import watch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin
from safetensors.numpy import load, save

from minifocal import files, safe_pickle
from minifocal.cli import evaluate, figures
from minifocal.data import cifar_pickle, download, folder, idx
from minifocal.errors import InputError
from minifocal.files import MAX_HEADER_BYTES
from minifocal.interop import descriptions
from minifocal.interop.pretrained import load_pretrained, open_pretrained
from minifocal.learn import process
from minifocal.learn.judge import FAILED, judge
from minifocal.learn.progress import load_progress
from minifocal.learn.registry import find_exercise
from minifocal.training.checkpoint import load_checkpoint
from minifocal.viz import records

FINDINGS = Path(__file__).parent / "findings"
FILES_AN_EXAMPLE = 20


@pytest.mark.parametrize("name", readers.READERS)
def test_valid_files_are_read_and_changed_ones_are_read_or_refused_in_one_line(name, tmp_path):
    reader = readers.READERS[name]
    outcomes = set()
    with readers.reading(name, tmp_path) as read:
        valid = reader.seeds()
        assert [read(data) for data in valid] == ["read"] * len(valid)

        @settings(max_examples=12 if reader.share > 20 else 5)
        @given(seed=st.integers(0, 2**32 - 1))
        def change(seed):
            rng = Random(seed)
            for _ in range(FILES_AN_EXAMPLE):
                outcomes.add(read(reader.mutate(rng, rng.choice(valid))))

        change()
    assert len(outcomes) > 1 or not reader.refuses, "nothing was refused: the files are not changed where it matters"


# What was found once


def with_header(change):
    """The checkpoint of a run with its header changed."""
    data = seeds.run_checkpoint()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def with_meta(change):
    def changed(header):
        described = json.loads(header["__metadata__"]["minifocal"])
        change(described)
        header["__metadata__"]["minifocal"] = json.dumps(described)

    return with_header(changed)


def with_progress(**values):
    return with_meta(lambda described: described["meta"]["progress"].update(values))


def optimizer_in_float64():
    """Velocities that float32 cannot hold."""
    data = seeds.scaled_checkpoint()
    arrays = load(data)
    wide = {name: a.astype("float64") + 1e300 for name, a in arrays.items() if name.startswith("optimizer.")}
    length = struct.unpack("<Q", data[:8])[0]
    return save({**arrays, **wide}, json.loads(data[8 : 8 + length])["__metadata__"])


def many_rates():
    run = {"dataset": "digits", "modulation": "focal", "accuracy": 0.9, "measured_on": "validation"}
    runs = [{**run, "lr": n + 1} for n in range(60)]
    return seeds.json_of({"nearest_neighbour": {"digits": 0.9}, "runs": [*runs, {**runs[0], "measured_on": "test"}]})


MADE = {
    "checkpoint/steps_below_zero": lambda: with_meta(lambda described: described.update(steps=-1)),
    "checkpoint/steps_beyond_float": lambda: with_meta(lambda described: described.update(steps=10**400)),
    "checkpoint/optimizer_in_float64": optimizer_in_float64,
    "resumed_run/epoch_in_words": lambda: with_progress(epoch="one"),
    "resumed_run/epoch_below_zero": lambda: with_progress(epoch=-1),
    "resumed_run/history_of_numbers": lambda: with_progress(history=[1, 2]),
    "resumed_run/history_of_another_kind": lambda: with_progress(epoch=1, history=[{"epoch": 1, "val_loss": "low"}]),
    "resumed_run/no_generator": lambda: with_progress(rng_state={}),
    "resumed_run/another_generator": lambda: with_progress(rng_state={"bit_generator": "MT19937", "state": [1]}),
    "resumed_run/sums_without_a_number": lambda: with_progress(loss_sum=None),
    "evaluated_run/root_with_zero_byte": lambda: with_meta(
        lambda described: described["meta"]["data"].update(data="cifar10", root="a\0b")
    ),
    "run_config/nested_deeply": lambda: b"[" * 30_000,
    "progress/count_of_4300_digits": lambda: b'{"06": {"checks": ' + b"9" * 4300 + b"}}",
    "progress/state_of_a_megabyte": lambda: json.dumps({"06": {"state": "x" * 10**6}}).encode(),
    "class_names/number_of_4300_digits": lambda: b'["ant", ' + b"9" * 4300 + b', "cat"]',
    "record/rates_by_the_dozen": many_rates,
}
"""What takes more than a few thousand bytes, by the name of its reader and its own."""

TAKEN = ("answer/shape_beyond_int64", "evaluated_run/standardized_beyond_float32")
"""What is taken: of every answer there is a verdict, and numbers that overflow on the way can end in a finite loss."""

KEPT = sorted(str(path.relative_to(FINDINGS)) for path in FINDINGS.glob("*/*"))


@pytest.mark.parametrize("name", [*KEPT, *sorted(MADE)])
def test_what_was_found_is_refused(name, tmp_path):
    data = MADE[name]() if name in MADE else (FINDINGS / name).read_bytes()
    with readers.reading(name.partition("/")[0], tmp_path) as read:
        assert read(data) != "read" or name in TAKEN


# Memory


@contextmanager
def at_most(mebibytes):
    """Refuse more memory than that."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < mebibytes * 2**20, f"{peak / 2**20:.1f} MiB"


def test_a_file_without_an_end_is_not_read_on_and_on(tmp_path, monkeypatch):
    """Files of the system say that they have no bytes; those that still grow have more than was said."""
    path = tmp_path / "a"
    path.write_bytes(bytes(2**24))
    assert files.read_bytes(path, 2**24) == bytes(2**24)
    status = os.stat_result((0o100644, *[0] * 9))
    monkeypatch.setattr(files.os, "fstat", lambda _: status)
    with at_most(1), pytest.raises(InputError, match="has more than the 0 bytes that it says"):
        files.read_bytes(path, 1000)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_UNPACKED_BYTES", 2**22)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(seeds.archive_of({"cifar/other": bytes(2**24), "cifar/one": b"1", "cifar/two": b"2"}))
    with at_most(4), pytest.raises(InputError, match="unpacks to more than 4194304 bytes"):
        download._unpack(path, seeds.MEMBERS)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_an_archive_with_a_name_of_gigabytes_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_UNPACKED_BYTES", 2**20)
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = kind, 2**35
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(2**24), 1))
    with at_most(8), pytest.raises(InputError, match="unpacks to more than 1048576 bytes"):
        download._unpack(path, seeds.MEMBERS)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_text_in_a_png_is_not_unpacked_without_bound(kind, tmp_path):
    packed = zlib.compress(bytes(2**25), 1)
    content = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind] + packed
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    image = seeds.images()[0]
    (tmp_path / "a.png").write_bytes(image[:33] + chunk + image[33:])  # behind the header
    with at_most(8), suppress(InputError):
        assert folder.read_image(tmp_path / "a.png").shape == (3, 5, 7)


@pytest.mark.parametrize("read", [load_pretrained, load_checkpoint])
def test_a_header_that_claims_more_than_any_has_is_refused(read, tmp_path):
    path = tmp_path / "a.safetensors"
    for claimed in (MAX_HEADER_BYTES + 1, 2**40, 2**63):
        path.write_bytes(struct.pack("<Q", claimed) + b"{}")
        with at_most(1), pytest.raises(InputError, match="expected at most 16777216"):
            read(path)
    path.write_bytes(struct.pack("<Q", 2**25) + b"{}".ljust(2**25))  # and one that is there
    with at_most(1), pytest.raises(InputError, match="its header claims 33554432 bytes"):
        read(path)


@pytest.mark.parametrize("read", [lambda path: load_checkpoint(path), lambda path: load_pretrained(path)])
def test_terabytes_that_are_only_claimed_take_no_memory(read, tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    with at_most(1), pytest.raises(InputError, match="damaged"):
        read(tmp_path / "a.safetensors")


def test_an_idx_file_of_gigabytes_that_are_only_claimed_takes_no_memory(tmp_path):
    claims = struct.pack(">BBBB3I", 0, 0, 8, 3, 2**10, 2**10, 2**10)
    for data in (claims, gzip.compress(claims)):
        (tmp_path / "a").write_bytes(data)
        with at_most(4), pytest.raises(InputError, match="announces 1073741824 bytes, but there are only 0"):
            idx.read_idx(tmp_path / "a")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_description_larger_than_any_is_not_read(name, tmp_path):
    for file in ("model.safetensors", "config.json"):
        (tmp_path / file).write_bytes(seeds.weights("hf", "folder", file))
    (tmp_path / name).write_bytes(b"[" + b"{}," * (descriptions.MAX_JSON_BYTES // 3) + b"{}]")
    with at_most(1), pytest.raises(InputError, match="expected at most 4194304"):
        load_pretrained(tmp_path)


def test_a_record_larger_than_any_is_not_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b" " * (records.LARGEST_RECORD + 1))
    with at_most(1), pytest.raises(InputError, match="expected at most 1048576"):
        records.read_record(tmp_path / "a.json", figures.FIGURES["training"].read, "a command")


def test_an_array_that_an_answer_describes_a_thousand_times_takes_memory_once(tmp_path):
    blob = bytes(2**20)
    array = {"array": ["|u1", [2**20], 0]}
    (tmp_path / "results.json").write_text(json.dumps({"results": [{"value": array, "after": [array] * 500}]}))
    (tmp_path / "results.bin").write_bytes(blob)
    with at_most(8):
        found = process._read(tmp_path, "f", "")
    assert len(found.results[0].after) == 500


def test_a_pickle_of_images_with_more_instructions_than_any_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_pickle, "MAX_INSTRUCTIONS", 1000)
    (tmp_path / "a").write_bytes(b"\x80\x02" + b"}" * 2000 + b".")
    with pytest.raises(InputError, match="refused a pickle of more than 1000 instructions"):
        cifar_pickle.read_pickle(tmp_path / "a")


# Places outside, and what is no file


@pytest.mark.parametrize("target", ["../../etc/passwd", "/etc/passwd"])
def test_an_index_of_hugging_face_is_not_followed(target, tmp_path):
    (tmp_path / "config.json").write_bytes(seeds.weights("hf", "folder", "config.json"))
    index = {"metadata": {"total_size": 1}, "weight_map": {"focalnet.layernorm.weight": target}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="holds weights in parts; save them whole"):
        open_pretrained(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_member_of_an_archive_that_is_no_plain_file_leaves_nothing(kind, tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        entry = tarfile.TarInfo("cifar/one")
        entry.type, entry.linkname = kind, "../../outside"
        tar.addfile(entry)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar.gz").write_bytes(stream.getvalue())
    with pytest.raises(InputError, match=r"'cifar/one' is no plain file"):
        download._unpack(tmp_path / "in" / "a.tar.gz", seeds.MEMBERS)
    assert sorted(path.name for path in tmp_path.rglob("*") if not path.is_dir()) == ["a.tar.gz"]


PLACES = {  # where each kind of file lies, in the folder of its reader
    "torch": "a.pth",
    "safetensors": "a.safetensors",
    "checkpoint": "a.safetensors",
    "run_config": "run/config.json",
    "class_names": "names",
    "idx": "a",
    "cifar_python": "x",
    "image": "a.png",
    "record": "a.json",
    "progress": "progress.json",
    "digits": "digits.npz",
}


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", PLACES)
def test_what_is_no_file_is_refused_and_not_waited_for(name, kind, tmp_path):
    def stuck(*_):
        raise AssertionError("it waits")

    place = Path(PLACES[name])
    before = signal.signal(signal.SIGALRM, stuck)
    signal.alarm(20)
    try:
        with readers.reading(name, tmp_path) as read:
            place.unlink(missing_ok=True)
            if kind == "pipe":
                os.mkfifo(place)
            elif kind == "device":
                place.symlink_to("/dev/zero")
            else:
                place.mkdir()
            with mock.patch.object(Path, "write_bytes"):
                outcome = read(b"")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert outcome != "read"


# Code


def test_no_program_is_started_for_an_image(tmp_path, monkeypatch):
    """For Encapsulated PostScript Pillow starts Ghostscript, which runs what stands in the file."""
    program, marker = tmp_path / "gs", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "a.png").write_bytes((FINDINGS / "image" / "encapsulated_postscript").read_bytes())
    with pytest.raises(InputError, match="no image of these kinds: BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"):
        folder.read_image(tmp_path / "a.png")
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    [b"\0", b"x = 1\n\0", b"\xff\xfea\0", b"# coding: nothing\n", b"(" * 10**5, b"x = " + b"-" * 10**5 + b"1\n"],
    ids=["zero byte", "zero byte later", "two bytes a letter", "unknown encoding", "brackets", "signs"],
)
def test_an_answer_whose_text_is_none_gets_a_verdict(text, tmp_path):
    (tmp_path / "answer.py").write_bytes(text)
    verdict = judge(find_exercise("03"), tmp_path / "answer.py")
    assert verdict.state == FAILED
    assert verdict.reason.isprintable()


def test_counts_of_a_progress_can_still_be_counted_up(tmp_path):
    (tmp_path / "progress.json").write_text(json.dumps({"06": {"checks": 10**9 - 1}}))
    progress = load_progress(tmp_path)
    progress["06"].checks += 1
    progress.save()
    with pytest.raises(InputError, match="no progress file"):
        load_progress(tmp_path)


# The means themselves: a reader that is wrong must be seen


ELSEWHERE = Path(tempfile.gettempdir()) / f"elsewhere-{os.getpid()}"


def try_to(do, *arguments):
    """A reader that does something else, whatever comes of it."""

    def read(data):
        with contextlib.suppress(OSError):
            do(*arguments)

    return read


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (lambda data: {}[data], KeyError),
        (lambda data: np.array(1e300).astype("float32"), RuntimeWarning),
        (try_to(os.system, "true"), watch.Forbidden),
        (try_to(os.symlink, "a", "b"), watch.Forbidden),
        (try_to(os.link, __file__, "b"), watch.Forbidden),
        (try_to(ELSEWHERE.write_bytes, b"a"), watch.Forbidden),
        (try_to(os.open, ELSEWHERE, os.O_RDWR | os.O_CREAT), watch.Forbidden),
        (try_to(os.replace, ELSEWHERE, f"{ELSEWHERE}.new"), watch.Forbidden),
        (try_to(os.truncate, ELSEWHERE, 0), watch.Forbidden),
        (try_to(os.unlink, ELSEWHERE), watch.Forbidden),
        (try_to(os.mkdir, ELSEWHERE), watch.Forbidden),
        (try_to(os.rmdir, ELSEWHERE), watch.Forbidden),
        (try_to(Path("/etc/hostname").read_bytes), watch.Forbidden),
        (try_to(os.listdir, "/etc"), watch.Forbidden),
    ],
    ids=[
        "error", "warning", "program", "symbolic link", "link to elsewhere", "file elsewhere", "opened to write",
        "renamed", "cut", "removed", "folder elsewhere", "folder removed", "read elsewhere", "listed elsewhere",
    ],
)  # fmt: skip
def test_what_a_reader_must_not_do_is_seen(read, error, tmp_path, monkeypatch):
    wrong = readers.Reader(lambda: read, list, hostile.mutate_bytes, 1)
    monkeypatch.setitem(readers.READERS, "wrong", wrong)
    with readers.reading("wrong", tmp_path) as watched, pytest.raises(error):
        watched(b"a")
    for remove in (os.unlink, os.rmdir):
        with contextlib.suppress(OSError):
            remove(ELSEWHERE)


def test_a_message_is_one_line_of_bounded_length():
    error = InputError("a\nb\x1b[31m" + "x" * 10**6 + "the end")
    assert str(error).isprintable()
    assert len(str(error)) <= 1000
    assert str(error).startswith("a b [31mxxx")
    assert str(error).endswith("xthe end")


def test_evaluate_reads_what_a_run_says_of_its_data():
    assert evaluate._names_data({"data": "digits", "root": None, "image_size": 8})
    assert not evaluate._names_data({"data": ["digits"]})


def test_every_file_that_was_kept_is_small():
    assert all((FINDINGS / name).stat().st_size < 8192 for name in KEPT)
