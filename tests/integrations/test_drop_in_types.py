"""What `AutoAttack` is given in place of tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sam_bench import AutoAttack
from sam_bench.errors import InputError


@pytest.mark.parametrize(("name", "place"), [("x_orig", 0), ("y_orig", 1)])
def test_arrays_are_refused_by_name(name: str, place: int) -> None:
    given: list[Any] = [torch.rand(4, 1, 4, 4), torch.arange(4) % 3]
    given[place] = given[place].numpy()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(InputError, match=f"{name} must be a tensor, not ndarray"):
        AutoAttack(model, eps=0.1, device="cpu", verbose=False).run_standard_evaluation(*given)
