"""Two processes, with unequal shares of a batch, learn the same with every method; and what one process would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from team import run_as_team
from torch import Tensor, nn
from weights_samples import data, net

from sam_bench.distributed import ALONE
from sam_bench.perturb import WEIGHT_PERTURBATIONS
from sam_bench.perturb.weights import StepContext
from sam_bench.training import build_recipe, load_recipe, override
from sam_bench.training.step import TrainingStep

TEAM = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from test_weights_devices import METHODS, learned
from sam_bench.distributed import joined

with joined() as team:
    found = {f"{method} {sync}": learned(method, team, sync) for method in METHODS for sync in (False, True)}
    torch.save(found, f"{sys.argv[2]}/{team.rank}.pt")
"""

METHODS = WEIGHT_PERTURBATIONS.names()
OWN_EXAMPLES = ("esam", "ssam")  # each device chooses among its own


def learned(method: str, team: Any, sync_ascent: bool) -> list[Tensor]:
    """The weights after seven steps on batches of 15: nine examples here, six there, in parts of four."""
    model: nn.Module = net(seed=2)
    settings = {"weights": method, "schedule": "constant"}
    step = TrainingStep(
        model,
        build_recipe(override(load_recipe("standard"), settings)),
        precision="fp32",
        micro_batch=4,
        team=team,
        sync_ascent=sync_ascent,
    )
    rows = slice(0, 15) if team.size == 1 else (slice(0, 9), slice(9, 15))[team.rank]
    for number in range(7):
        x, y = data(number, count=15)
        at = StepContext(seed=0, epoch=number // 3, step=number, progress=number / 7)
        step(x[rows], y[rows], at=at, first=rows.start, total=15)
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.slow
def test_every_method_learns_the_same_on_two_devices_and_what_one_would(tmp_path: Path) -> None:
    script = tmp_path / "team.py"
    script.write_text(TEAM)
    done = run_as_team(script, str(Path(__file__).parent), str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first) == 2 * len(METHODS)
    for name, weights in first.items():
        assert all(torch.equal(one, other) for one, other in zip(weights, second[name], strict=True)), name
    for method in METHODS:
        if method not in OWN_EXAMPLES:
            for found, expected in zip(first[f"{method} True"], learned(method, ALONE, True), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, msg=lambda text, m=method: m + text)
