"""The pool of the fast engine: every example goes through its trials once, whatever shares its batch."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sam_bench.attacks.autoattack.oracle import Oracle
from sam_bench.attacks.autoattack.pool import Pool
from sam_bench.attacks.autoattack.rows import Rows, Search


class Ladder(Search[Rows]):
    """Breaks example n in trial n // 3 at tick n % 3 + 1, or never."""

    def __init__(self, padded: int) -> None:
        self.trials, self.begun = 3, [(0, 0)][:0]
        self.cases: Any = None
        self.oracle: Any = Oracle(nn.Identity(), rows=padded, device=torch.device("cpu"))

    @property
    def ticks(self) -> int:
        return 4

    def begin(self, position: Tensor, trial: Tensor) -> Rows:
        self.begun += list(zip(position.tolist(), trial.tolist(), strict=True))
        zeros = torch.zeros_like(position)
        return Rows(position, trial, zeros, zeros.float(), zeros, zeros.bool(), zeros.float())

    def tick(self, rows: Rows) -> None:
        assert len(rows) <= 5
        rows.iteration += 1
        due = (rows.trial == rows.position // 3) & (rows.iteration == rows.position % 3 + 1)
        rows.note(due, rows.position.float())


@given(order=st.permutations(range(14)), how=st.sampled_from(["one by one", "padded", "upstream"]))
@settings(max_examples=40, deadline=None)
def test_the_pool_takes_every_example_through_its_trials_once_and_stops_at_the_first_success(
    order: list[int], how: str
) -> None:
    settled: dict[int, bool] = {}

    def confirm(positions: Tensor, candidates: Tensor) -> Tensor:
        assert positions.tolist() == candidates.tolist()
        return positions % 5 != 4  # some witnesses are turned down

    def note(position: int, stands: bool) -> None:
        assert position not in settled
        settled[position] = stands

    search, pool = Ladder(5 if how == "padded" else 1), Pool(capacity=5, confirm=confirm, settled=note)
    if how == "upstream":
        pool.in_cohorts(lambda: search, torch.tensor(order))
    else:
        pool.refilled(search, torch.tensor(order))
    assert settled == {n: n >= 9 or n % 5 == 4 for n in range(14)}
    needed = [(n, trial) for n in range(14) for trial in range(3) if trial <= n // 3 or settled[n]]
    if how == "padded":  # trials may begin that a success then makes needless
        assert len(search.begun) == len(set(search.begun)) and set(needed) <= set(search.begun)
    else:
        assert sorted(search.begun) == needed
