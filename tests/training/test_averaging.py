"""Averages of weights: the means they claim to be, when they begin, and statistics that fit them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training_samples import TinyNet, assert_same, digits, method_of, run

from sam_bench.averaging import AVERAGES, EMA, SWA, Averaging
from sam_bench.modes import batch_norms
from sam_bench.records import ComponentSpec
from sam_bench.seeds import generator


def net(*, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layer: nn.Module = nn.BatchNorm1d(3) if norm else nn.LayerNorm(3)
    return nn.Sequential(nn.Linear(4, 3), layer, nn.ReLU(), nn.Linear(3, 2)).double()


def inputs(count: int = 3) -> list[Tensor]:
    draws = generator("inputs")
    return [torch.randn(8, 4, generator=draws, dtype=torch.float64) for _ in range(count)]


def walk(averaging: Averaging, model: nn.Module, *, epochs: int, steps: int) -> tuple[nn.Module, list[list[Tensor]]]:
    """Weights that wander, averaged as the loop would; the average's holder and the weights after every step."""
    average, passed = averaging.averaged(model), []
    draws, total = generator("walk"), epochs * steps
    for step in range(total):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
        model(inputs(1)[0])
        passed.append([parameter.detach().clone() for parameter in model.parameters()])
        if average is not None:
            averaging.update(average, model, progress=step / total, epoch_ended=step % steps == steps - 1)
    return averaging.learned(average, model), passed


def mean(members: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(tensors).mean(0) for tensors in zip(*members, strict=True)]


@given(epochs=st.integers(1, 6), steps=st.integers(1, 3), share=st.floats(0, 0.99))
@settings(max_examples=25, deadline=None)
def test_swa_is_the_mean_of_the_weights_at_the_ends_of_the_last_epochs(epochs: int, steps: int, share: float) -> None:
    learned, passed = walk(SWA(average_from=share), net(), epochs=epochs, steps=steps)
    ends = [(epoch + 1) * steps - 1 for epoch in range(epochs)]
    # In a run so short that no epoch ends after the average may begin, the last weights are what there is.
    members = [passed[end] for end in ends if end / (epochs * steps) >= share] or [passed[-1]]
    for ours, expected in zip(learned.parameters(), mean(members), strict=True):
        # torch computes a member's share in float32.
        torch.testing.assert_close(ours.detach(), expected, rtol=1e-6, atol=1e-6)


def test_swa_over_steps_is_the_mean_of_all_since_it_began() -> None:
    learned, passed = walk(SWA(average_from=0.5, average_every="step"), net(), epochs=2, steps=5)
    for ours, expected in zip(learned.parameters(), mean(passed[5:]), strict=True):
        torch.testing.assert_close(ours.detach(), expected, rtol=1e-6, atol=1e-6)


def test_before_swa_begins_the_network_itself_is_what_was_learned() -> None:
    model, averaging = net(), SWA(average_from=0.9)
    average = averaging.averaged(model)
    averaging.update(average, model, progress=0.5, epoch_ended=True)
    assert averaging.learned(average, model) is model
    assert averaging.finish(average, iter([])) == 0
    averaging.update(average, model, progress=0.95, epoch_ended=True)
    assert averaging.learned(average, model) is average.module


@given(decay=st.floats(0, 0.99))
@settings(max_examples=15, deadline=None)
def test_ema_follows_its_recurrence_whose_first_steps_forget_faster(decay: float) -> None:
    learned, passed = walk(EMA(decay=decay), net(), epochs=2, steps=3)
    expected = passed[0]
    for step, weights in enumerate(passed[1:], start=1):
        kept = min(decay, (1 + step) / (10 + step))
        expected = [kept * old + (1 - kept) * new for old, new in zip(expected, weights, strict=True)]
    for ours, theirs in zip(learned.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-9, atol=1e-9)


def test_ema_of_a_run_shorter_than_its_memory_is_of_what_was_learned_and_not_of_the_beginning() -> None:
    model, averaging = nn.Linear(1, 1, bias=False), EMA(decay=0.9999)
    average = averaging.averaged(model)
    for step in range(100):  # a weight that goes from 0 to 1
        with torch.no_grad():
            model.weight.fill_(step / 99)
        averaging.update(average, model, progress=step / 100, epoch_ended=False)
    assert averaging.learned(average, model).get_parameter("weight").item() > 0.85


@pytest.mark.parametrize(
    "averaging", [*(EMA(decay=decay) for decay in (0.9, 0.95, 0.999, 0.9999)), SWA(average_from=0)], ids=str
)
def test_buffers_of_integers_keep_their_latest_value(averaging: Averaging) -> None:
    model = net()
    index = torch.arange(4096)
    model.register_buffer("index", index.clone())
    model.register_buffer("mask", index % 3 == 0)
    average = averaging.averaged(model)
    assert average is not None
    for step in range(5):
        model(inputs(1)[0])
        averaging.update(average, model, progress=step / 5, epoch_ended=True)
    assert torch.equal(average.module.index, index) and torch.equal(average.module.mask, index % 3 == 0)
    assert int(average.module[1].num_batches_tracked) == 5


def test_swas_statistics_are_those_of_the_inputs_at_the_averaged_weights() -> None:
    model, averaging = net().train(), SWA(average_from=0.0)
    average = averaging.averaged(model)
    for _ in range(3):
        with torch.no_grad():
            model[0].weight.add_(0.5)
        averaging.update(average, model, progress=0.95, epoch_ended=True)
    before = copy.deepcopy(model.state_dict())
    batches = inputs()
    assert averaging.finish(average, iter(batches)) == 24
    hidden = [average.module[0](x).detach() for x in batches]
    (norm,) = batch_norms(average)
    torch.testing.assert_close(norm.running_mean, torch.stack([each.mean(0) for each in hidden]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([each.var(0) for each in hidden]).mean(0))
    assert norm.momentum == 0.1 and average.module.training
    assert_same(dict(before), dict(model.state_dict()))


@pytest.mark.parametrize("method", AVERAGES.names())
def test_inputs_are_only_asked_for_where_statistics_must_be_recomputed(method: str) -> None:
    averaging = AVERAGES.build(ComponentSpec(method=method))

    def refused() -> Iterator[Tensor]:
        raise AssertionError("nothing to recompute")
        yield

    for norm in (False, True):
        model = net(norm=norm)
        average = averaging.averaged(model)
        if average is not None:
            averaging.update(average, model, progress=0.95, epoch_ended=True)
        if norm and method == "swa":
            continue
        assert averaging.finish(average, refused()) == 0
        assert AVERAGES.build(averaging.spec()) == averaging


@pytest.mark.parametrize("method", ["ema", "swa"])
def test_an_average_continues_from_its_state_bit_for_bit(method: str) -> None:
    averaging = AVERAGES.build(ComponentSpec(method=method))
    model = net()
    whole, first = averaging.averaged(model), averaging.averaged(model)
    second = averaging.averaged(model)
    for step in range(4):
        with torch.no_grad():
            model[0].weight.mul_(0.9)
        model(inputs(1)[0])
        if step == 2:
            second.load_state_dict(first.state_dict())
        for average in (whole, second if step >= 2 else first):
            averaging.update(average, model, progress=0.9, epoch_ended=True)
    assert_same(dict(whole.state_dict()), dict(second.state_dict()))


def test_the_loop_averages_from_when_it_is_told_and_recomputes_batch_norm_at_the_end(tmp_path: Path) -> None:
    trained = run(tmp_path, method_of("swa", {"epochs": 4, "average_from": 0.5}), keep=4)
    third, fourth = (
        torch.load(tmp_path / f"checkpoint-epoch0000{epoch}.pt", weights_only=True)["model"] for epoch in (3, 4)
    )
    weights = trained.model.state_dict()
    torch.testing.assert_close(weights["conv.weight"], (third["conv.weight"] + fourth["conv.weight"]) / 2)
    mean = (third["norm.running_mean"] + fourth["norm.running_mean"]) / 2
    assert not torch.allclose(weights["norm.running_mean"], mean)
    # One more pass over the 24 images, for the statistics.
    assert trained.state.passes.train_forward == trained.state.passes.train_backward + 24


class Counted(TinyNet):
    """Remembers how many examples came at a time in train mode where nothing is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = list[int]()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not torch.is_grad_enabled():
            self.sizes.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize(("micro_batch", "sizes"), [(None, [8, 8, 9]), (3, [2, 3, 3, 2, 3, 3, 3, 3, 3]), (1, None)])
def test_batch_norm_is_recomputed_over_no_more_examples_at_a_time_than_are_learned_from(
    micro_batch: int | None, sizes: list[int] | None, tmp_path: Path
) -> None:
    trained = run(
        tmp_path,
        method_of("swa", {"average_from": 0.0}),
        train=digits().head(25),
        model=Counted(),
        micro_batch=micro_batch,
    )
    counted = trained.model
    assert isinstance(counted, Counted)
    assert counted.sizes == (sizes or [2, 2, 2, 2] * 2 + [2, 2, 2, 3])
    assert trained.state.passes.train_forward == trained.state.passes.train_backward + 25


def test_the_best_epoch_of_an_average_is_registered_as_it_was_measured(tmp_path: Path) -> None:
    method = method_of("swa", {"epochs": 4, "average_from": 0.5})
    trained = run(tmp_path, method, validation=digits().select(torch.arange(300, 400)), select="best")
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert best["epoch"] == trained.state.best_epoch > 0
    assert_same(dict(trained.model.state_dict()), dict(best["model"]))
    assert trained.state.passes.train_forward == trained.state.passes.train_backward
