"""Everything that reads a file which may come from anywhere: how it is called, valid files, and how they are changed.

A reader is given the bytes of one file and reads them in the current folder, where `prepare` has put what else it
needs. It may give anything, and raise `InputError` with one line; nothing else, but for what `allowed` names.
"""

import argparse
import contextlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import hostile
import numpy as np
import seeds
from PIL import Image
from watch import WATCH, watched

from minifocal.cli import evaluate, figures, inputs, train
from minifocal.data import cifar, cifar_pickle, digits, download, folder, idx
from minifocal.errors import InputError, one_line
from minifocal.interop.descriptions import read_class_names
from minifocal.interop.pretrained import Pretrained, open_pretrained
from minifocal.interop.torch_file import _Archive
from minifocal.learn import judge, process
from minifocal.learn.child import pack
from minifocal.learn.progress import load_progress
from minifocal.learn.registry import find_exercise
from minifocal.safe_pickle import run_pickle
from minifocal.training.checkpoint import load_checkpoint
from minifocal.training.loss_scale import LossScaler
from minifocal.training.optim import SGD
from minifocal.training.trainer import LAST, Trainer
from minifocal.viz.records import read_record

Read = Callable[[bytes], object]


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        prepare: puts what is needed into the current folder, and gives the function that reads.
        seeds: valid files.
        mutate: changes a file within its structure.
        share: of all executions of the long run, in thousandths.
        allowed: exceptions beside InputError that are documented: of options that ask for too large a network.
        refuses: whether it refuses anything; of an answer, whatever it is, there is a verdict.
    """

    prepare: Callable[[], Read]
    seeds: Callable[[], list[bytes]]
    mutate: hostile.Mutate
    share: int
    allowed: tuple[type[Exception], ...] = ()
    refuses: bool = True


def written(name: str, read: Callable[[], object]) -> Read:
    """Make a reader of bytes from one of a file."""
    path = Path(name)

    def run(data: bytes) -> object:
        path.write_bytes(data)
        return read()

    return run


def load(path: str, always: bool = True) -> object:
    """What load_pretrained does, without its warnings; where only a description changes, not always to the end."""
    found = open_pretrained(path)
    for name in (*found.inferred, *found.warnings):
        assert name == one_line(name)
    return found.build(ops="reference") if always or hash(found.config) % 8 == 0 else found


def _pickle() -> Read:
    archive = _Archive.__new__(_Archive)
    archive.path, archive.members, archive.folder, archive.storages = Path("x"), {}, "a/", {}
    return lambda data: run_pickle(data, archive.names(), archive.load_storage)


def _hugging_face(name: str) -> Read:
    for file in ("model.safetensors", "config.json", "preprocessor_config.json"):
        Path(file).write_bytes(seeds.weights("hf", "folder", file))
    return written(name, lambda: load(".", always=False))


def _timm() -> Read:
    Path("model.safetensors").write_bytes(seeds.weights("timm", "a.safetensors"))
    return written("config.json", lambda: load(".", always=False))


def _checkpoint() -> Read:
    model = seeds.network()
    optimizer, scaler = SGD(model, lr=0.1), LossScaler(model)
    return written("a.safetensors", lambda: load_checkpoint("a.safetensors").restore(model, optimizer, scaler))


def _resumed() -> Read:
    trainer = seeds.tiny_trainer(Path("."))

    def resume() -> None:
        trainer.resume()
        trainer.listener.on_start(trainer)
        if not trainer.finished:
            list(trainer._order(trainer.progress.epoch).integers(0, 2, 2))
            trainer.rng.integers(0, 2)
        trainer._save()

    return written(LAST, resume)


class Stop(Exception):  # noqa: N818  # the end of what is wanted, no error
    """Stands for a training."""


def _run_config() -> Read:
    pictures = seeds.tiny_images(20)
    splits = train.Splits("images", pictures, pictures, "made")
    real = train.load_splits

    def load_splits(**settings: Any) -> Any:
        return splits if settings == seeds.data_of_run() else real(**settings)

    Path("run").mkdir()
    options = {"resume": True, "out": Path("run"), "live": None, "graph": False, "recompute_levels": False}
    options |= {"check_finite": False, "micro_batch": None}
    args = argparse.Namespace(**options, device="cpu", ops="reference", precision="float32", command="train", run=None)

    def run() -> None:
        with (
            mock.patch.object(train, "load_splits", load_splits),
            mock.patch.object(Trainer, "fit", mock.Mock(side_effect=Stop)),
            mock.patch.object(Trainer, "resume"),  # a reader of its own, above
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.suppress(Stop),
        ):
            train.run(args)

    return written("run/config.json", run)


def _run_config_seeds() -> list[bytes]:
    sizes = {"patch_size": 4, "hidden_size": 2, "focal_levels": 1, "focal_kernel": 3, "mlp_ratio": 2.0}
    training = train.TrainConfig(epochs=2, batch_size=5).to_dict()
    both = {"data": seeds.data_of_run(), "training": training}
    small = {"modulation": "focal", "network": {**sizes, "layers": [1, 1], "drop_path_rate": 0.1, "init": "lecun"}}
    one = {"modulation": "sigmoid_gate", "network": {**small["network"], "layers": [1]}}
    shape = {"patch_size": 4, "embed_dim": 2, "depths": [1], "focal_levels": [1], "focal_windows": [3]}
    named = {"model": "focalnet_tiny_iso", "overrides": shape}
    made = ({**which, "seed": 1, "dtype": "float32"} for which in (small, one, named))
    return [seeds.json_of({**both, "network": network}) for network in made]


def _evaluated() -> Read:
    for name in seeds.NAMES:
        Path("images", name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(Path("images", name, "a.png"))
    options = {"data": None, "data_root": None, "image_size": None, "batch_size": 4, "names": None, "set": []}
    args = argparse.Namespace(**options, checkpoint=Path("a.safetensors"), device="cpu", command="evaluate")

    build = Pretrained.build

    def run() -> None:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            mock.patch.object(Pretrained, "build", lambda self, **options: build(self, **options, ops="reference")),
        ):
            evaluate.run(args)

    return written("a.safetensors", run)


def _class_names(data: bytes) -> object:
    Path("names").write_bytes(data)
    return inputs.find_class("bee", list(map(one_line, read_class_names(Path("names"), 3))))


def _image_argument() -> Read:
    prepared = replace(seeds.PREPROCESS, resize=17, crop=16)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("cat.png")
    return lambda data: inputs.read_input(data.decode("utf-8", "surrogateescape"), prepared, "float32")


def _image(data: bytes) -> object:
    Path("a.png").write_bytes(data)
    seeds.PREPROCESS.read("a.png", "float32")
    return folder.read_image("a.png", channels=1)


def _cifar(name: str, suffix: str) -> Read:
    layout = cifar.LAYOUTS[name]
    content = seeds.cifar_binary() if suffix else seeds.cifar_pickles()[0]
    for file in (*layout.train_files, layout.test_file):
        Path(f"{file}{suffix}").write_bytes(content)
    names = b"\n".join(b"class %d" % number for number in range(layout.num_classes))
    if suffix:
        Path(layout.names_file).write_bytes(names)
        return written(f"{layout.test_file}{suffix}", lambda: cifar.cifar_splits(".", name))
    reading = (
        partial(cifar._read_python_part, Path("x"), layout),
        partial(cifar._read_python_names, Path("."), layout),
    )

    def run(data: bytes) -> None:
        Path("x").write_bytes(data)
        Path(layout.meta_file).write_bytes(data)
        for read in (
            lambda: cifar_pickle.read_pickle("x"),
            lambda: cifar._checked(Path("x"), layout, lambda *_: reading[0]()),
        ):
            read()
        reading[1]()

    return run


def _archive(data: bytes) -> None:
    Path("down").mkdir(exist_ok=True)
    Path("down/a.tar.gz").write_bytes(data)
    download._unpack(Path("down/a.tar.gz"), seeds.MEMBERS)


def _record(data: bytes) -> None:
    Path("a.json").write_bytes(data)
    errors = []
    read = {figure.read for figure in figures.FIGURES.values() if figure.record}
    for convert in read:
        try:
            read_record(Path("a.json"), convert, "a command")
        except InputError as error:
            errors.append(error)
    if len(errors) == len(read):
        raise errors[0]


def _progress() -> None:
    progress = load_progress(Path("."))
    record = progress["06"]
    record.checks += 1
    record.hints += 1
    record.solution_asked += 1
    progress.save()


def _answer() -> Read:
    exercise = find_exercise("03")
    cases = exercise.make_cases()

    def run(data: bytes) -> None:
        text, _, blob = data.partition(SEPARATOR)

        def leave(command: list[str], printed: int, limit: float) -> int:
            Path(command[-1], "results.json").write_bytes(text)
            Path(command[-1], "results.bin").write_bytes(blob)
            return 0

        with mock.patch.object(process, "_run", leave):
            answers = process.call(Path("answer.py"), exercise.function, [])
        with np.errstate(all="ignore"):  # as judge does
            judge._judge_answers(exercise, cases, answers)

    return run


SEPARATOR = b"\0bin\0"


def _answers() -> list[bytes]:
    blob = bytearray()
    results = [{"value": pack(np.zeros((2, 3)), blob), "after": [pack(np.ones(2), blob), pack((1, 2.5), blob)]}] * 2
    error = {"error": {"type": "ValueError", "message": "shape", "line": 3}}
    found: list[Any] = [{"results": [*results, error]}, error, {"missing": True, "results": []}]
    return [seeds.json_of(answer) + SEPARATOR + bytes(blob) for answer in found]


def _mutate_answer(rng: Random, data: bytes) -> bytes:
    text, separator, blob = data.partition(SEPARATOR)
    return hostile.mutate_json(rng, text) + separator + blob


def _digits(data: bytes) -> object:
    Path("digits.npz").write_bytes(data)
    with mock.patch.object(digits, "DIGITS_FILE", Path("digits.npz")):
        return digits.load_digits()


def _torch_seeds() -> list[bytes]:
    official, timm = (seeds.weights(layout, "a.pth") for layout in ("official", "timm"))
    return [timm, seeds.with_config(official)]


def _safetensors_seeds() -> list[bytes]:
    return [seeds.weights(layout, "a.safetensors") for layout in ("official", "timm", "edifice", "minifocal")]


def _mnist() -> Read:
    return written("a", lambda: idx.read_idx("a"))


READERS: dict[str, Reader] = {
    "pickle": Reader(_pickle, seeds.torch_pickles, hostile.mutate_pickle, 300),
    "torch": Reader(lambda: written("a.pth", lambda: load("a.pth")), _torch_seeds, hostile.mutate_zip, 20),
    "safetensors": Reader(
        lambda: written("a.safetensors", lambda: load("a.safetensors")),
        _safetensors_seeds,
        hostile.mutate_safetensors,
        20,
    ),
    "checkpoint": Reader(
        _checkpoint,
        lambda: [seeds.scaled_checkpoint(), seeds.run_checkpoint()],
        hostile.mutate_checkpoint,
        20,
    ),
    "resumed_run": Reader(_resumed, lambda: [seeds.run_checkpoint()], hostile.mutate_checkpoint, 20),
    "run_config": Reader(_run_config, _run_config_seeds, hostile.mutate_json, 20, (MemoryError,)),
    "evaluated_run": Reader(
        _evaluated, lambda: [seeds.run_checkpoint()], hostile.mutate_checkpoint, 20, (MemoryError,)
    ),
    "hf_config": Reader(
        lambda: _hugging_face("config.json"),
        lambda: [seeds.weights("hf", "folder", "config.json")],
        hostile.mutate_json,
        20,
    ),
    "hf_preprocessor": Reader(
        lambda: _hugging_face("preprocessor_config.json"),
        lambda: [seeds.weights("hf", "folder", "preprocessor_config.json")],
        hostile.mutate_json,
        20,
    ),
    "timm_config": Reader(_timm, lambda: [seeds.json_of(seeds.timm_description())], hostile.mutate_json, 20),
    "class_names": Reader(
        lambda: _class_names,
        lambda: [b"ant\nbee\ncat\n", b'["ant", ["n1", "bee"], "cat"]', b'{"0": "ant", "1": "bee", "2": "cat"}'],
        hostile.mutate_json,
        100,
    ),
    "idx": Reader(_mnist, seeds.idx_files, hostile.within_gzip(hostile.mutate_bytes), 200),
    "cifar_binary": Reader(lambda: _cifar("cifar10", ".bin"), lambda: [seeds.cifar_binary()], hostile.mutate_bytes, 20),
    "cifar_python": Reader(lambda: _cifar("cifar10", ""), seeds.cifar_pickles, hostile.mutate_pickle, 40),
    "archive": Reader(lambda: _archive, seeds.archives, hostile.within_gzip(hostile.mutate_tar), 20),
    "image": Reader(lambda: _image, seeds.images, hostile.mutate_png, 20),
    "image_argument": Reader(
        _image_argument, lambda: [b"shapes:3", b"cat.png", b"./cat.png"], hostile.mutate_bytes, 40
    ),
    "record": Reader(lambda: _record, seeds.records, hostile.mutate_json, 20),
    "progress": Reader(
        lambda: written("progress.json", _progress),
        lambda: [b'{"06": {"state": "passed", "checks": 2, "hints": 1, "solution_asked": 0}, "01": {}}'],
        hostile.mutate_json,
        40,
    ),
    "answer": Reader(_answer, _answers, _mutate_answer, 20, refuses=False),
    "digits": Reader(lambda: _digits, lambda: [digits.DIGITS_FILE.read_bytes()], hostile.mutate_bytes, 20),
}
"""Every reader, by name."""


@contextlib.contextmanager
def reading(name: str, where: Path) -> Iterator[Read]:
    """Give a reader that is watched, in a folder: it raises nothing where the outcome is one that is documented."""
    reader = READERS[name]
    before = Path.cwd()
    os.chdir(where)
    try:
        read = reader.prepare()
        WATCH.root = os.path.realpath(where)
        yield partial(watched, reader.allowed, read)
    finally:
        os.chdir(before)
