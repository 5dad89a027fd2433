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
    found |= {"halves": learned("sam", team, False, count=16), "quarters": learned("sam", team, False, count=16, m=4)}
    torch.save(found, f"{sys.argv[2]}/{team.rank}.pt")
"""

METHODS = WEIGHT_PERTURBATIONS.names()
OWN_EXAMPLES = ("esam", "ssam")  # each device chooses among its own


def learned(method: str, team: Any, sync_ascent: bool, count: int = 15, **more: Any) -> list[Tensor]:
    """The weights after seven steps on batches of 15: nine examples here, six there, in parts of four; or of others."""
    model: nn.Module = net(seed=2)
    settings = {"weights": method, "schedule": "constant", **more}
    step = TrainingStep(
        model,
        build_recipe(override(load_recipe("standard"), settings)),
        precision="fp32",
        micro_batch=4,
        team=team,
        sync_ascent=sync_ascent,
    )
    middle = 9 if count == 15 else count // 2
    rows = slice(0, count) if team.size == 1 else (slice(0, middle), slice(middle, count))[team.rank]
    for number in range(7):
        x, y = data(number, count=count)
        at = StepContext(seed=0, epoch=number // 3, step=number, progress=number / 7)
        step(x[rows], y[rows], at=at, first=rows.start, total=count)
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.slow
def test_every_method_learns_the_same_on_two_devices_and_what_one_would(tmp_path: Path) -> None:
    script = tmp_path / "team.py"
    script.write_text(TEAM)
    done = run_as_team(script, str(Path(__file__).parent), str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first) == 2 * len(METHODS) + 2
    for name, weights in first.items():
        assert all(torch.equal(one, other) for one, other in zip(weights, second[name], strict=True)), name
    for method in METHODS:
        if method not in OWN_EXAMPLES:
            for found, expected in zip(first[f"{method} True"], learned(method, ALONE, True), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, msg=lambda text, m=method: m + text)
    # Two devices with half of the batch each are m-sharpness with m half of it; and groups are cut on each device.
    for name, m in (("halves", 8), ("quarters", 4)):
        for found, expected in zip(first[name], learned("sam", ALONE, False, count=16, m=m), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
