"""The training step against the loop that the benchmarks compare it with: from equal starts both learn the same."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sam_bench.models import architecture_for, create_model
from sam_bench.perturb.ball import Ball
from sam_bench.seeds import row_generator
from sam_bench.training import build_method, load_recipe, override
from sam_bench.training.step import TrainingStep

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import textbook

SETTINGS: dict[str, dict[str, Any]] = {
    "standard": {},
    "sam": {"rho": textbook.RHO},
    "at": {"eps": "8/255", "step_size": "2/255", "steps": textbook.STEPS},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_of_a_faithful_recipe_leave_the_weights_of_the_textbook_loop(name: str) -> None:
    # In float64, where rounding does not decide the sign of a gradient; with the textbook's use of BatchNorm.
    torch.manual_seed(0)
    architecture = architecture_for(
        "preactresnet10", num_classes=10, in_channels=3, image_size=16, options={"width": 4}
    )
    ours = create_model(architecture).double().train()
    theirs = copy.deepcopy(ours)
    step = TrainingStep(
        ours, build_method(override(load_recipe(name, faithful=True), SETTINGS[name])), seed=3, precision="fp32"
    )
    other = textbook.Textbook(theirs, name, lr=0.1, momentum=0.9, weight_decay=5e-4)
    for number in range(5):
        x, y = torch.rand(12, 3, 16, 16, dtype=torch.float64), torch.randint(10, (12,))
        draws = row_generator(3, "inputs", number, first=0, total=len(x), device=x.device)
        start = Ball("Linf", textbook.EPS).sample(x, draws)
        step(x, y, step=number, progress=0.0)
        other(x, y, lr=0.1, start=start)
    expected = theirs.state_dict()
    for key, value in ours.state_dict().items():  # running statistics included
        assert torch.allclose(value, expected[key], rtol=1e-9, atol=1e-11), key
