"""Perturbations in somebody's own loop under the less usual settings of `DistributedDataParallel`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from team import run_as_team
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from weights_samples import build, data, net

from sam_bench.errors import InputError
from sam_bench.perturb import SAM, WEIGHT_PERTURBATIONS, StepContext


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def learned(method: str, *, sync_ascent: bool = False, alike: bool = True, **ddp: Any) -> list[Tensor]:
    """The weights after six steps; under DDP if it has settings."""
    inner = net(seed=2)
    model: nn.Module = DistributedDataParallel(inner, **ddp) if ddp else inner
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    perturbation, loss_fn = build(method), nn.CrossEntropyLoss(reduction="none")
    for step in range(6):
        at = StepContext.at(step, epochs=2, steps_per_epoch=3, seed=4)
        x, y = data(step if alike else step + 10 * dist.get_rank())
        perturbation.step_gradients(model, loss_fn, x, y, at=at, optimizer=optimizer, sync_ascent=sync_ascent)
        optimizer.step()
    return [parameter.detach().clone() for parameter in inner.parameters()]


@pytest.mark.parametrize("sync_ascent", [False, True])
@pytest.mark.parametrize("method", WEIGHT_PERTURBATIONS.names())
def test_gradients_that_are_views_of_ddps_buckets_give_the_same_weights(
    method: str, sync_ascent: bool, process_group: None
) -> None:
    views = learned(method, sync_ascent=sync_ascent, gradient_as_bucket_view=True)
    assert all(torch.equal(*pair) for pair in zip(views, learned(method), strict=True))


def test_what_fully_shard_made_is_refused_before_the_weights_move(process_group: None) -> None:
    from torch.distributed.fsdp import fully_shard

    model = net()
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (1,)))
    with pytest.raises(InputError, match="needs all of them on every device; use DistributedDataParallel"):
        SAM().step_gradients(model, nn.functional.cross_entropy, *data())


SCRIPT = """
import sys
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from test_own_loop_ddp import learned
from sam_bench.distributed import joined

with joined() as team:
    own = [dist.new_group([rank]) for rank in range(2)][team.rank]
    for method in ("gsam", "wsam"):
        under, alone = learned(method, alike=False, process_group=own), learned(method, alike=False)
        assert all(torch.equal(*pair) for pair in zip(under, alone, strict=True)), method
"""


@pytest.mark.slow
def test_gradients_are_averaged_over_ddps_own_process_group(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = run_as_team(script, str(Path(__file__).parent), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
