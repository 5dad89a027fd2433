"""A compiled run stays compiled, however many shapes it has and whatever was compiled before it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters
from training_samples import digits, method_of, run

from sam_bench.training.graphs import room_for_graphs


def limit() -> int:
    return torch._dynamo.config.recompile_limit


def test_the_limit_of_graphs_is_raised_for_the_time_of_a_compiled_run_and_restored() -> None:
    before = limit()
    with room_for_graphs(False):
        assert limit() == before
    with pytest.raises(ZeroDivisionError), room_for_graphs(True):
        assert limit() >= 64
        raise ZeroDivisionError
    assert limit() == before
    with torch._dynamo.config.patch(recompile_limit=1000), room_for_graphs(True):
        assert limit() == 1000  # somebody wanted more


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(9 * width, 10)
    return nn.Sequential(*layers)


@pytest.mark.slow
def test_a_third_network_in_one_process_is_compiled_as_the_first_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tracing is what is limited; kernels would only take longer.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    method = method_of("sam", {"epochs": 1})
    made = []
    for width in (2, 3, 4):
        counters.clear()
        # 20 = 2 x 8 + 4: two shapes, each with and without BatchNorm's statistics.
        run(tmp_path / str(width), method, train=digits().head(20), model=network(width), compiled=True)
        made.append(counters["stats"]["unique_graphs"])
    assert made == [made[0]] * 3 and made[0] >= 4
