"""The learning rate by step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifocal.errors import InputError
from minifocal.training.schedule import WarmupCosine


def test_it_rises_in_equal_steps_to_the_peak():
    schedule = WarmupCosine(0.4, total_steps=20, warmup_steps=4)
    assert [schedule(step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


def test_it_is_half_way_down_in_the_middle_of_the_cosine():
    schedule = WarmupCosine(0.4, total_steps=24, warmup_steps=4, final=0.1)
    assert schedule(14) == pytest.approx(0.25)
    assert schedule(9) == pytest.approx(0.1 + 0.3 * (1 + math.cos(math.pi / 4)) / 2)


def test_it_ends_at_the_final_rate_and_stays_there():
    schedule = WarmupCosine(0.4, total_steps=10, final=0.1)
    assert schedule(10) == schedule(1000) == pytest.approx(0.1)


@given(st.integers(2, 50), st.data())
def test_it_never_leaves_the_range_and_falls_after_the_warm_up(total, data):
    warmup = data.draw(st.integers(0, total - 1))
    rates = [WarmupCosine(1.0, total, warmup)(step) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


@pytest.mark.parametrize(("total", "warmup"), [(10, 10), (0, 0), (5, 6)])
def test_a_warm_up_as_long_as_the_training_is_refused(total, warmup):
    with pytest.raises(InputError, match="warm-up must be shorter"):
        WarmupCosine(0.1, total, warmup)
