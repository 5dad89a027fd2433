"""Schedules against PyTorch's own, and the paper's milestones."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam_bench.errors import InputError
from sam_bench.records import ComponentSpec
from sam_bench.training.schedules import SCHEDULES, Constant, Cosine, Cyclic, OneCycle, Piecewise


def test_piecewise_drops_at_the_papers_epochs_as_torch_does() -> None:
    epochs, steps = 100, 391
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[75, 90], gamma=0.1)
    for epoch in range(epochs):
        for step in (0, steps - 1):
            progress = (epoch * steps + step) / (epochs * steps)
            assert Piecewise().factor(progress) == pytest.approx(theirs.get_last_lr()[0]), (epoch, step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wants optimizer.step() first; only the rate matters here
            theirs.step()


def test_cosine_is_torchs_cosine() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert Cosine().factor(step / 50) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.step()


@pytest.mark.parametrize("top", [0.5, 0.4, 0.2])
def test_cyclic_is_torchs_cyclic(top: float) -> None:
    steps, up = 50, round(50 * top)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CyclicLR(
        optimizer, base_lr=0, max_lr=1, step_size_up=up, step_size_down=steps - up, cycle_momentum=False
    )
    for step in range(steps):
        assert Cyclic(top=top).factor(step / steps) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.step()


@pytest.mark.parametrize("top", [0.0, 1.0, 1.5])
def test_the_top_of_a_cycle_is_within_the_run(top: float) -> None:
    with pytest.raises(InputError, match=r"^top: must be "):
        Cyclic(top=top)


def test_one_cycle_is_torchs_one_cycle() -> None:
    steps = 50
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps + 1, pct_start=16 / 51, final_div_factor=1e12, cycle_momentum=False
    )
    for step in range(steps):
        # Torch counts intervals between steps, of which there are as many as our steps here.
        assert OneCycle(peak=0.3).factor(step / steps) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.step()


def test_warm_up_is_torchs_linear_warm_up() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1e-12, total_iters=10)
    for step in range(40):
        assert Constant(warmup=0.25).factor(step / 40) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.step()


@pytest.mark.parametrize("name", SCHEDULES.names())
@given(progress=st.floats(0, 1, exclude_max=True), warmup=st.floats(0, 0.5))
def test_every_schedule_stays_between_zero_and_the_peak(name: str, progress: float, warmup: float) -> None:
    schedule = SCHEDULES.build(ComponentSpec(method=name, warmup=warmup))
    assert 0 <= schedule.factor(progress) <= 1


def test_warm_up_rises_linearly_and_one_cycle_peaks_where_it_says() -> None:
    assert [Piecewise(warmup=0.5).factor(p) for p in (0.0, 0.25)] == [0.0, 0.5]
    assert OneCycle(peak=0.3).factor(0.3) == pytest.approx(1.0)
    assert OneCycle().factor(0.0) == pytest.approx(0.04)
