"""A random model is asked about an image without an attack once, however often its evaluation is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_samples import CPU, Nearest, attacked, digits, log_of, problem_of
from torch import Tensor

from sam_bench.attacks import Event
from sam_bench.attacks.gradient import PGDAttack
from sam_bench.errors import StoppedError
from sam_bench.evaluation import Log
from sam_bench.evaluation.executors.local import attack_here
from sam_bench.records import MISCLASSIFIED


class Faltering(Nearest):
    """Wrong about a third of the images, others each time."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.where(torch.rand(len(x), 1) < 0.3, logits.roll(1, 1), logits)


def missed(log: Log) -> list[int]:
    return [place for place, verdict in log.verdicts.items() if verdict.outcome == MISCLASSIFIED]


def test_a_random_model_loses_no_clean_accuracy_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> Iterator[Event]:
        raise KeyboardInterrupt

    problem = problem_of(Faltering(), digits(60), PGDAttack(steps=1))
    after = []
    for resume in (False, True, True):
        with monkeypatch.context() as patched, pytest.raises(StoppedError):
            patched.setattr(PGDAttack, "events", stopped)
            attacked(problem, tmp_path / "r", resume=resume)
        after.append(missed(log_of(problem, tmp_path / "r")))
    assert 5 < len(after[0]) < 40 and after[0] == after[1] == after[2]
    found = attacked(problem, tmp_path / "r", resume=True)
    assert [place for place, outcome in enumerate(found.verdicts) if outcome == MISCLASSIFIED] == sorted(after[0])


def test_nor_when_it_goes_on_with_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    search, full = PGDAttack.events, [2]

    def cramped(*given: Any, **how: Any) -> Iterator[Event]:
        if full[0]:
            full[0] -= 1
            raise torch.OutOfMemoryError("by hand")
        yield from search(*given, **how)

    monkeypatch.setattr(PGDAttack, "events", cramped)
    problem = problem_of(Faltering(), digits(60), PGDAttack(steps=1), batch_size=64)
    todo = Log(Path("unused"), problem).todo()
    told = list(attack_here(problem, problem.stored(todo), CPU))
    lost = [getattr(event, "outcome", None) for event in told].count(MISCLASSIFIED)
    assert not full[0] and 5 < lost < 30  # of 60: three times asked, it would be 40
