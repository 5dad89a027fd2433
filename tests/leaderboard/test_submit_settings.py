"""Two settings of another package's attack have one row name: neither takes the other's place unasked."""

from __future__ import annotations

from typing import Any

import pytest
from leaderboard_samples import Bench, make_card, make_record

from sam_bench.errors import InputError
from sam_bench.records import EvaluationRecord, ModelCard


def foreign(card: ModelCard, robust: int, **settings: Any) -> EvaluationRecord:
    record = make_record(card, clean=80, robust=robust, attack="foolbox:LinfPGD", engine="foolbox 3.3.4")
    return record.model_copy(update={"settings": {"steps": 40, **settings}})


def test_a_weaker_run_of_another_packages_attack_replaces_the_stronger_only_when_told_to(bench: Bench) -> None:
    card = make_card("m")
    strong, weak = foreign(card, 40, rel_stepsize=0.03), foreign(card, 70, rel_stepsize=0.001)
    path = bench.submit(card, make_record(card, clean=80, robust=30), strong).path
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"'rel_stepsize': 0\.001.* but the row foolbox-LinfPGD-40 .*: 0\.03.*replace"):
        bench.submit(card, weak)
    assert path.read_bytes() == before
    again = bench.submit(card, strong.model_copy(update={"seed": 1}))
    assert any("replaced the row foolbox-LinfPGD-40" in note for note in again.notes)
    done = bench.submit(card, weak, replace=True)
    assert {row.attack: row.robust_accuracy for row in done.entry.sam_bench.rows}["foolbox-LinfPGD-40"] == 0.7
