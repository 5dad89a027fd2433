"""A record that is there already: of the evaluation that is asked for, or of another one, which is not lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam_bench.attacks.doubts import square_doubts
from sam_bench.errors import InputError
from sam_bench.evaluation.run import Evaluation, settings_of
from sam_bench.records import EvaluationRecord, accuracies, read_record


def existing(
    path: Path, evaluation: Evaluation, *, resume: bool, carries: bool | None = None
) -> EvaluationRecord | None:
    """The record at `path`, where it is of this evaluation and is to be taken as it is.

    One that was made alone serves a curve, too: an example's verdict does not depend on what was carried over.

    Args:
        path: Where it would be.
        evaluation: What is asked for.
        resume: Take what is finished; else a record of the same evaluation is there to be replaced.
        carries: Asked before it is known what will be carried over: whether anything may be.

    Raises:
        InputError: It is of another evaluation; names the first field that differs.
    """
    if not path.exists():
        return None
    record = read_record(path, EvaluationRecord)
    differing = _differing(record, evaluation)
    if carries:
        differing.pop("carried", None)
    alone = list(differing) == ["carried"] and not record.carried and evaluation.attack.per_example
    if differing and not (alone and resume):
        name, (there, here) = next(iter(differing.items()))
        build = "add --resume to build on it, " if alone else ""
        raise InputError(
            f"{path} is the finished record of another evaluation: it has {name} = {there!s} and this command gives "
            f"{here!s}; {build}delete it, or choose another --output"
        )
    if not resume or carries:
        return None
    return _in_curve(record, evaluation) if alone else record


def _differing(record: EvaluationRecord, evaluation: Evaluation) -> dict[str, tuple[Any, Any]]:
    """Field to what the record has and what is asked for, where these are not the same."""
    identity = evaluation.identity()  # with the batch size only where verdicts depend on it
    names = ["n_examples", *(name for name in identity if name not in ("n_examples", "settings", "carried"))]
    pairs = {name: (getattr(record, name), identity[name]) for name in names}
    pairs |= {
        "version": (record.version, str(evaluation.attack.model_dump().get("version", ""))),
        "settings": (record.settings, settings_of(evaluation.attack)),
        "carried": (record.carried, len(evaluation.carried)),
    }
    return {name: (there, here) for name, (there, here) in pairs.items() if str(there) != str(here)}


def _in_curve(record: EvaluationRecord, evaluation: Evaluation) -> EvaluationRecord:
    """The record with what a smaller ball broke, as if that had been carried over."""
    carried, attacks = evaluation.carried, evaluation.attack.attacks
    verdicts = [
        str(carried[place].verdict) if place in carried else verdict for place, verdict in enumerate(record.verdicts)
    ]
    # What compares the attacks with each other is computed from all examples; an opinion was on other survivors.
    doubts = [each for each in record.warnings if not each.startswith(("square-better", "second-opinion"))]
    changes = {
        "verdicts": verdicts,
        "carried": len(carried),
        "warnings": doubts + square_doubts(verdicts, attacks),
        "second_opinion": None,
        **accuracies(verdicts, attacks),
    }
    fields = {name: getattr(record, name) for name in EvaluationRecord.model_fields}
    return EvaluationRecord(**fields | changes)
