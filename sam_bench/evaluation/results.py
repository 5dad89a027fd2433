"""Records: made of a log, found on disk, completed by a second attack."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sam_bench.attacks import Attack
from sam_bench.attacks.autoattack.sampled import SAMPLED, AutoAttackSampled
from sam_bench.attacks.margin import PGDMarginAttack
from sam_bench.attacks.warnings import second_attack_warnings, square_warnings
from sam_bench.errors import InputError
from sam_bench.evaluation.problem import Problem, differences, engine_text, in_words, settings_of, version_of
from sam_bench.records import (
    ROBUST,
    EvaluationRecord,
    Norm,
    Sampled,
    SecondAttack,
    accuracies,
    read_record,
    sampling_of,
)
from sam_bench.versions import package_versions, timestamp


@dataclass(frozen=True)
class Found:
    """What an attack found.

    Attributes:
        verdicts: One per example, in the order of the data set.
        warnings: As records keep them, each once.
        seconds: Time it took.
    """

    verdicts: list[str]
    warnings: list[str]
    seconds: float


def record_of(problem: Problem, found: Found, *, device: str) -> EvaluationRecord:
    """The record of a finished evaluation.

    Args:
        problem: What was evaluated.
        found: What came out.
        device: What it ran on is called.
    """
    attack = problem.attack
    return EvaluationRecord(
        model=problem.spelled or problem.model.name,
        checkpoint_sha256=problem.model.sha256,
        architecture_sha256=problem.model.architecture_sha256,
        dataset=problem.dataset,
        dataset_fingerprint=problem.test.fingerprint,
        sorted_by_class=bool((problem.test.labels.diff() >= 0).all()),
        attack=attack.method,
        version=version_of(attack),
        engine=attack.implementation,
        engine_revision=attack.engine_revision,
        settings=settings_of(attack),
        norm=problem.norm,
        eps=problem.eps,
        eps_float=float(problem.eps),
        seed=problem.seed,
        batch_size=problem.batch_size,
        n_examples=len(problem.test),
        carried=len(problem.carried),
        warnings=found.warnings,
        seconds=found.seconds,
        device=device,
        packages=package_versions(),
        created=timestamp(),
        command=problem.command,
        verdicts=found.verdicts,
        sampled=sampled_of(problem, found.verdicts),
        **accuracies(found.verdicts, attack.attacks),
    )


def sampled_of(problem: Problem, verdicts: list[str]) -> Sampled | None:
    """The block of a record about its sample; None where the attack runs on all examples."""
    attack = problem.attack.keyed(problem.key)
    if not isinstance(attack, AutoAttackSampled):
        return None
    return sampling_of(verdicts, SAMPLED, attack.chosen.contains(torch.arange(len(verdicts))).tolist())


def existing(
    path: Path,
    problem: Problem,
    *,
    resume: bool,
    carries: bool = False,
    curve: bool = False,
    usable: bool = True,
) -> EvaluationRecord | None:
    """The record at `path`, where it is of this evaluation and is to be taken as it is.

    One that was made alone, or in a curve of fewer eps, serves a curve, too: an example's verdict does not depend
    on what was carried over. A record from before the architecture was recorded may be of another one around
    the same weights: it serves models only that have no record of theirs either.

    Args:
        path: Where it would be.
        problem: What is asked for.
        resume: Take what is finished; else a record of the same evaluation is there to be replaced.
        carries: Asked before it is known what will be carried over.
        curve: There are several eps, so that no `output` can be chosen.
        usable: With `resume` it would do: adversarial examples that are asked for are beside it.

    Raises:
        InputError: It is of another evaluation; names the first field that differs.
    """
    if not path.exists():
        return None
    record = read_record(path, EvaluationRecord)
    differing, per_example = differences(*_compared(record, problem)), problem.attack.per_example
    if carries:
        differing.pop("carried", None)
        # One that carries something may be of this very curve; without `resume` it costs nothing to make sure.
        if not (resume and (per_example or record.carried)):
            differing["carried"] = (record.carried, "what smaller balls break")
    builds = list(differing) == ["carried"] and per_example and (carries or _carries_no_more(record, problem))
    if differing and not (builds and resume):
        build = f"add `resume=True` to build on it, {'or ' if curve else ''}" if builds and usable else ""
        raise InputError(
            f"{path} is the finished record of another evaluation: it has {in_words(differing)}; {build}delete it"
            f"{'' if curve else ', or choose another `output`'}"
        )
    if not resume:
        return None
    return _in_curve(record, problem) if builds else record


def _compared(record: EvaluationRecord, problem: Problem) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decides a record's verdicts, and the same names for what is asked for."""
    # A record says how many examples were carried over, not which.
    here = {name: value for name, value in problem.identity().items() if name != "carried_sha256"}
    here["carried"] = len(problem.carried)
    there = record.model_dump(mode="json", include=set(here))
    there["engine"] = engine_text(record.engine, record.engine_revision)
    return there, here


def _carries_no_more(record: EvaluationRecord, problem: Problem) -> bool:
    """Whether all that a record carries can be among what is carried over now; it says how many, not which."""
    return len(record.broken.keys() & problem.carried.keys()) >= record.carried


def _in_curve(record: EvaluationRecord, problem: Problem) -> EvaluationRecord:
    """The record with what a smaller ball broke, as if that had been carried over."""
    attacks = problem.attack.attacks
    verdicts = [problem.carried.get(place, verdict) for place, verdict in enumerate(record.verdicts)]
    # What compares the attacks with each other is computed from all examples, a second attack's gap from those left.
    others = [each for each in record.warnings if not each.startswith(("square-better", "second-opinion"))]
    found = _changed(
        record,
        verdicts=verdicts,
        carried=len(problem.carried),
        warnings=others + [str(each) for each in square_warnings(verdicts, attacks)],
        second_opinion=None,
        **accuracies(verdicts, attacks),
    )
    return found if record.second_opinion is None else recounted(found, record.second_opinion)


def second_attack_for(first: Attack, norm: Norm) -> Attack:
    """A different strong attack, to be run on what the first leaves standing.

    Raises:
        InputError: It is the attack itself, or there is none for this norm.
    """
    other = PGDMarginAttack()
    if first.method == other.method:
        raise InputError(f"`second_attack` runs {other.method}, which is the attack itself; leave one out")
    other.check(norm)
    return other


def left_by(record: EvaluationRecord, problem: Problem, attack: Attack, broken: Collection[int]) -> Problem:
    """The evaluation of what a finished one left standing, by another attack.

    Args:
        record: What the first found.
        problem: What the record is of.
        attack: What to run.
        broken: Places that it broke in a smaller ball already.
    """
    settled = {place: verdict for place, verdict in enumerate(record.verdicts) if verdict != ROBUST}
    carried = dict.fromkeys(broken, attack.method) | settled
    return replace(problem, attack=attack, carried=dict(sorted(carried.items())))


def with_second_attack(record: EvaluationRecord, second: Problem, found: Found) -> EvaluationRecord:
    """The record with what the second attack found added to it, and a warning where that is much.

    No verdict changes: what is called AutoAttack is AutoAttack.

    Args:
        record: What the first attack found.
        second: As `left_by` made it.
        found: What came out of it.
    """
    attack = second.attack
    lost = [place for place, verdict in enumerate(found.verdicts) if verdict == attack.method]
    about = {
        "attack": attack.method,
        "engine": attack.implementation,
        "settings": settings_of(attack),
        "seconds": found.seconds,
    }
    return _counted(record, about, lost, found.warnings)


def recounted(record: EvaluationRecord, second: SecondAttack, broken: Iterable[int] = ()) -> EvaluationRecord:
    """The record with a second attack that has run already, as a curve has it: it works example by example.

    Args:
        record: What the first attack found, and what was carried over.
        second: Run when as much or more was left standing.
        broken: Places that it broke in a smaller ball.
    """
    about = second.model_dump(exclude={"robust_accuracy", "gap", "broken"})
    return _counted(record, about, [*second.broken, *broken], [])


def _counted(
    record: EvaluationRecord, about: Mapping[str, Any], broken: Iterable[int], warnings: Iterable[str]
) -> EvaluationRecord:
    standing = {place for place, verdict in enumerate(record.verdicts) if verdict == ROBUST}
    lost, total = sorted(standing.intersection(broken)), record.n_examples
    added = SecondAttack(
        **about, robust_accuracy=(len(standing) - len(lost)) / total, gap=len(lost) / total, broken=lost
    )
    gap = [str(each) for each in second_attack_warnings(record.attack, added.attack, added.gap)]
    others = [each for each in record.warnings if not each.startswith("second-opinion")]
    return _changed(record, second_opinion=added, warnings=list(dict.fromkeys([*others, *warnings, *gap])))


def _changed(record: EvaluationRecord, **changes: Any) -> EvaluationRecord:
    """A record with other values, checked again."""
    return EvaluationRecord(**{name: getattr(record, name) for name in EvaluationRecord.model_fields} | changes)
