"""A second opinion: a different strong attack on what the first left standing, and how far apart they are.

The first attack's verdicts stay as they are: what is called AutoAttack is AutoAttack.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from sam_bench.attacks import Attack, Verdict
from sam_bench.attacks.doubts import second_opinion_doubts
from sam_bench.attacks.margin import PGDMarginAttack
from sam_bench.errors import InputError
from sam_bench.evaluation.journal import Known
from sam_bench.evaluation.run import Evaluation, settings_of
from sam_bench.records import ROBUST, EvaluationRecord, Norm, SecondOpinion


def second_attack(first: Attack, norm: Norm) -> Attack:
    """What gives the opinion.

    Raises:
        InputError: It is the attack itself, or there is none for this norm.
    """
    other = PGDMarginAttack()
    if first.method == other.method:
        raise InputError(f"--second-opinion is given by {other.method}, which is the attack itself; leave one of them")
    other.check(norm)
    return other


def opinion_on(record: EvaluationRecord, evaluation: Evaluation, attack: Attack, broken: Collection[int]) -> Evaluation:
    """The evaluation of what a finished one left standing, by another attack.

    Args:
        record: What the first found.
        evaluation: The one the record is of.
        attack: What to run.
        broken: Places that it broke in a smaller ball already.
    """
    settled = {place: verdict for place, verdict in enumerate(record.verdicts) if verdict != ROBUST}
    carried = dict.fromkeys(broken, attack.method) | settled
    return replace(
        evaluation,
        attack=attack,
        carried={place: Verdict(place, carried[place]) for place in sorted(carried)},
    )


def with_opinion(record: EvaluationRecord, opinion: Evaluation, known: Known) -> EvaluationRecord:
    """The record with what the second attack found added to it, and a doubt where that is much.

    Args:
        record: What the first attack found.
        opinion: As `opinion_on` made it.
        known: What came out of it.
    """
    attack = opinion.attack
    broken = [place for place, verdict in known.verdicts.items() if verdict.verdict == attack.method]
    about = {
        "attack": attack.method,
        "engine": attack.implementation,
        "settings": settings_of(attack),
        "seconds": known.seconds,
    }
    return _counted(record, about, broken, known.doubts)


def recounted(record: EvaluationRecord, opinion: SecondOpinion, broken: Iterable[int] = ()) -> EvaluationRecord:
    """The record with an opinion that is there already, as a curve has it: its attack works example by example.

    Args:
        record: What the first attack found, and what was carried over.
        opinion: Asked when as much or more was left standing.
        broken: Places that it broke in a smaller ball.
    """
    about = opinion.model_dump(exclude={"robust_accuracy", "gap", "broken"})
    return _counted(record, about, [*opinion.broken, *broken], [])


def _counted(
    record: EvaluationRecord, about: Mapping[str, Any], broken: Iterable[int], told: Iterable[str]
) -> EvaluationRecord:
    standing = {place for place, verdict in enumerate(record.verdicts) if verdict == ROBUST}
    lost, total = sorted(standing.intersection(broken)), record.n_examples
    added = SecondOpinion(
        **about, robust_accuracy=(len(standing) - len(lost)) / total, gap=len(lost) / total, broken=lost
    )
    doubts = second_opinion_doubts(record.attack, added.attack, added.gap)
    others = [each for each in record.warnings if not each.startswith("second-opinion")]
    fields = {name: getattr(record, name) for name in EvaluationRecord.model_fields}
    warnings = list(dict.fromkeys([*others, *told, *doubts]))
    return EvaluationRecord(**fields | {"second_opinion": added, "warnings": warnings})
