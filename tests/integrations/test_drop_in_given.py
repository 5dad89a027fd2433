"""What a script gives to `sam_bench.AutoAttack`: tensors, settings, and the autocast block that it is called in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_bench import AutoAttack
from sam_bench.attacks import ATTACKS
from sam_bench.attacks.autoattack.model_calls import ModelCalls
from sam_bench.errors import InputError
from sam_bench.records import ComponentSpec

Batch = tuple[Tensor, Tensor]


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("apgd", "n_iter", 0),
        ("apgd", "n_iter", -3),
        ("apgd", "eot_iter", 0),
        ("apgd", "n_restarts", 1.5),
        ("apgd_targeted", "n_target_classes", 0),
        ("fab", "n_restarts", 0),
        ("square", "n_queries", 0),
    ],
)
def test_a_setting_with_which_nothing_is_attacked_is_refused(
    model: nn.Module, part: str, name: str, value: Any
) -> None:
    settings = getattr(AutoAttack(model, verbose=False, device="cpu"), part)
    with pytest.raises(InputError, match=f"{name}={value} must be a whole number of at least 1"):
        setattr(settings, name, value)


def test_labels_below_0_are_refused_not_counted_as_misclassified(model: nn.Module, batch: Batch) -> None:
    x, y = batch
    adversary = AutoAttack(model, verbose=False, device="cpu")
    for call in (adversary.run_standard_evaluation, adversary.clean_accuracy):
        with pytest.raises(InputError, match="y_orig must be classes from 0 on, but holds -1"):
            call(x, torch.full_like(y, -1))


def test_what_is_no_tensor_is_named(model: nn.Module, batch: Batch) -> None:
    x, y = batch
    adversary: Any = AutoAttack(model, verbose=False, device="cpu")
    with pytest.raises(InputError, match="y_orig must be a tensor, not list"):
        adversary.run_standard_evaluation(x, y.tolist())
    with pytest.raises(InputError, match="x_orig must be a tensor, not ndarray"):
        adversary.clean_accuracy(x.numpy(), y)


def test_a_state_of_the_authors_code_is_not_overwritten(model: nn.Module, batch: Batch, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text('{"run_attacks": ["apgd-ce"]}')
    adversary = AutoAttack(model, verbose=False, device="cpu")
    with pytest.raises(InputError, match="is no state that this class can go on from"):
        adversary.run_standard_evaluation(*batch, state_path=path)
    assert path.read_text() == '{"run_attacks": ["apgd-ce"]}'


class Close(nn.Module):
    """Class 1 wins, by so little that bfloat16 says class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 4)
        nn.init.zeros_(self.linear.weight)
        self.linear.bias.data = torch.tensor([1.0, 1.001, 0.0, 0.0])

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits


@pytest.mark.parametrize("attack", ["autoattack", "pgd", "fgsm"])
def test_verdicts_are_reached_in_float32_also_in_a_block_of_autocast(attack: str) -> None:
    model, x, y = Close(), torch.rand(8, 3, 2, 2), torch.ones(8, dtype=torch.int64)
    adversary = AutoAttack(
        model, seed=0, verbose=False, device="cpu", version="custom", attacks_to_run=["apgd-ce", "square"]
    )
    adversary.apgd.n_iter, adversary.square.n_queries = 3, 20
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model(x).argmax(1) == 0).all()
        assert adversary.clean_accuracy(x, y) == 1
        if attack == "autoattack":
            adversary.run_standard_evaluation(x, y)
            verdicts = adversary.verdicts
        else:
            built = ATTACKS.build(ComponentSpec(method=attack))
            verdicts = built.run(model, x, y, norm="Linf", eps=0.1).verdicts
    assert verdicts == ["robust"] * 8


def test_autoattack_searches_in_float32_in_a_block_of_autocast(model: nn.Module, batch: Batch) -> None:
    calls = ModelCalls(model, least_rows=1, device=torch.device("cpu"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = calls.logits(batch[0])
    assert torch.equal(inside, calls.logits(batch[0]))
