"""Calibration, against numbers that are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sam_bench.analysis import Context
from sam_bench.analysis.calibration import Calibration
from sam_bench.analysis.corruptions import Corruptions
from sam_bench.analysis.transfer import Transfer
from sam_bench.errors import InputError
from sam_bench.progress import SilentReporter
from sam_bench.zoo import LoadedModel


class Says(nn.Module):
    """Answers class 0 with a confidence that the image's only pixel tells."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = x.flatten(1)[:, :1]
        return torch.cat([p, 1 - p], 1).log()


def test_the_error_is_the_gap_between_confidence_and_accuracy_weighted_by_examples() -> None:
    # Four images said with 0.95, of which three are right; four with 0.65, of which two are.
    x = torch.tensor([0.95] * 4 + [0.65] * 4).reshape(8, 1, 1, 1)
    y = torch.tensor([0, 0, 0, 1, 0, 0, 1, 1])
    with SilentReporter().stage("", 8) as stage:
        context = Context(x=x, y=y, classes=("a", "b"), batch_size=3, seed=0, stage=stage, models={})
        found = Calibration(bins=10).measure(LoadedModel(Says().eval(), "says", "0" * 64, None, 2, None), context)
    assert found["ece"] == pytest.approx(0.5 * abs(0.95 - 0.75) + 0.5 * abs(0.65 - 0.5), abs=1e-6)
    assert found["accuracy"] == pytest.approx(5 / 8)
    assert found["confidence"] == pytest.approx(0.8, abs=1e-6)
    assert [each["examples"] for each in found["bins"]] == [0, 0, 0, 0, 0, 0, 4, 0, 0, 4]


class Writes(Says):
    """The same, but it normalises the images that it is given in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mul_(0.5))


def test_a_model_that_writes_into_its_input_leaves_the_examples_alone() -> None:
    x = torch.full((4, 1, 1, 1), 0.8)
    with SilentReporter().stage("", 4) as stage:
        context = Context(
            x=x, y=torch.zeros(4).long(), classes=("a", "b"), batch_size=2, seed=0, stage=stage, models={}
        )
        logits = [context.logits(Writes()) for _ in range(2)]
    assert (x == 0.8).all()
    assert torch.equal(*logits)


def test_a_model_that_answers_nan_is_refused_and_not_taken_to_say_class_0() -> None:
    x = torch.tensor([0.5, 2.0]).reshape(2, 1, 1, 1)  # the logarithm of -1 is NaN
    with SilentReporter().stage("", 2) as stage:
        context = Context(
            x=x, y=torch.zeros(2).long(), classes=("a", "b"), batch_size=2, seed=0, stage=stage, models={}
        )
        for analysis in (Calibration(), Corruptions(corruptions=("brightness",)), Transfer()):
            with pytest.raises(InputError, match="answers NaN"):
                analysis.measure(LoadedModel(Says().eval(), "says", "0" * 64, None, 2, None), context)
