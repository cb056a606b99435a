"""Why an array is wrong: the usual causes, tried one after the other, the most telling first.

Each finder takes a result (`yours`), what it should be (`truth`) and the case, and gives a sentence or nothing.
"""

from collections.abc import Callable, Iterator
from itertools import combinations, permutations, product

import numpy as np

from minifocal.arrays import Array
from minifocal.learn.case import Case

CLOSE = 1e-6  # relative: two arrays that differ by less are the same but for rounding
MOST_AXES = 8  # whose subsets are tried; no result of an exercise has more than 5
NEARLY = 2e-2  # relative to the largest element: right but for a constant or an approximation

Finder = Callable[[str, Array, Array, Case], str]


def diagnose(name: str, yours: Array, truth: Array, case: Case, misuse: str = "") -> str:
    """Name the cause of a wrong result, or say where it is wrong; empty where nothing fits.

    Args:
        name: which result. yours, truth: it, and what it should be. case: the call that gave it.
        misuse: what is wrong with how it depends on the upstream gradient. It says more than the places do.
    """
    if yours.shape != truth.shape:
        return _first(_OTHER_SHAPE, name, yours, truth, case)
    cause = _first(_SAME_SHAPE, name, yours, truth, case)
    return cause or misuse or _first(_PLACES, name, yours, truth, case)


def _first(finders: tuple[Finder, ...], name: str, yours: Array, truth: Array, case: Case) -> str:
    with np.errstate(all="ignore"):
        causes = (finder(name, yours, truth, case) for finder in finders)
        return next(filter(None, causes), "")


def same(one: Array, other: Array) -> bool:
    """Whether two arrays are equal but for rounding."""
    if one.shape != other.shape or not np.isfinite(one).all():
        return False
    return bool(np.abs(one - other).max(initial=0.0) <= CLOSE * max(np.abs(other).max(initial=0.0), 1e-30))


# Another shape


def _is_another_result(name: str, yours: Array, truth: Array, case: Case) -> str:
    for other, value in case.expected.items():
        if other != name and same(yours, value):
            return f"this is {other}: give the results in the order {', '.join(case.expected)}"
    return ""


def _lacks_a_sum(name: str, yours: Array, truth: Array, case: Case) -> str:
    if not yours.size or yours.ndim > MOST_AXES:
        return ""
    for count in range(1, yours.ndim + 1):
        for axes in combinations(range(yours.ndim), count):
            for keepdims in (False, True):
                if same(yours.sum(axis=axes, keepdims=keepdims), truth):
                    return (
                        f"the sum over {_axes(axes)} is missing: the forward pass used each of its elements "
                        f"{yours.size // max(truth.size, 1)} times (broadcast), and their gradients add up"
                    )
                if same(yours.mean(axis=axes, keepdims=keepdims), truth):
                    return f"the mean over {_axes(axes)} is missing"
    return ""


def _is_not_repeated(name: str, yours: Array, truth: Array, case: Case) -> str:
    if yours.ndim == truth.ndim and yours.size < truth.size:
        try:
            repeated = np.broadcast_to(yours, truth.shape)
        except ValueError:
            return ""
        if same(repeated, truth):
            return f"the numbers are right, but not repeated to the shape {truth.shape}: np.broadcast_to does that"
    return ""


def _sums_too_much(name: str, yours: Array, truth: Array, case: Case) -> str:
    for count in range(1, truth.ndim + 1):
        for axes in combinations(range(truth.ndim), count):
            for reduce, word in ((np.sum, "summed"), (np.mean, "averaged")):
                if any(same(yours, reduce(truth, axis=axes, keepdims=keep)) for keep in (False, True)):
                    return f"it is {word} over {_axes(axes)}, which belongs to the result"
    return ""


def _is_reshaped(name: str, yours: Array, truth: Array, case: Case) -> str:
    if yours.size == truth.size and same(yours.reshape(truth.shape), truth):
        return "the numbers are right, the shape is not: axes of length 1 too many or too few, or a reshape"
    return ""


def _is_transposed(name: str, yours: Array, truth: Array, case: Case) -> str:
    if yours.ndim == truth.ndim and yours.size == truth.size:
        for order in permutations(range(yours.ndim)):
            if order != tuple(range(yours.ndim)) and same(yours.transpose(order), truth):
                return f"it is transposed: axes {order} of yours are the axes of {name}"
    return ""


def _has_another_shape(name: str, yours: Array, truth: Array, case: Case) -> str:
    hint = "a gradient has the shape of what it belongs to" if case.numeric else "see the docstring for what is asked"
    return f"the shape is {yours.shape}, expected {truth.shape}: {hint}"


# The same shape


def _is_not_finite(name: str, yours: Array, truth: Array, case: Case) -> str:
    bad = ~np.isfinite(yours)
    if not bad.any():
        return ""
    kinds = "NaN" if np.isnan(yours).any() else "infinite"
    return (
        f"{int(bad.sum())} of {yours.size} elements are {kinds}: an overflow (exp of a large number), a division by "
        "zero or the root of a negative number"
    )


def _is_zero(name: str, yours: Array, truth: Array, case: Case) -> str:
    if truth.any() and not yours.any():
        return "every element is zero: it was made with zeros and never filled, or its factors cancel"
    return ""


def _is_a_suspect(name: str, yours: Array, truth: Array, case: Case) -> str:
    for suspect in case.suspects:
        if suspect.result == name and same(yours, suspect.value) and not same(suspect.value, truth):
            return suspect.cause
    return ""


def _has_a_constant_ratio(name: str, yours: Array, truth: Array, case: Case) -> str:
    ratio = float((yours * truth).sum() / (truth * truth).sum()) if truth.any() else 0.0
    if truth.size < 2 or not np.isfinite(ratio) or ratio == 0.0 or not same(yours, ratio * truth):
        return ""
    if abs(ratio + 1.0) < CLOSE:
        return "the sign is turned: it is -1 times the right result"
    named = _name_number(ratio, case)
    mean = named.startswith(" (= 1/") and "stride" not in named and any(letter in named for letter in case.sizes)
    advice = "is there a mean where a sum belongs, or one mean too many?" if mean else "a factor is missing or too much"
    return f"it is {ratio:.6g} times the right result{named}: {advice}"


def _is_flipped(name: str, yours: Array, truth: Array, case: Case) -> str:
    for count in range(1, truth.ndim + 1):
        for axes in combinations(range(truth.ndim), count):
            if same(np.flip(yours, axes), truth):
                return f"it is flipped along {_axes(axes)}"
    for order in permutations(range(truth.ndim)):
        if order != tuple(range(truth.ndim)) and same(yours.transpose(order), truth):
            return f"it is transposed: axes {order} of yours are the axes of {name}"
    return ""


def _is_in_another_order(name: str, yours: Array, truth: Array, case: Case) -> str:
    for order in permutations(range(truth.ndim)):
        if order != tuple(range(truth.ndim)) and same(yours, truth.transpose(order).reshape(truth.shape)):
            return "the numbers are right, their order is not: a reshape where a transpose (np.moveaxis) belongs"
    return ""


def _is_shifted(name: str, yours: Array, truth: Array, case: Case) -> str:
    """Equal but for a shift by a step or two along one axis or two, where both have a value."""
    for count in (1, 2):
        for axes in combinations(range(truth.ndim), count):
            for shifts in product((-2, -1, 1, 2), repeat=count):
                ours, theirs = [slice(None)] * truth.ndim, [slice(None)] * truth.ndim
                for axis, shift in zip(axes, shifts, strict=True):
                    ours[axis], theirs[axis] = _overlap(shift), _overlap(-shift)
                part = truth[tuple(theirs)]
                if part.size * 4 >= truth.size and same(yours[tuple(ours)], part):
                    return f"it is shifted along {_axes(axes)}: an index is off by one, or the padding is on one side"
    return ""


def _overlap(shift: int) -> slice:
    return slice(shift, None) if shift > 0 else slice(None, shift)


def _differs_by_a_factor(name: str, yours: Array, truth: Array, case: Case) -> str:
    for factor, value in _known(case, truth):
        if not value.any() or same(value, np.ones_like(value)):
            continue
        if same(yours * value, truth):
            rule = ": the chain rule multiplies by the upstream gradient" if factor in case.upstream else ""
            return f"the factor {factor} is missing{rule}"
        if same(yours, truth * value):
            return f"there is a factor {factor} too much"
    return ""


def _differs_by_a_term(name: str, yours: Array, truth: Array, case: Case) -> str:
    for term, value in _known(case, truth):
        if value.any():
            if same(yours + value, truth):
                return f"the term {term} is missing"
            if same(yours - value, truth):
                return f"there is a term {term} too much"
    return ""


def _is_nearly_right(name: str, yours: Array, truth: Array, case: Case) -> str:
    largest = np.abs(truth).max(initial=0.0)
    if largest and np.abs(yours - truth).max() < NEARLY * largest:
        return (
            "it is nearly right: a constant with too few digits, a forgotten small term (eps), or another function "
            "that looks the same"
        )
    return ""


def _is_wrong_in_places(name: str, yours: Array, truth: Array, case: Case) -> str:
    """Along the axis that tells most: where few are wrong, or few are right and not just zero."""
    wrong = np.abs(yours - truth) > CLOSE * np.abs(truth).max(initial=1e-30)
    found: list[tuple[float, str]] = []
    for axis, length in enumerate(truth.shape):
        by_index = wrong.any(axis=tuple(a for a in range(truth.ndim) if a != axis))
        at, right = np.flatnonzero(by_index), np.flatnonzero(~by_index)
        if not 0 < len(at) < length:
            continue
        where = f" of axis {axis} (length {length})"
        if len(at) <= length // 2:
            edge = set(at) <= {0, 1, length - 2, length - 1} and "k" in case.sizes and axis in (1, 2)
            border = ", at the border: look at the padding" if edge and truth.ndim == 4 else ""
            found.append((len(at) / length, f"it is wrong only at index {_places(at)}{where}{border}"))
        elif truth.take(right, axis).any():
            found.append((len(right) / length, f"it is right only at index {_places(right)}{where}"))
    return min(found)[1] if found else ""


def _places(at: Array) -> str:
    return ", ".join(map(str, at[:6])) + (", ..." if len(at) > 6 else "")


_OTHER_SHAPE: tuple[Finder, ...] = (
    _is_another_result,
    _is_transposed,
    _is_reshaped,
    _lacks_a_sum,
    _is_not_repeated,
    _sums_too_much,
    _has_another_shape,
)
_SAME_SHAPE: tuple[Finder, ...] = (
    _is_not_finite,
    _is_zero,
    _is_a_suspect,
    _is_another_result,
    _has_a_constant_ratio,
    _is_flipped,
    _is_in_another_order,
    _differs_by_a_factor,
    _differs_by_a_term,
    _is_shifted,
)
_PLACES: tuple[Finder, ...] = (_is_nearly_right, _is_wrong_in_places)


def _known(case: Case, truth: Array) -> Iterator[tuple[str, Array]]:
    """Arrays and numbers of the case that could be a factor or a term of a result."""
    for name, value in {**case.arguments, **case.known}.items():
        array = np.asarray(value) if not isinstance(value, tuple) else None
        if array is None or array.dtype.kind != "f":
            continue
        # An array without some of the axes may stand for one with all of them: gamma (C,) for (B, T, C).
        try:
            yield name, np.broadcast_to(array, truth.shape)
        except ValueError:
            continue


def _name_number(ratio: float, case: Case) -> str:
    """Say what a ratio is in terms of the sizes and numbers: " (= B*T)", " (= 1/(H*W))" or " (= B/dloss)"."""
    letters = [letter for letter, size in case.sizes.items() if size > 1]
    for count in range(1, len(letters) + 1):
        for chosen in combinations(letters, count):
            size = float(np.prod([case.sizes[letter] for letter in chosen]))
            text = "*".join(chosen)
            if abs(ratio / size - 1.0) < CLOSE:
                return f" (= {text})"
            if abs(ratio * size - 1.0) < CLOSE:
                text = text if count == 1 else f"({text})"
                return f" (= 1/{text})"
    numbers = [(float(case.sizes[letter]), letter) for letter in letters]
    numbers += [(float(case.sizes[letter]) ** 2, f"({letter}*{letter})") for letter in ("k", "P") if letter in letters]
    for name, value in case.arguments.items():
        if isinstance(value, float):
            numbers += [(value, name), (1.0 - value, f"(1 - {name})")]
    for number, text in numbers:
        if abs(ratio - number) < CLOSE:
            return f" (= {text})"
        if number and abs(ratio * number - 1.0) < CLOSE:
            return f" (= 1/{text})"
    for (above, text), (below, other) in permutations(numbers, 2):
        if above and below and abs(ratio * below / above - 1.0) < CLOSE:
            return f" (= {text}/{other})"
    return ""


def _axes(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"
