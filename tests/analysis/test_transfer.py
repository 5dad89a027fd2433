"""The matrix of transfers, against what must hold and against Foolbox."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import foolbox
import pytest
import torch
from torch import Tensor, nn

import sam_bench
from sam_bench.analysis import Context
from sam_bench.analysis.transfer import Transfer
from sam_bench.progress import SilentReporter
from sam_bench.zoo import LoadedModel, load_model

NAMES = ("first", "second")


def linear(which: int) -> LoadedModel:
    """Ten classes, the scores of which are random sums of 64 pixels; the two models agree on some images."""
    torch.manual_seed(0)
    scores, noise = torch.randn(2, 10, 64)
    layer = nn.Linear(64, 10)
    layer.weight.data = scores + which * 0.5 * noise
    return LoadedModel(nn.Sequential(nn.Flatten(), layer).eval(), NAMES[which], "0" * 64, None, 10, None)


def examples() -> tuple[Tensor, Tensor]:
    """Forty random images; every second has the label that the second model gives, the others the first's."""
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    first, second = (linear(seed).module(x).argmax(1) for seed in (0, 1))
    return x, torch.where(torch.arange(40) % 2 == 0, first, second)


def context(x: Tensor, y: Tensor) -> Context:
    models: dict[str, Any] = {name: partial(linear, seed) for seed, name in enumerate(NAMES)}
    with SilentReporter().stage("", len(x)) as stage:
        return Context(x=x, y=y, classes=(), batch_size=7, seed=0, stage=stage, models=models)


def rows(**settings: Any) -> dict[str, Any]:
    return {name: Transfer(**settings).measure(linear(seed), context(*examples())) for seed, name in enumerate(NAMES)}


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_diagonal_is_a_white_box_attack(norm: str) -> None:
    x, y = examples()
    eps = 0.02 if norm == "Linf" else 0.15
    attack = getattr(foolbox.attacks, f"{norm}PGD")(abs_stepsize=eps / 4, steps=5, random_start=False)
    for seed, (name, row) in enumerate(rows(norm=norm, eps=str(eps), steps=5).items()):
        module = linear(seed).module
        right = module(x).argmax(1) == y
        (_, adversarial, _) = attack(foolbox.PyTorchModel(module, bounds=(0, 1)), x, y, epsilons=eps)
        held = float((module(adversarial).argmax(1) == y)[right].float().mean())
        assert row["on"][name] == {"examples": int(right.sum()), "robust": pytest.approx(held)}
        assert 0 < held < 1


def test_without_a_radius_nothing_transfers() -> None:
    for row in rows(eps="0", steps=1).values():
        assert [each["robust"] for each in row["on"].values()] == [1.0, 1.0]


def test_only_images_count_that_both_classify_correctly() -> None:
    x, y = examples()
    both = torch.stack([linear(seed).module(x).argmax(1) == y for seed in (0, 1)]).all(0)
    found = rows(steps=1)
    assert 0 < int(both.sum()) < 40
    assert found["first"]["on"]["second"]["examples"] == found["second"]["on"]["first"]["examples"] == int(both.sum())


def test_where_no_image_counts_there_is_no_number() -> None:
    x, _ = examples()
    wrong = (linear(0).module(x).argmax(1) + 1) % 10
    row = Transfer(steps=1).measure(linear(0), context(x, wrong))
    assert row["on"]["first"] == {"examples": 0, "robust": None}
    measured = {"first": row}
    assert Transfer().lines(measured, Transfer().combine(measured, {})) == [
        "first: on its own examples unknown; the others on its examples unknown; on the others' examples unknown"
    ]


def test_the_model_is_left_as_it_was(zoo: Path) -> None:
    model = load_model("first", zoo=zoo)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    Transfer(steps=2).measure(model, context(*examples()))
    assert not any(each.training for each in model.module.modules())
    assert all(each.grad is None and each.requires_grad for each in model.module.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())


def test_a_row_is_measured_again_when_another_model_joins(zoo: Path, tmp_path: Path) -> None:
    asked = {"zoo": zoo, "n_examples": 20, "output": tmp_path, "settings": {"steps": 1}}
    alone = sam_bench.analyze("transfer", ["first"], **asked)
    result = sam_bench.analyze("transfer", **asked)
    assert set(alone.findings["matrix"]) == {"first"}
    assert set(result.measured["first"]["on"]) == set(NAMES)
    assert set(result.findings["matrix"]) == set(NAMES)
    assert re.match(r"first: on its own examples (\d+\.\d%|unknown); the others ", result.lines[0])
    assert all(path.stat().st_size > 1000 for path in result.figures)
