"""Records that can be compared: the same attack and radius on the same images."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sam_bench.analysis.base import NamedRecord
from sam_bench.errors import InputError
from sam_bench.leaderboard.labels import attack_name, radius_key, radius_text
from sam_bench.leaderboard.record_checks import our_attacks
from sam_bench.records import EvaluationRecord


@dataclass(frozen=True)
class Comparison:
    """Records of one attack, norm and radius on the same images, one a model.

    Attributes:
        records: In the order in which they were given.
    """

    records: tuple[NamedRecord, ...]

    @property
    def attack(self) -> str:
        """The attack with the settings that make it stronger or weaker: `pgd-10`."""
        return attack_name(self.records[0].record)

    @property
    def norm(self) -> str:
        """`Linf`, `L2` or `L1`."""
        return self.records[0].record.norm

    @property
    def eps(self) -> str:
        """The radius as it was written: `8/255`."""
        return radius_text(self.records[0].record.eps)

    @property
    def title(self) -> str:
        """What tells it from others: `pgd-10 Linf 8/255`."""
        return attack_title(self.records[0].record)

    @property
    def names(self) -> list[str]:
        """The name of each record's model."""
        return [model_name(each) for each in self.records]


def model_name(named: NamedRecord) -> str:
    """The name on the model's card, or what `evaluate` was given where there is no card."""
    return named.card.name if named.card else named.record.model


def attack_title(record: EvaluationRecord) -> str:
    """Attack, norm and radius: `pgd-10 Linf 8/255`."""
    return f"{attack_name(record)} {record.norm} {radius_text(record.eps)}"


def comparisons(records: list[NamedRecord]) -> list[Comparison]:
    """The records by what was asked of their models, in the order in which each question first comes.

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
    return [Comparison(tuple(of_model.values())) for of_model in found.values()]
