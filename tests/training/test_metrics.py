"""An epoch's figures: sums that can be put away and taken up, and the first step that went wrong."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam_bench.training.metrics import Metrics, Timer
from sam_bench.training.step import StepResult

CPU = torch.device("cpu")

norms = st.floats(0, 10, width=32)
steps = st.lists(
    st.tuples(st.floats(0, 10, width=32), st.integers(1, 64), st.integers(0, 64), norms, st.none() | norms),
    min_size=1,
    max_size=20,
)


def result(loss: float, hits: int = 1, norm: float = 1.0, ascent: float | None = None) -> StepResult:
    return StepResult(
        torch.tensor(loss), torch.tensor(hits), torch.tensor(norm), None if ascent is None else torch.tensor(ascent)
    )


@given(made=steps, cut=st.integers(0, 20))
def test_sums_taken_up_from_a_checkpoint_are_those_never_put_away(
    made: list[tuple[float, int, int, float, float | None]], cut: int
) -> None:
    whole, parts = Metrics(CPU), Metrics(CPU)
    for number, (loss, examples, hits, norm, ascent) in enumerate(made):
        if number == cut:
            parts = Metrics(CPU, parts.state())
        for metrics in (whole, parts):
            metrics.add(result(loss, hits, norm, ascent), examples=examples, step=number)
    assert whole.state() == parts.state()
    assert whole.look() == parts.look(wait=True)
    seen = whole.look()
    assert seen is not None and seen.examples == sum(each[1] for each in made) and seen.bad_step == -1
    *_, norm_sum, count, ascent_sum, ascents = whole.state()
    followed = [each[4] for each in made if each[4] is not None]
    assert (count, ascents) == (len(made), len(followed))
    assert (norm_sum, ascent_sum) == pytest.approx((sum(each[3] for each in made), sum(followed)), rel=1e-5)


def test_the_first_loss_that_is_no_number_is_named_whatever_follows() -> None:
    metrics = Metrics(CPU)
    for step, loss in enumerate([1.0, float("inf"), 2.0, float("nan")], 5):
        metrics.add(result(loss), examples=4, step=step)
    seen = metrics.look()
    assert seen is not None and seen.bad_step == 6


class OnSecondGPU(torch.Tensor):
    """A tensor of the CPU that says it is on the second GPU."""

    device = torch.device("cuda", 1)


class Event:
    """Has arrived as soon as it was recorded; remembers where."""

    streams: ClassVar[list[object]] = []

    def record(self, stream: object = "the current device's") -> None:
        self.streams.append(stream)

    def query(self) -> bool:
        return True


def test_what_arrives_from_a_second_gpu_is_waited_for_on_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    make = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory, **options: make(*size, **options))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"{device}'s")
    monkeypatch.setattr(Event, "streams", [])
    metrics = Metrics(CPU)
    metrics.add(result(1.0), examples=4, step=0)
    metrics._loss = metrics._loss.as_subclass(OnSecondGPU)
    assert metrics.look() is None
    seen = metrics.look()
    assert seen is not None and seen.examples == 4
    assert Event.streams == ["cuda:1's"]


class Meter:
    """Has counted five joules whenever it is looked at, or does not tell."""

    told: ClassVar[bool] = True

    def __init__(self, device: torch.device) -> None: ...

    def joules(self) -> float | None:
        return 5.0 if self.told else None


@pytest.mark.parametrize(
    ("before", "told", "meters", "joules"),
    [
        (0.0, True, True, 5.0),
        (7.0, True, True, 12.0),
        (7.0, False, True, None),
        (None, True, True, None),  # what was not told before is not nothing
        (7.0, False, False, 7.0),  # another process looks
        (None, True, False, None),
    ],
)
def test_time_and_energy_go_on_from_what_was_timer_before(
    before: float | None, told: bool, meters: bool, joules: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam_bench.training.metrics.EnergyMeter", Meter)
    monkeypatch.setattr(Meter, "told", told)
    timer = Timer(CPU, seconds=100.0, joules=before, meters=meters)
    assert timer.seconds >= 100 and timer.joules == joules
