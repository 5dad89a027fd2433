"""FAB where it searches in a coarser arithmetic than its witnesses are judged in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from autoattack_samples import CPU, Conv, examples

from sam_bench.attacks.autoattack.fab import FAB
from sam_bench.attacks.autoattack.oracle import Oracle
from sam_bench.attacks.autoattack.rows import Cases
from sam_bench.attacks.draws import CounterDraws, UpstreamDraws
from sam_bench.perturb.ball import Ball


@pytest.mark.parametrize("as_upstream", [False, True])
def test_the_distance_of_a_witness_that_is_none_is_forgotten(as_upstream: bool) -> None:
    """Else a true one that is farther away would never be offered. With upstream's draws it is as upstream has it."""
    model = Conv(dtype=torch.float32)
    x, y = examples(model, 4)
    places = torch.arange(4)
    ranked = model(x).sort(dim=1)[1]
    cases = Cases(x=x, y=y, index=places, ranked=ranked, logits_dtype=torch.float32, device=CPU)
    draws: Any = UpstreamDraws(0) if as_upstream else CounterDraws(0, "fab", places)
    search = FAB(cases, Ball(norm="Linf", eps=0.1), Oracle(model, rows=1, device=CPU), draws, targeted=False, trials=1)
    rows = search.begin(places, torch.zeros_like(places))
    for _ in range(3):
        search.tick(rows)
    assert bool((rows.nearest < 1).all())
    before = rows.nearest.clone()
    stops = search.turned_down(rows, torch.tensor([1, 3]))
    assert not bool(stops.any())
    assert torch.equal(rows.nearest[::2], before[::2])
    assert torch.equal(rows.nearest[1::2], before[1::2]) == as_upstream
    rows.found[:] = False
    search.tick(rows)
    assert as_upstream or bool(rows.found[1::2].all())
