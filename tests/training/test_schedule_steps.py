"""Schedules at the steps where something changes: the end of the warm-up, and each milestone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam_bench.records import ComponentSpec
from sam_bench.training.schedules import SCHEDULES, Piecewise


@pytest.mark.parametrize("name", SCHEDULES.names())
@pytest.mark.parametrize("warmup", [0.1, 0.5])
def test_after_the_warm_up_the_whole_schedule_runs_in_the_time_that_is_left(name: str, warmup: float) -> None:
    whole = SCHEDULES.build(ComponentSpec(method=name))
    warm = SCHEDULES.build(ComponentSpec(method=name, warmup=warmup))
    for step in range(40):
        assert warm.factor(warmup + (1 - warmup) * step / 40) == pytest.approx(whole.factor(step / 40), abs=1e-6)


@given(
    warm=st.integers(0, 500),
    rest=st.integers(3, 5000),
    chosen=st.lists(st.floats(0, 1), min_size=1, max_size=3),
)
def test_the_rate_drops_at_the_step_of_the_milestone_and_not_one_earlier_or_later(
    warm: int, rest: int, chosen: Sequence[float]
) -> None:
    steps = sorted({1 + int(each * (rest - 2)) for each in chosen})
    schedule = Piecewise(warmup=warm / (warm + rest), milestones=tuple(step / rest for step in steps), gamma=0.5)

    def factor(step: int) -> float:
        return schedule.factor((warm + step) / (warm + rest))

    for number, step in enumerate(steps):
        assert factor(step - 1) == pytest.approx(0.5**number)
        assert factor(step) == pytest.approx(0.5 ** (number + 1))
