"""Replay the transcript of the README: each command prints what stands there.

    python tests/learn/transcript.py /path/to/minifocal README.md

runs it in the current folder, which is empty, with that program.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

WRITTEN = (  # what stands in the file after each `edit`, the stub's first
    "    raise NotImplementedError\n",
    """    centred = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    x_hat, dx_hat = centred * rstd, dy * weight
    dx = rstd * (dx_hat - dx_hat.mean(axis=-1, keepdims=True))
    return dx, (dy * x_hat).sum(axis=(0, 1)), dy.sum(axis=(0, 1))
""",
    """    centred = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    x_hat, dx_hat = centred * rstd, dy * weight
    variance_term = x_hat * (dx_hat * x_hat).mean(axis=-1, keepdims=True)
    dx = rstd * (dx_hat - dx_hat.mean(axis=-1, keepdims=True) - variance_term)
    return dx, (dy * x_hat).sum(axis=(0, 1)), dy.sum(axis=(0, 1))
""",
)


def steps(readme: str) -> Iterator[tuple[list[str], str]]:
    """Go through the commands of the transcript, with what each prints."""
    (block,) = re.findall(r"```text\n(\$ .*?)```", readme, re.DOTALL)
    for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, output = step.partition("\n")
        yield shlex.split(command, comments=True), output


def replay(program: list[str], readme: str) -> int:
    """Run every command, write every attempt; give the number of commands.

    Raises:
        AssertionError: a command prints something else.
    """
    edits, count = iter(pairwise(WRITTEN)), 0
    for (first, *words), expected in steps(readme):
        if first == "edit":
            path, (old, new) = Path(words[0]), next(edits)
            path.write_text(path.read_text().replace(old, new))
            continue
        done = subprocess.run([*program, *words], capture_output=True, text=True, check=False)
        assert done.stdout == expected, f"{' '.join(words)} prints:\n{done.stdout}{done.stderr}\nand not:\n{expected}"
        count += 1
    return count


if __name__ == "__main__":
    print(replay([sys.argv[1]], Path(sys.argv[2]).read_text()), "commands print what the README shows")
