"""The adversarial examples of an entry: beside each record, and those of smaller balls, which serve larger ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sam_bench.errors import InputError
from sam_bench.evaluation.adversarial import read_adversarial
from sam_bench.evaluation.replay import tested_by
from sam_bench.leaderboard.evidence import read_bundle
from sam_bench.leaderboard.record_checks import Evidence
from sam_bench.records import MISCLASSIFIED, ROBUST, EvaluationRecord, adversarial_path

if TYPE_CHECKING:
    from sam_bench.data import Split


def stored_examples(evidence: Sequence[Evidence], test: Split) -> list[dict[int, Any]]:
    """The adversarial examples of each record: its own, and those of smaller balls, which lie in its ball, too."""
    pools = [own_examples(each, test) for each in evidence]
    for at, own in enumerate([dict(pool) for pool in pools]):
        share_with_larger(evidence, pools, at, own)
    return pools


def share_with_larger(
    evidence: Sequence[Evidence], pools: Sequence[dict[int, Any]], at: int, found: Mapping[int, Any]
) -> None:
    """Put adversarial examples of the record at `at` into the pools of all balls that hold its own, where they lack."""
    record = evidence[at].record
    for each, pool in zip(evidence, pools, strict=True):
        if each.record.norm == record.norm and each.record.eps >= record.eps and _same_places(each.record, record):
            pool.update({place: x_adv for place, x_adv in found.items() if place not in pool})


def _same_places(one: EvaluationRecord, other: EvaluationRecord) -> bool:
    """Whether a place is the same image in both; a part of what is sorted by class is not the first of it."""
    same = one.dataset_fingerprint == other.dataset_fingerprint
    return same or not (one.sorted_by_class or other.sorted_by_class)


def own_examples(evidence: Evidence, test: Split) -> dict[int, Any]:
    """The adversarial examples beside a record, held against it; none where there is no file."""
    path, record = adversarial_path(evidence.path), evidence.record
    content = read_bundle(path)
    if not content:
        return {}
    read = read_adversarial(content, str(path), record, tested_by(record, test))
    for place in read.x_adv:
        if record.verdicts[place] in (ROBUST, MISCLASSIFIED):
            raise InputError(
                f"{path} holds an adversarial example of test example {place}, which its record calls "
                f"{record.verdicts[place]}"
            )
    return dict(read.x_adv)
