"""`minifocal gradcheck`: every layer and small whole networks against differences of their forward passes."""

import argparse
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from tqdm import tqdm

from minifocal.arrays import Array, Generator, random_generator
from minifocal.cli.common import on_terminal
from minifocal.errors import InputError
from minifocal.gradcheck import METHODS, check_layer
from minifocal.layers.base import Layer
from minifocal.layers.depthwise_conv import DepthwiseConv
from minifocal.layers.drop_path import Dropout, DropPath
from minifocal.layers.initializers import LeCun
from minifocal.layers.layer_norm import LayerNorm
from minifocal.layers.linear import Linear
from minifocal.layers.mlp import MLP
from minifocal.layers.patch_embed import PatchEmbed
from minifocal.models.block import FocalNetBlock, FocalNetStage
from minifocal.models.config import FOCAL, MODULATION_NAMES, FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.models.modulation import MODULATIONS

HELP = "check every hand-written gradient: a line for each layer and parameter, pass or FAIL"
EXAMPLE = "minifocal gradcheck 'modulation*' --elementwise"

SHAPE = (2, 5, 4, 6)  # B, H, W, C: all different, so that a swapped axis cannot pass
FLAGS: tuple[dict[str, Any], ...] = (
    {"use_conv_embed": True},
    {"use_layerscale": True},
    {"use_postln": True},
    {"pad_mode": "pad"},
    {"patch_norm": False},
    {"mlp_act": "gelu_pytorch_tanh"},
    {"drop_rate": 0.25},
    {"drop_path_rate": 0.5},
)
FOCAL_FLAGS: tuple[dict[str, Any], ...] = ({"use_postln_in_modulation": True}, {"normalize_modulator": True})


@dataclass(frozen=True)
class Case:
    """A layer to check, and the shape of its input."""

    name: str
    layer: Layer
    shape: tuple[int, ...]
    complex_step: bool = True  # whole networks refuse complex numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the choice of layers and of the method."""
    parser.add_argument("layers", nargs="*", metavar="LAYER", help="shell patterns of names (default: all)")
    parser.add_argument("--method", choices=METHODS, default="central", help="of differencing (default: central)")
    parser.add_argument("--elementwise", action="store_true", help="compare every element, list the worst of each")
    parser.add_argument("--tolerance", type=float, default=1e-7, help="largest relative error (default: 1e-7)")
    parser.add_argument("--seed", type=int, default=0, help="of values and directions (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Print the table; fail when a gradient is wrong."""
    patterns = args.layers or ["*"]
    known = list(cases())
    chosen = [case for case in known if any(fnmatch.fnmatch(case.name, pattern) for pattern in patterns)]
    if not chosen:
        raise InputError(f"no layer matches {' '.join(patterns)}; the layers are {', '.join(c.name for c in known)}")
    if args.method == "complex":
        refusing = [case for case in chosen if not case.complex_step]
        chosen = [case for case in chosen if case.complex_step]
        if not chosen:
            raise InputError("whole networks refuse complex numbers; use --method central")
        if refusing:
            print(f"left out, because whole networks refuse complex numbers: {len(refusing)}")
    failures, worst, checked = 0, 0.0, 0
    for case in tqdm(chosen, unit=" layers", disable=not on_terminal(), leave=False):
        rng = random_generator(args.seed)
        _randomize(case.layer, rng)
        report = check_layer(
            case.layer,
            rng.standard_normal(case.shape),
            rng=rng,
            drop_seed=args.seed,
            method=args.method,
            elementwise=args.elementwise,
            tolerance=args.tolerance,
        )
        tqdm.write(f"{case.name}\n{report}")
        if args.elementwise:
            tqdm.write("\n".join(check.table(3) for check in report.checks if check.passed))
        failures += len(report.failed)
        checked += len(report.checks)
        worst = max(worst, report.relative_error)
    verdict = f"{failures} FAILED" if failures else "all pass"
    print(f"{checked} gradients of {len(chosen)} layers: {verdict}, worst relative error {worst:.1e}")
    return 1 if failures else 0


def cases() -> Iterator[Case]:
    """Go through every layer, every modulation, every block flag and small whole networks."""
    C = SHAPE[-1]
    init = LeCun(0, "float64")
    image = (2, 7, 9, 3)
    yield Case("linear", Linear(C, 5, init=init), SHAPE)
    yield Case("layer_norm", LayerNorm(C, init=init), SHAPE)
    for k in (1, 3, 7):
        yield Case(f"depthwise_conv.{k}", DepthwiseConv(C, k, init=init), SHAPE)
    for act in ("gelu", "gelu_pytorch_tanh"):
        yield Case(f"mlp.{act}", MLP(C, 7, init=init, act=act), SHAPE)
    yield Case("drop_path", DropPath(0.5), (5, 3, 2, 4))
    yield Case("dropout", Dropout(0.5), SHAPE)
    yield Case("patch_embed.plain", PatchEmbed(3, C, size=2, stride=2, init=init), image)
    yield Case("patch_embed.pad", PatchEmbed(3, C, size=4, stride=4, pad_to=4, init=init), image)
    yield Case("patch_embed.overlap", PatchEmbed(3, C, size=3, stride=2, padding=1, norm=False, init=init), image)
    for modulation in MODULATION_NAMES:
        config = _config(modulation)
        yield Case(f"modulation.{modulation}", MODULATIONS[modulation](config, 0, init=init), SHAPE)
        yield Case(f"block.{modulation}", FocalNetBlock(config, 0, 0.0, init=init), SHAPE)
        yield Case(f"stage.{modulation}", FocalNetStage(config, 0, [0.0, 0.5], init=init), (2, 6, 4, C))
    for modulation, flags in [*product(MODULATION_NAMES, FLAGS), *product([FOCAL], FOCAL_FLAGS)]:
        name = ",".join(flags)
        network = FocalNet(_config(modulation, **flags), init="lecun", dtype="float64")
        yield Case(f"network.{modulation}.{name}", network, (2, 3, 8, 12), complex_step=False)
    no_levels = FocalNet(_config(FOCAL, focal_levels=(0, 2)), init="lecun", dtype="float64")
    yield Case("network.focal.no_levels", no_levels, (2, 3, 8, 12), complex_step=False)


def _config(modulation: str, **flags: Any) -> FocalNetConfig:
    """A network small enough to check in a moment: two stages, sizes all different."""
    shape: dict[str, Any] = {"depths": (1, 2), "focal_levels": (2, 1), "focal_windows": (3, 3)}
    return FocalNetConfig(
        **{
            "image_size": (8, 12),
            "patch_size": 2,
            "num_classes": 5,
            "embed_dim": SHAPE[-1],
            "mlp_ratio": 1.5,
            "drop_path_rate": 0.0,
            "modulation": modulation,
            **shape,
            **flags,
        }
    )


def _randomize(layer: Layer, rng: Generator) -> None:
    """Move every parameter off the zeros and ones that it starts at: those hide wrong gradients."""
    for parameter in layer.parameters():
        noise: Array = rng.standard_normal(parameter.data.shape)
        parameter.data = parameter.data + 0.2 * noise
