"""`minifocal train`: train a network, with validation, into a folder that can be resumed."""

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from minifocal.cli.common import (
    RUNS,
    add_data_arguments,
    add_device_argument,
    on_terminal,
    split_validation,
)
from minifocal.cli.live import add_live_argument, live_again, live_view
from minifocal.cli.progress import PlainLines, ProgressBar
from minifocal.cli.ranks import check_alike, device_of_rank, launch_command, leaving_together, run_in_ranks
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
from minifocal.training.optim import OPTIMIZERS
from minifocal.training.ranks import Ranks, RanksError
from minifocal.training.run_folder import CONFIG, CURVES, LOCK, holds_checkpoint, remove_leftovers
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
EXECUTION_OPTIONS = ("device", "ops", "recompute_levels", "precision", "micro_batch", "graph", "check_finite")
"""Options of how to compute. They change nothing of what is kept with a run, so it may be resumed with others, and on
another number of ranks; it ends with the same bits only with the same (but for recompute_levels, graph and
check_finite, which change none)."""

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
    parser.add_argument(
        "--micro-batch", type=int, metavar="IMAGES", help="images at a time, gradients added up: for want of memory"
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
    """Train, or go on training, alone or with other ranks; print the accuracy on the test images last."""
    return run_in_ranks(args.command, lambda ranks: _run(args, ranks))


def _run(args: argparse.Namespace, ranks: Ranks) -> int:
    check_alike(args, ranks)
    with live_view(args.live if ranks.is_first else None) as following:
        return _train(args, ranks, following)


def _train(args: argparse.Namespace, ranks: Ranks, following: Callable[[Trainer], AbstractContextManager[None]]) -> int:
    folder, settings = ranks.from_first(
        lambda: resumed_settings(args, EXECUTION_OPTIONS) if args.resume else _new_settings(args)
    )
    execution = {name: getattr(args, name) for name in EXECUTION_OPTIONS}
    execution["device"] = device_of_rank(args.device, ranks)
    try:
        trainer, splits = _make_trainer(folder, settings, execution, ranks)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        if not args.resume or isinstance(error, InputError):
            raise
        raise InputError(f"{folder / CONFIG} is not a configuration that minifocal train wrote: {error!r}") from error
    with ExitStack() as held:
        ranks.from_first(lambda: _begin(trainer, folder, settings, args.resume, held))
        _announce(trainer, splits, folder)
        title = f"{splits.name}, {settings['network'].get('model') or settings['network']['modulation']}"
        return _fit(args, trainer, splits, folder, title, following)


def _begin(trainer: Trainer, folder: Path, settings: dict[str, Any], resumed: bool, held: ExitStack) -> None:
    """Take the folder; go on from the last checkpoint, or from none; keep the settings beside it."""
    if held.enter_context(only_one(folder / LOCK, str(folder))):
        remove_leftovers(folder)
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
    folder: Path,
    title: str,
    following: Callable[[Trainer], AbstractContextManager[None]],
) -> int:
    """Train to the end, or until it is stopped; give the exit status."""
    ranks = trainer.ranks
    resume = _resume_command(folder, args, ranks)
    try:
        with following(trainer):
            finished = trainer.fit()
    except KeyboardInterrupt:
        print(f"stopped at once; the last checkpoint stands, go on with: {resume}")
        if ranks.size > 1:
            raise
        return 130
    except TrainingError as error:
        if args.check_finite:
            raise
        closer = _resume_command(folder, args, ranks, graph=False, check_finite=True)
        raise TrainingError(f"{error}: {closer}") from error
    except (InputError, RanksError) as error:
        if not holds_checkpoint(folder):
            raise
        raise type(error)(f"{error}; the last checkpoint stands, go on with: {resume}") from error
    with leaving_together(ranks):
        if ranks.is_first:
            draw_curves(trainer.history, folder / CURVES, title=title)
        if not finished:
            print(f"stopped and saved; go on with: {resume}")
            return 128 + (trainer.stopped_by or signal.SIGINT)
        if args.device != "cpu":
            print(f"peak memory of the GPU {gpu.pool_bytes() / 2**20:.0f} MiB")
        if ranks.is_first and len(splits.train) <= BASELINE_IMAGES:
            print(f"one nearest neighbour {100 * nearest_neighbour_accuracy(splits.train, splits.test):.2f} %")
        print(f"test accuracy {100 * trainer.evaluate(splits.test).accuracy:.2f} %")
    return 0


def _resume_command(folder: Path, args: argparse.Namespace, ranks: Ranks, **changes: bool) -> str:
    """Give the command that goes on with a run: with the options of how to compute, which are not kept with it."""
    execution = {name: getattr(args, name) for name in EXECUTION_OPTIONS} | changes
    command = f"{launch_command(ranks)}minifocal train --resume --out {shlex.quote(str(folder))}"
    return f"{command}{_given(execution)}{live_again(args.live)}"


def _given(execution: dict[str, Any]) -> str:
    """Options of how to compute, as they would be given on the command line."""
    options = {} if execution["device"] == "cpu" else {"--device": execution["device"]}
    if execution["ops"] != "auto":
        options["--ops"] = execution["ops"]
    if execution["precision"] != "float32":
        options["--precision"] = execution["precision"]
    if execution["micro_batch"] is not None:
        options["--micro-batch"] = execution["micro_batch"]
    text = "".join(f" {name} {value}" for name, value in options.items())
    switches = ("recompute_levels", "graph", "check_finite")
    return text + "".join(f" --{name.replace('_', '-')}" for name in switches if execution[name])


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


def _make_trainer(
    folder: Path, settings: dict[str, Any], execution: dict[str, Any], ranks: Ranks
) -> tuple[Trainer, Splits]:
    splits = load_splits(**settings["data"])
    train, validation = split_validation(splits)
    trainer = Trainer(
        _build(settings["network"], splits.train, execution),
        train,
        validation,
        Standardize.fit(train),
        TrainConfig.from_dict(settings["training"]),
        folder=folder if ranks.is_first else None,
        meta={"data": settings["data"], "settings": settings},
        listener=None if not ranks.is_first else ProgressBar() if on_terminal() else PlainLines(),
        graph=execution["graph"],
        micro_batch=execution["micro_batch"],
        ranks=ranks,
        check_finite=execution["check_finite"],
    )
    return trainer, splits


def _build(settings: dict[str, Any], data: Dataset, execution: dict[str, Any]) -> FocalNet:
    options = {"seed": settings["seed"], "dtype": settings["dtype"], **execution}
    del options["graph"], options["micro_batch"], options["check_finite"]  # how to train, not what to build
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


def _announce(trainer: Trainer, splits: Splits, folder: Path) -> None:
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
    if trainer.ranks.size > 1:
        print(f"ranks: {', '.join(trainer.ranks.names)}")
    print(f"folder: {folder}", flush=True)


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers such as 4 or 2,2, got {text!r}") from error
