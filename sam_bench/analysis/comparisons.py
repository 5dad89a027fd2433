"""Records that can be compared: the same attack and radius on the same images."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sam_bench.analysis.base import Json, NamedRecord
from sam_bench.errors import InputError
from sam_bench.leaderboard.labels import attack_name, radius_key, radius_text
from sam_bench.leaderboard.record_checks import our_attacks
from sam_bench.records import EvaluationRecord


def model_name(named: NamedRecord) -> str:
    """The name on the model's card, or what `evaluate` was given where there is no card."""
    return named.card.name if named.card else named.record.model


def attack_title(record: EvaluationRecord) -> str:
    """Attack, norm and radius: `pgd-10 Linf 8/255`."""
    return f"{attack_name(record)} {record.norm} {radius_text(record.eps)}"


def about(compared: Sequence[NamedRecord]) -> Json:
    """What tells a comparison from others, as its numbers begin."""
    record = compared[0].record
    return {
        "title": attack_title(record),
        "attack": attack_name(record),
        "norm": record.norm,
        "eps": radius_text(record.eps),
        "dataset": record.dataset,
        "n_examples": record.n_examples,
    }


def comparisons(records: Sequence[NamedRecord]) -> list[list[NamedRecord]]:
    """The records by what was asked of their models, one a model, in the order in which each question first comes.

    Raises:
        InputError: A comparison has two records under one name.
    """
    found: dict[tuple[object, ...], dict[str, NamedRecord]] = {}
    for each in records:
        record = each.record
        # The name of another package's attack says little of its settings, that of ours all that counts.
        settings = "" if record.attack in our_attacks() else json.dumps(record.settings, sort_keys=True)
        key = (record.dataset_fingerprint, attack_name(record), settings, record.norm, radius_key(record.eps))
        of_model = found.setdefault(key, {})
        name = model_name(each)
        if name in of_model:
            raise InputError(f"{of_model[name].path} and {each.path} are both of {name} under one attack; give one")
        of_model[name] = each
    return [list(of_model.values()) for of_model in found.values()]
