"""`minifocal train`: train a network, with validation, into a folder that can be resumed."""

import argparse
import json
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minifocal.cli.common import (
    RUNS,
    add_data_arguments,
    add_device_argument,
    on_terminal,
    split_validation,
)
from minifocal.cli.live import add_live_argument, live_again, live_view
from minifocal.cli.recipes import Network, recipe_for
from minifocal.cli.resume import resumed_settings
from minifocal.data import DATASETS, Dataset, Splits, Standardize, load_splits, nearest_neighbour_accuracy
from minifocal.errors import InputError
from minifocal.files import only_one, write_bytes
from minifocal.functional.precision import PRECISIONS
from minifocal.fused import gpu
from minifocal.interop.descriptions import read_json
from minifocal.interop.source import HF_FILES
from minifocal.models.config import FOCAL, MODULATION_NAMES, SIGMOID_GATE, FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.models.zoo import create_model
from minifocal.ops import TABLES
from minifocal.training.augment import Augmentation
from minifocal.training.listener import Listener
from minifocal.training.optim import OPTIMIZERS
from minifocal.training.run_folder import CONFIG, CURVES, LOCK, holds_checkpoint, remove_leftovers
from minifocal.training.step import StepRecord, evaluate
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import Trainer, TrainingError
from minifocal.viz.pictures import draw_curves

HELP = "train a network; with no options a FocalNet of Edifice's kind on the embedded digits"
EXAMPLE = "minifocal train --data digits --modulation focal --epochs 30 --out runs/focal"

BASELINE_IMAGES = 5000  # up to here one nearest neighbour takes a moment

# Options by the field that they set, with the type of their values. The defaults come from the dataset's recipe.
NETWORK_OPTIONS: dict[str, tuple[Any, str]] = {
    "patch_size": (int, "pixels of a patch's side"),
    "hidden_size": (int, "channels of the first stage"),
    "layers": (None, "blocks of each stage, such as 4 or 2,2"),
    "focal_levels": (int, "levels of every stage"),
    "focal_kernel": (int, "kernel of the first level, odd"),
    "mlp_ratio": (float, "hidden channels of an MLP, as a multiple of its channels"),
    "drop_path_rate": (float, "of the last block"),
    "init": (str, "official, glorot or lecun"),
}
EXECUTION_OPTIONS = ("device", "ops", "recompute_levels", "precision", "graph", "check_finite")
"""Options of how to compute. They change nothing of what is kept with a run, so it may be resumed with others; it ends
with the same bits only with the same (but for recompute_levels, graph and check_finite, which change none)."""

TRAINING_OPTIONS: dict[str, tuple[Any, str]] = {
    "epochs": (int, "passes over the training images"),
    "batch_size": (int, "images a step"),
    "optimizer": (str, f"one of {', '.join(OPTIMIZERS)}"),
    "lr": (float, "peak learning rate"),
    "momentum": (float, "of SGD; AdamW has none"),
    "weight_decay": (float, "of everything but vectors"),
    "warmup_steps": (int, "steps of rising learning rate (default: 50, or a tenth of a short training)"),
    "clip_norm": (float, "largest norm of the gradients; 0 does not clip"),
    "label_smoothing": (float, "in [0, 1)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all options; those without a value follow the dataset's recipe."""
    add_data_arguments(parser, "digits")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--model", help="a published variant (see minifocal models)")
    kind.add_argument("--modulation", choices=MODULATION_NAMES, help=f"of a small network (default: {SIGMOID_GATE})")
    parser.add_argument("--seed", type=int, help="of weights, order, augmentation and drop path (default: 0)")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="of all numbers (default: float32)")
    add_device_argument(parser)
    parser.add_argument("--ops", choices=("auto", *TABLES), default="auto", help="what computes (default: the fastest)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="of matrix products' operands (default: float32)"
    )
    parser.add_argument(
        "--recompute-levels", action="store_true", help="compute focal levels twice: less memory, more time"
    )
    parser.add_argument("--graph", action="store_true", help="replay a GPU's steps in one launch: for small networks")
    parser.add_argument(
        "--check-finite", action="store_true", help="name the first layer that gives infinity or NaN; takes longer"
    )
    add_live_argument(parser)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of the run (default: runs/DATA, numbered)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out (default: the newest)")
    for title, options in (("network", NETWORK_OPTIONS), ("training", TRAINING_OPTIONS)):
        group = parser.add_argument_group(title, "defaults depend on the data")
        for name, (kind_of, text) in options.items():
            group.add_argument(f"--{name.replace('_', '-')}", type=kind_of or _integers, help=text, metavar="X")
    group.add_argument("--decay-all", action="store_true", default=None, help="decay vectors too")
    group.add_argument("--shift", type=int, metavar="PIXELS", help="largest random shift of the images")
    group.add_argument("--crop", type=int, metavar="PIXELS", help="side of a random window of the images")
    group.add_argument("--flip", action=argparse.BooleanOptionalAction, default=None, help="mirror half of the images")


def run(args: argparse.Namespace) -> int:
    """Train, or go on training; print the accuracy on the test images last."""
    with live_view(args.live) as following:
        return _run(args, following)


def _run(args: argparse.Namespace, following: Callable[[Trainer], AbstractContextManager[None]]) -> int:
    folder, settings = resumed_settings(args, EXECUTION_OPTIONS) if args.resume else _new_settings(args)
    execution = {name: getattr(args, name) for name in EXECUTION_OPTIONS}
    try:
        trainer, splits = _make_trainer(folder, settings, execution)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        if not args.resume or isinstance(error, InputError):
            raise
        raise InputError(f"{folder / CONFIG} is not a configuration that minifocal train wrote: {error!r}") from error
    with only_one(folder / LOCK, str(folder)) as alone:
        if alone:
            remove_leftovers(folder)
        _begin(trainer, folder, settings, args.resume)
        _announce(trainer, splits)
        title = f"{splits.name}, {settings['network'].get('model') or settings['network']['modulation']}"
        return _fit(args, trainer, splits, title, following)


def _begin(trainer: Trainer, folder: Path, settings: dict[str, Any], resumed: bool) -> None:
    """Go on from the last checkpoint, or from none; keep the settings beside it."""
    message = None
    if not resumed:
        _check_free(folder)
    elif holds_checkpoint(folder):
        message = trainer.resume()
    else:
        message = f"there is no checkpoint in {folder} yet: the run begins at its start"
    write_bytes(folder / CONFIG, json.dumps(settings, indent=2).encode())
    if message is not None:
        print(f"minifocal train: {message}", file=sys.stderr)


def _fit(
    args: argparse.Namespace,
    trainer: Trainer,
    splits: Splits,
    title: str,
    following: Callable[[Trainer], AbstractContextManager[None]],
) -> int:
    """Train to the end, or until it is stopped; give the exit status."""
    assert trainer.folder is not None
    resume = _resume_command(trainer.folder, args)
    try:
        with following(trainer):
            finished = trainer.fit()
    except KeyboardInterrupt:
        print(f"stopped at once; the last checkpoint stands, go on with: {resume}")
        return 130
    except TrainingError as error:
        if args.check_finite:
            raise
        closer = _resume_command(trainer.folder, args, graph=False, check_finite=True)
        raise TrainingError(f"{error}: {closer}") from error
    except InputError as error:
        if not holds_checkpoint(trainer.folder):
            raise
        raise InputError(f"{error}; the last checkpoint stands, go on with: {resume}") from error
    draw_curves(trainer.history, trainer.folder / CURVES, title=title)
    if not finished:
        print(f"stopped and saved; go on with: {resume}")
        return 128 + (trainer.stopped_by or signal.SIGINT)
    if args.device != "cpu":
        print(f"peak memory of the GPU {gpu.pool_bytes() / 2**20:.0f} MiB")
    if len(splits.train) <= BASELINE_IMAGES:
        print(f"one nearest neighbour {100 * nearest_neighbour_accuracy(splits.train, splits.test):.2f} %")
    accuracy = evaluate(trainer.model, splits.test, trainer.standardize).accuracy
    print(f"test accuracy {100 * accuracy:.2f} %")
    return 0


def _resume_command(folder: Path, args: argparse.Namespace, **changes: bool) -> str:
    """Give the command that goes on with a run: with the options of how to compute, which are not kept with it."""
    execution = {name: getattr(args, name) for name in EXECUTION_OPTIONS} | changes
    return f"minifocal train --resume --out {shlex.quote(str(folder))}{_given(execution)}{live_again(args.live)}"


def _given(execution: dict[str, Any]) -> str:
    """Options of how to compute, as they would be given on the command line."""
    options = {} if execution["device"] == "cpu" else {"--device": execution["device"]}
    if execution["ops"] != "auto":
        options["--ops"] = execution["ops"]
    if execution["precision"] != "float32":
        options["--precision"] = execution["precision"]
    text = "".join(f" {name} {value}" for name, value in options.items())
    switches = ("recompute_levels", "graph", "check_finite")
    return text + "".join(f" --{name.replace('_', '-')}" for name in switches if execution[name])


class ProgressBar(Listener):
    """A bar of images with loss, accuracy, images/s and time left, for a terminal."""

    def on_start(self, trainer: Trainer) -> None:
        """Draw the bar, as far as the run has come."""
        images, progress = len(trainer.train), trainer.progress
        self.epochs, self.steps_per_epoch = trainer.config.epochs, trainer.steps_per_epoch
        self.validation = ""
        columns, lines = shutil.get_terminal_size()  # tqdm draws nothing where a terminal says that it has no size
        self.bar = tqdm(
            total=self.epochs * images,
            initial=progress.epoch * images + min(progress.step * trainer.config.batch_size, images),
            unit=" img",
            file=sys.stderr,
            ncols=columns,
            nrows=lines,
            bar_format="{desc} {percentage:3.0f}% |{bar:4}| {rate_fmt}, {remaining} left{postfix}",
        )

    def on_step(self, step: int, total: int, record: StepRecord, images: int) -> None:
        """Move the bar."""
        epoch = (step - 1) // self.steps_per_epoch + 1
        self.bar.set_description_str(f"epoch {epoch}/{self.epochs}", refresh=False)
        self._show(f"loss {record.loss:.2f}, {100 * record.accuracy:.0f} %{self.validation}")
        self.bar.update(images)

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Show the validation accuracy from now on."""
        self.validation = f", val {100 * record['val_accuracy']:.1f} %"
        self._show(f"loss {record['train_loss']:.2f}, {100 * record['train_accuracy']:.0f} %{self.validation}")
        self.bar.refresh()

    def on_message(self, message: str) -> None:
        """Print above the bar."""
        self.bar.write(message, file=sys.stderr)

    def on_end(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()

    def _show(self, text: str) -> None:
        self.bar.set_postfix_str(text, refresh=False)


class PlainLines(Listener):
    """A line an epoch, for files and pipes."""

    def on_start(self, trainer: Trainer) -> None:
        """Remember how many epochs there are."""
        self.epochs = trainer.config.epochs

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Print the epoch's line."""
        print(
            f"epoch {record['epoch']:>3}/{self.epochs}  loss {record['train_loss']:.4f}  "
            f"accuracy {100 * record['train_accuracy']:6.2f} %  validation {100 * record['val_accuracy']:6.2f} %  "
            f"{record['images_per_second']:.0f} images/s",
            flush=True,
        )

    def on_message(self, message: str) -> None:
        """Print to standard error."""
        print(message, file=sys.stderr)


def _new_settings(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Give the folder of a new run, and all that shapes it, from the options and the dataset's recipe."""
    data = args.data or "digits"
    modulation = args.modulation or (FOCAL if args.model else SIGMOID_GATE)
    network, training = recipe_for(data).choose(modulation)
    given = {name: value for name in NETWORK_OPTIONS if (value := getattr(args, name)) is not None}
    if args.model:
        chosen: dict[str, Any] = {"model": args.model, "overrides": given}
    else:
        chosen = {"modulation": modulation, "network": asdict(replace(network, **given))}
    seed = 0 if args.seed is None else args.seed
    folder = args.out or _free_folder(RUNS / Path(data).resolve().name)
    _check_free(folder)
    return folder, {
        "data": {
            "data": data if data in DATASETS else str(Path(data).resolve()),
            "root": str(args.data_root.resolve()) if args.data_root else None,
            "image_size": args.image_size,
        },
        "network": {**chosen, "seed": seed, "dtype": args.dtype or "float32"},
        "training": _training(args, training, seed).to_dict(),
    }


def _training(args: argparse.Namespace, recipe: TrainConfig, seed: int) -> TrainConfig:
    names = [*TRAINING_OPTIONS, "decay_all"]
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if given.get("optimizer") == "adamw" and args.lr is None:
        given["lr"] = 3e-3  # the recipes' rates are for SGD
    changes = {name: value for name in ("shift", "flip") if (value := getattr(args, name)) is not None}
    if args.crop is not None:
        changes["crop"] = (args.crop, args.crop)
    augmentation: Augmentation = replace(recipe.augmentation, **changes)
    return replace(recipe, **given, augmentation=augmentation, seed=seed)


def _make_trainer(folder: Path, settings: dict[str, Any], execution: dict[str, Any]) -> tuple[Trainer, Splits]:
    splits = load_splits(**settings["data"])
    train, validation = split_validation(splits)
    trainer = Trainer(
        _build(settings["network"], splits.train, execution),
        train,
        validation,
        Standardize.fit(train),
        TrainConfig.from_dict(settings["training"]),
        folder=folder,
        meta={"data": settings["data"], "settings": settings},
        listener=ProgressBar() if on_terminal() else PlainLines(),
        graph=execution["graph"],
        check_finite=execution["check_finite"],
    )
    return trainer, splits


def _build(settings: dict[str, Any], data: Dataset, execution: dict[str, Any]) -> FocalNet:
    options = {"seed": settings["seed"], "dtype": settings["dtype"], **execution}
    del options["graph"], options["check_finite"]  # how to train, not what to build
    if "model" not in settings:
        network = {**settings["network"], "layers": tuple(settings["network"]["layers"])}
        return Network(**network).build(settings["modulation"], data, **options)
    overrides = settings["overrides"]
    known = ("init", *(field.name for field in fields(FocalNetConfig)))
    foreign = [name for name in overrides if name not in known]
    if foreign:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise InputError(f"leave {names} out: only the small networks take that, not --model {settings['model']}")
    return create_model(
        settings["model"],
        num_classes=data.num_classes,
        in_chans=data.in_channels,
        image_size=data.image_size,
        **overrides,
        **options,
    )


def _check_free(folder: Path) -> None:
    if holds_checkpoint(folder):
        raise InputError(f"{folder} holds a run already; add --resume to go on with it, or choose another --out")
    foreign = [name for name in HF_FILES if (folder / name).exists()]
    if (folder / CONFIG).exists() and not _is_of_a_run(folder / CONFIG):
        foreign.append(CONFIG)
    if foreign:
        raise InputError(f"{folder} holds {foreign[0]}, which is not of a run; choose another --out")


def _is_of_a_run(path: Path) -> bool:
    """Whether a configuration is one that this command writes: of a run that was stopped before it saved anything."""
    try:
        return {"data", "network", "training"} <= read_json(path).keys()
    except InputError:
        return False


def _free_folder(folder: Path) -> Path:
    """Give the folder, or the one with the first free number appended."""
    number = 2
    free = folder
    while free.exists():
        free = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return free


def _announce(trainer: Trainer, splits: Splits) -> None:
    counts = len(trainer.train), len(trainer.validation), len(splits.test)
    print(f"data: {splits.name}, {splits.note}")
    print("images: {} to train, {} to validate, {} to test".format(*counts))
    model = trainer.model
    assert isinstance(model, FocalNet)
    config = model.config
    precision = model.ops.precision
    rounded = "" if precision == "float32" else f", products in {precision}"
    print(
        f"network: {config.modulation}, {model.count_parameters():,} parameters, patch {config.patch_size}, "
        f"dims {'-'.join(map(str, config.dims))}, depths {'-'.join(map(str, config.depths))}, "
        f"levels {'-'.join(map(str, config.focal_levels))}, on {model.device}{rounded}"
    )
    print(f"folder: {trainer.folder}", flush=True)


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers such as 4 or 2,2, got {text!r}") from error
