"""`minifocal models`: the published variants."""

import argparse

from minifocal.cli.common import table
from minifocal.errors import InputError
from minifocal.models.complexity import multiply_adds
from minifocal.models.zoo import create_model, list_models

HELP = "list the published variants: parameters, multiply-adds, shape"
EXAMPLE = "minifocal models '*srf*'"

FLAGS = ("use_conv_embed", "use_layerscale", "use_postln", "use_postln_in_modulation", "normalize_modulator")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the pattern."""
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern of names (default: all)")


def run(args: argparse.Namespace) -> int:
    """Print a line for each variant."""
    names = list_models(args.pattern)
    if not names:
        raise InputError(f"no model matches {args.pattern!r}; the models are {', '.join(list_models())}")
    rows = []
    for name in names:
        model = create_model(name, init="zeros")
        config = model.config
        rows.append(
            [
                name,
                f"{model.count_parameters():,}",
                f"{sum(multiply_adds(config).values()) / 1e9:.2f}",
                str(config.patch_size),
                "-".join(map(str, config.dims)),
                "-".join(map(str, config.depths)),
                "-".join(map(str, config.kernel_sizes(0))),
                " ".join(flag.removeprefix("use_") for flag in FLAGS if getattr(config, flag)),
            ]
        )
    print(table(["model", "parameters", "GMACs", "patch", "dims", "depths", "kernels", "flags"], rows))
    return 0
