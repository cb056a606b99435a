"""Changing a few bytes of a file, whatever it is."""

from collections.abc import Callable
from random import Random

Mutate = Callable[[Random, bytes], bytes]

LARGEST = 2**16  # bytes of a file that is made; larger hostile ones are cases of their own
INTEGERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63,
    2**64 - 1,
)


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    """Change a few bytes: flip, write over by numbers that matter, take out, double, cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = rng.choice((0, 1, 0x0A, 0x22, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(INTEGERS) % 256**width
            changed[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif kind == 3:
            del changed[at : at + rng.choice((1, 1, 2, 4, 16))]
        elif kind == 4:
            changed[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 2, 4, 8))))
        elif kind == 5:
            changed[at:at] = changed[at : at + rng.choice((1, 4, 16, 64))]
        elif len(changed) > 1 and rng.random() < 0.3:
            del changed[at:]
    return bytes(changed[:LARGEST])
