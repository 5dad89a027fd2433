"""The method that CONTRIBUTING shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from weights_samples import batch_loss

from sam_bench.perturb.weights import WeightPerturbation, base
from sam_bench.registry import Registry


def test_the_example_is_a_weight_perturbation_that_moves_every_weight_by_rho(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n((?:(?!```).)*@WEIGHT_PERTURBATIONS.*?)```", text, flags=re.DOTALL)
    registry: Registry[WeightPerturbation] = Registry(kind="weight perturbation", field="weights", group="none")
    monkeypatch.setattr(base, "WEIGHT_PERTURBATIONS", registry)  # the other tests shall not meet it
    exec(compile(code, "CONTRIBUTING.md", "exec"), {})
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3).double(), torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    seen: list[list[Tensor]] = []

    def score(images: Tensor) -> Tensor:
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        logits: Tensor = model(images)
        return logits

    registry.get("sign-sam")(rho=0.01).backward(batch_loss(model, x, y, score=score))  # type: ignore[call-arg]
    before, during = seen
    for one, other in zip(before, during, strict=True):
        assert (one - other).abs() == pytest.approx(torch.full_like(one, 0.01))
