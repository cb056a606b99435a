"""Changing JSON into hostile JSON: values, names and structure, and texts of it that are JSON themselves."""

import json
from random import Random
from typing import Any

from hostile_bytes import LARGEST, mutate_bytes


class Raw(str):
    """A text that stands in JSON as it is."""

    __slots__ = ()


class Pairs(list):
    """An object of JSON, whose names may stand there twice."""

    __slots__ = ()


VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        7,
        255,
        2**31,
        2**63,
        10**30,
        -(10**30),
        0.5,
        -0.0,
        1e308,
        -1e308,
        10**308,
        1e-320,
    ),
    *("", "0", "\0", "\ud800", "\n", "a" * 3000, "../../etc/passwd", "/dev/zero", "nan", "\u0660", "$x$"),
    *(Raw("NaN"), Raw("-Infinity"), Raw("1e999"), Raw("9" * 400), Raw("-" + "9" * 4300), Raw("9" * 4301), Raw("-0")),
    *map(Raw, ("[]", "{}", "[[]]", "[0]", "[-1]", "[1099511627776,1,1]", f"[{'1,' * 40}1]", "[0.5,null]", '{"":null}')),
    *(Raw("[" * 300 + "]" * 300), Raw("[" * 30_000 + "]" * 30_000), Raw('{"a":' * 300 + "1" + "}" * 300)),
)


def to_json(value: Any) -> str:
    """Write JSON, and what only looks like it."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(name)}:{to_json(item)}" for name, item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(to_json, value)) + "]"
    return json.dumps(value)


def mutate_json(rng: Random, data: bytes) -> bytes:
    """Change values, names and structure; a text that is JSON itself is changed inside."""
    if rng.random() < 0.05:
        return mutate_bytes(rng, data)
    try:
        value = json.loads(data, object_pairs_hook=Pairs)
    except (ValueError, RecursionError):
        return mutate_bytes(rng, data)
    top = [value]
    try:
        for _ in range(rng.choice((1, 1, 2, 4))):
            _change_one(rng, top)
        return to_json(top[0]).encode("utf-8", "surrogatepass")[: 2 * LARGEST]
    except RecursionError:  # of what is nested nearly as deeply as Python reads it
        return mutate_bytes(rng, data)


def _places(value: Any, found: list[tuple[list, int]]) -> list[tuple[list, int]]:
    for index, item in enumerate(value):
        found.append((value, index))
        item = item[1] if isinstance(value, Pairs) else item
        if isinstance(item, list):
            _places(item, found)
    return found


def _change_one(rng: Random, top: list) -> None:
    places = _places(top, [])
    inside, index = rng.choice(places)
    name, value = inside[index] if isinstance(inside, Pairs) else ("", inside[index])
    kind = rng.randrange(9)
    if isinstance(value, str) and value[:1] == "{" and not isinstance(value, Raw) and kind < 7:
        value = mutate_json(rng, value.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
    elif kind == 0 and inside is not top:
        del inside[index]
        return
    elif kind == 1 and inside is not top:
        inside.insert(index, inside[index])
        return
    elif kind == 2:
        other, place = rng.choice(places)
        value = other[place][1] if isinstance(other, Pairs) else other[place]
        if isinstance(value, list):  # as text: a value must not hold itself
            value = Raw(to_json(value))
    elif kind == 3 and isinstance(value, int | float) and abs(value) < 1e300:
        value = rng.choice((value + 1, value - 1, -value, value * 2, float(value), str(value), value + 0.5))
    elif kind == 4:
        value = rng.choice(([value], Pairs([("a", value)]), [value, value]))
    elif kind == 5 and isinstance(inside, Pairs):
        other, place = rng.choice(places)
        name = rng.choice((other[place][0] if isinstance(other, Pairs) else "0", "", "\0", name + "\n", "x" * 3000))
    else:
        value = rng.choice(VALUES)
    inside[index] = (name, value) if isinstance(inside, Pairs) else value
