"""The pool of the fast engine: every example goes through its trials once, whatever shares its batch."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sam_bench.attacks.autoattack.model_calls import ModelCalls
from sam_bench.attacks.autoattack.pool import Pool, Settled
from sam_bench.attacks.autoattack.state import AttackState, Search


class Ladder(Search[AttackState]):
    """Breaks example n in trial n // 3 at step n % 3 + 1, or never."""

    trials_at_once = 1

    def __init__(self, padded: int) -> None:
        self.restarts_or_targets, self.begun = 3, [(0, 0)][:0]
        self.model: Any = ModelCalls(nn.Identity(), least_rows=padded, device=torch.device("cpu"))

    @property
    def steps(self) -> int:
        return 4

    def init(self, row: Tensor, trial: Tensor) -> AttackState:
        self.begun += list(zip(row.tolist(), trial.tolist(), strict=True))
        zeros = torch.zeros_like(row)
        return AttackState(row, trial, zeros, zeros.float(), zeros, zeros.bool(), zeros.float())

    def step(self, state: AttackState) -> None:
        assert len(state) <= 5
        state.iteration += 1
        due = (state.trial == state.row // 3) & (state.iteration == state.row % 3 + 1)
        state.note(due, state.row.float())


@given(order=st.permutations(range(14)), how=st.sampled_from(["one by one", "padded", "at once", "upstream"]))
@settings(max_examples=40, deadline=None)
def test_the_pool_takes_every_example_through_its_trials_once_and_stops_at_the_first_success(
    order: list[int], how: str
) -> None:
    settled: dict[int, bool] = {}

    def check(rows: Tensor, x_adv: Tensor) -> Tensor:
        assert rows.tolist() == x_adv.tolist()
        return rows % 5 != 4  # some candidates are rejected

    search, pool = Ladder(5 if how == "padded" else 1), Pool(capacity=5, check=check)
    if how == "at once":
        search.trials_at_once = 3
    if how == "upstream":
        outcomes = list(pool.run_in_batches(lambda: search, torch.tensor(order)))
    else:
        outcomes = list(pool.run_refilling(search, torch.tensor(order)))
    for outcome in outcomes:
        if isinstance(outcome, Settled):
            assert outcome.row not in settled
            settled[outcome.row] = outcome.robust
    shares = [outcome for outcome in outcomes if isinstance(outcome, float)]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert settled == {n: n >= 9 or n % 5 == 4 for n in range(14)}
    needed = [(n, trial) for n in range(14) for trial in range(3) if trial <= n // 3 or settled[n]]
    if how == "padded":  # trials may begin that a success then makes needless
        assert len(search.begun) == len(set(search.begun)) and set(needed) <= set(search.begun)
    elif how == "at once":
        assert sorted(search.begun) == [(n, trial) for n in range(14) for trial in range(3)]
    else:
        assert sorted(search.begun) == needed
