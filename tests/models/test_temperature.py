"""Temperatures: the confidence asked for, and the predictions as they were."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sam_bench.errors import InputError
from sam_bench.models.temperature import Tempered, matching_temperature, mean_confidence
from sam_bench.seeds import generator


class Logits(nn.Module):
    """A model whose images are its logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))


@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.01, 1.0, 100.0]), target=st.floats(0.3, 0.99))
@settings(max_examples=40, deadline=None)
def test_the_mean_confidence_is_the_one_asked_for_and_no_prediction_changes(
    seed: int, scale: float, target: float
) -> None:
    x = scale * torch.randn(50, 5, 1, 1, generator=generator(seed))
    tempered = Tempered(Logits(), matching_temperature(Logits(), x, target))
    assert mean_confidence(tempered, x) == pytest.approx(target, abs=1e-4)
    assert torch.equal(tempered(x).argmax(1), Logits()(x).argmax(1))


@pytest.mark.parametrize("gap", [0.1, 2.0, 30.0])
def test_two_classes_have_a_closed_form(gap: float) -> None:
    x = torch.tensor([[gap, 0.0], [0.0, gap]]).view(2, 2, 1, 1)
    assert mean_confidence(Logits(), x) == pytest.approx(1 / (1 + math.exp(-gap)))
    assert matching_temperature(Logits(), x, 0.8) == pytest.approx(gap / math.log(4), rel=1e-6)


def test_a_temperature_above_one_makes_less_sure() -> None:
    x = torch.randn(20, 5, 1, 1, generator=generator(0))
    sure = [mean_confidence(Tempered(Logits(), temperature), x) for temperature in (0.01, 0.5, 1, 2, 100)]
    assert sure == sorted(sure, reverse=True) and sure[2] == pytest.approx(mean_confidence(Logits(), x))
    assert torch.equal(Tempered(Logits(), 1.0)(x), Logits()(x))


def test_a_model_in_train_mode_is_judged_in_eval_mode_and_given_back() -> None:
    model, x = network(), torch.rand(20, 3, 2, 2, generator=generator(0))
    expected = network().eval()
    before = model[2].running_mean.clone()  # type: ignore[index, union-attr, operator]
    temperature = matching_temperature(model, x, 0.6, batch_size=7)
    assert model.training and torch.equal(model[2].running_mean, before)  # type: ignore[index, arg-type]
    assert temperature == pytest.approx(matching_temperature(expected, x, 0.6), rel=1e-5)
    assert Tempered(model, 2.0).training and not Tempered(expected, 2.0).training
    assert "temperature" in Tempered(model, 2.0).state_dict()


@pytest.mark.parametrize("target", [0.1, 0.25, 1.0, 1.5, math.nan])
def test_a_confidence_that_no_temperature_gives_is_refused(target: float) -> None:
    x = torch.randn(20, 4, 1, 1, generator=generator(0))
    with pytest.raises(InputError, match=r"between 0.2500 and 1.0000"):
        matching_temperature(Logits(), x, target)


def test_equal_logits_bound_the_confidence() -> None:
    x = torch.tensor([[1.0, 1.0, 0.0]]).view(1, 3, 1, 1)
    with pytest.raises(InputError, match=r"between 0.3333 and 0.5000"):
        matching_temperature(Logits(), x, 0.7)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_must_be_above_zero(temperature: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        Tempered(Logits(), temperature)


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        mean_confidence(Logits(), torch.full((1, 2, 1, 1), math.nan))
