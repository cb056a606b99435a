"""The schedule at its corners: no warm-up unless asked for, and none of less than no steps."""

import math

import pytest

from minifocal.errors import InputError
from minifocal.training.schedule import WarmupCosine


def test_without_a_warm_up_the_cosine_begins_at_once():
    schedule = WarmupCosine(1.0, 10)
    assert schedule(0) == 1.0
    assert schedule(1) == pytest.approx(0.5 * (1.0 + math.cos(math.pi / 10)), rel=1e-15)


def test_a_warm_up_of_less_than_no_steps_is_refused():
    with pytest.raises(InputError, match="warmup_steps must be"):
        WarmupCosine(1.0, 10, warmup_steps=-1)
