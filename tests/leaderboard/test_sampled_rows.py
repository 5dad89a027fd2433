"""AutoAttack on a sample: its row has a name of its own, and the sample is the one that nobody can choose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from leaderboard_samples import Bench, make_card, make_record

from sam_bench.attacks.autoattack.sampled import SAMPLED, AutoAttackSampled, Sample
from sam_bench.attacks.warnings import warning
from sam_bench.errors import InputError
from sam_bench.leaderboard.boards import make_boards
from sam_bench.leaderboard.entries import read_entries
from sam_bench.records import EvaluationRecord, ModelCard, Sampled, sample_key, sampling_of


def _sampled(card: ModelCard, **changes: Any) -> EvaluationRecord:
    """A record of AutoAttack on a sample, as an evaluation would write it."""
    attacks = AutoAttackSampled().attacks
    plain = make_record(card, clean=90, robust=60, attack="autoattack-sampled", attacks=attacks)
    chosen = Sample(
        sample_key(card.weights.sha256, card.architecture.sha256, plain.dataset_fingerprint, plain.norm, plain.eps), 0.5
    )
    inside = chosen.contains(torch.arange(100)).tolist()
    fields: dict[str, Any] = {
        "architecture_sha256": card.architecture.sha256,
        "settings": {"compile": "off", "sample": 0.5},
        "engine": "sam-bench 0.1.0",
        "warnings": [str(warning("sampled"))],
        "sampled": sampling_of(plain.verdicts, SAMPLED, inside),
    }
    return plain.model_copy(update=fields | changes)


def test_a_sample_is_named_with_its_share_and_its_bound_is_a_note(bench: Bench) -> None:
    card = make_card("m")
    bench.submit(card, make_record(card, clean=90, robust=50), _sampled(card))
    rows = {board.attack: board.rows[0] for board in make_boards(read_entries(bench.folder))}
    assert list(rows) == ["autoattack", "autoattack-sampled-0.5"]  # never ranked against another share
    notes = " ".join(rows["autoattack-sampled-0.5"].notes)
    assert "of the 60 examples that APGD left: AutoAttack leaves at least 5" in notes


@pytest.mark.parametrize(
    ("sampled", "reason"),
    [
        (None, "sampled is not what model, images, ball and the share 0.5 give"),
        (
            sampling_of(["robust"] * 60 + ["apgd-t"] * 40, SAMPLED, [True] * 100),
            "sampled is not what model, images, ball",
        ),
    ],
    ids=["none", "all that is robust"],
)
def test_a_sample_that_was_chosen_is_refused(bench: Bench, sampled: Sampled | None, reason: str) -> None:
    card = make_card("m")
    with pytest.raises(InputError, match=reason):
        bench.submit(card, make_record(card, clean=90, robust=50), _sampled(card, sampled=sampled))


def test_a_sample_of_an_attack_on_all_examples_is_refused(bench: Bench) -> None:
    card = make_card("m")
    sampled = sampling_of(["robust"] * 50 + ["apgd-t"] * 50, SAMPLED, [True] * 100)
    with pytest.raises(InputError, match="names a sample, but autoattack runs on all examples"):
        bench.submit(card, make_record(card, clean=90, robust=50, sampled=sampled))
