"""`minifocal data`: public datasets for offline use."""

import argparse
from pathlib import Path

from tqdm import tqdm

from minifocal.cli.common import on_terminal
from minifocal.data.download import PUBLIC, fetch

HELP = "fetch public datasets into a folder, for offline use"
EXAMPLE = "minifocal data fetch mnist"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `fetch` and its datasets."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "download, check and unpack"
    action = actions.add_parser(
        "fetch", help=text, description=f"{text}.", epilog=f"example: {EXAMPLE}", allow_abbrev=False
    )
    action.add_argument("names", nargs="+", choices=sorted(PUBLIC), metavar="NAME", help=", ".join(sorted(PUBLIC)))
    action.add_argument(
        "--folder",
        type=Path,
        help="where to, with several names in a folder each (default: the cache, see minifocal doctor)",
    )


def run(args: argparse.Namespace) -> int:
    """Download what is not there yet, with a bar per file."""
    apart = args.folder is not None and len(args.names) > 1  # their files may have the same names
    for name in args.names:
        bars: dict[str, tqdm] = {}

        def progress(file: str, done: int, total: int | None, bars: dict[str, tqdm] = bars) -> None:
            if file not in bars:
                bars[file] = tqdm(desc=file, total=total, unit="B", unit_scale=True, disable=not on_terminal())
            bars[file].update(done - bars[file].n)

        try:
            folder = fetch(name, args.folder / name if apart else args.folder, progress)
        finally:
            for bar in bars.values():
                bar.close()
        print(f"{name}: {folder}")
    return 0
