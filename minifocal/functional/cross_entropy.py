"""Softmax cross-entropy: what classification minimises."""

from typing import NamedTuple

from minifocal.arrays import Array, get_array_module, is_on_host
from minifocal.errors import InputError


class CrossEntropyCache(NamedTuple):
    """What `cross_entropy_backward` needs."""

    probabilities: Array  # (B, N) softmax of the logits
    targets: Array  # (B, N) smoothed one-hot labels


def log_softmax(logits: Array) -> Array:
    """Logarithm of the softmax over the last axis: logits - log sum_n exp(logits[n]).

    The logits are shifted by their largest first, which changes nothing but keeps exp from overflowing.

    Args:
        logits: (..., N), float.
    Returns:
        (..., N), dtype of logits; its exp sums to 1.
    """
    xp = get_array_module(logits)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy_forward(
    logits: Array, labels: Array, label_smoothing: float = 0.0
) -> tuple[Array, CrossEntropyCache]:
    """Mean over the batch of -sum_n targets[n] log softmax(logits)[n].

    targets = (1 - s) one_hot(label) + s/N, s the label smoothing.

    Args:
        logits: (B, N), float.
        labels: (B,), integers in [0, N), beside the logits.
        label_smoothing: s, in [0, 1).
    Returns:
        loss: a scalar array in nats, dtype of logits; and a CrossEntropyCache.
    Raises:
        InputError: shapes that do not fit, smoothing outside [0, 1), labels that are no integers or out of range
            (looked at where they are on the host; on a device that would wait for it).
    Source: label smoothing, Szegedy et al. 2016 (arXiv:1512.00567).
    """
    check_cross_entropy(logits, labels, label_smoothing)
    xp, N = get_array_module(logits), logits.shape[1]
    log_probabilities = log_softmax(logits)
    one_hot = (labels[:, None] == xp.arange(N)).astype(logits.dtype)
    targets = (1.0 - label_smoothing) * one_hot + label_smoothing / N
    loss = -(targets * log_probabilities).sum(axis=1).mean()
    return loss, CrossEntropyCache(xp.exp(log_probabilities), targets)


def cross_entropy_backward(cache: CrossEntropyCache, dloss: Array | float = 1.0) -> Array:
    """Gradient of cross_entropy_forward: dlogits = dloss (softmax(logits) - targets) / B."""
    probabilities, targets = cache
    return (probabilities - targets) * (dloss / probabilities.shape[0])


def check_cross_entropy(logits: Array, labels: Array, label_smoothing: float) -> None:
    """Refuse what has no loss.

    Raises:
        InputError: as cross_entropy_forward.
    """
    get_array_module(logits, labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise InputError(
            f"cross_entropy: expected logits (B, N) and labels (B,), got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )
    N = logits.shape[1]
    if not 0.0 <= label_smoothing < 1.0:
        raise InputError(f"cross_entropy: label_smoothing must lie in [0, 1), got {label_smoothing}")
    if labels.dtype.kind not in "iu":
        raise InputError(f"cross_entropy: labels must be integers, got {labels.dtype}")
    if is_on_host(labels) and labels.size and not 0 <= labels.min() <= labels.max() < N:
        raise InputError(
            f"cross_entropy: labels must lie in 0..{N - 1}, one for each of {N} logits, got "
            f"{labels.min()}..{labels.max()}; build the network with more classes, or relabel"
        )
