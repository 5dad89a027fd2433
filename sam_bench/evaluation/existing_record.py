"""A record that is there already: of the evaluation that is asked for, or of another one, which is not lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam_bench.attacks.doubts import square_doubts
from sam_bench.errors import InputError
from sam_bench.evaluation.opinion import recounted
from sam_bench.evaluation.run import Evaluation, settings_of
from sam_bench.records import MISCLASSIFIED, ROBUST, EvaluationRecord, accuracies, read_record


def existing(
    path: Path,
    evaluation: Evaluation,
    *,
    resume: bool,
    carries: bool = False,
    curve: bool = False,
    usable: bool = True,
) -> EvaluationRecord | None:
    """The record at `path`, where it is of this evaluation and is to be taken as it is.

    One that was made alone, or in a curve of fewer radii, serves a curve, too: an example's verdict does not depend
    on what was carried over.

    Args:
        path: Where it would be.
        evaluation: What is asked for.
        resume: Take what is finished; else a record of the same evaluation is there to be replaced.
        carries: Asked before it is known what will be carried over.
        curve: There are several radii, so that no `--output` can be chosen.
        usable: With `--resume` it would do: adversarial examples that are asked for are beside it.

    Raises:
        InputError: It is of another evaluation; names the first field that differs.
    """
    if not path.exists():
        return None
    record = read_record(path, EvaluationRecord)
    differing, per_example = _differing(record, evaluation), evaluation.attack.per_example
    if carries:
        differing.pop("carried", None)
        # One that carries something may be of this very curve; without --resume it costs nothing to make sure.
        if not (resume and (per_example or record.carried)):
            differing["carried"] = (record.carried, "what smaller balls break")
    builds = list(differing) == ["carried"] and per_example and (carries or _carries_no_more(record, evaluation))
    if differing and not (builds and resume):
        name, (there, here) = next(iter(differing.items()))
        build = f"add --resume to build on it, {'or ' if curve else ''}" if builds and usable else ""
        raise InputError(
            f"{path} is the finished record of another evaluation: it has {name} = {there!s} and this command gives "
            f"{here!s}; {build}delete it{'' if curve else ', or choose another --output'}"
        )
    if not resume:
        return None
    return _in_curve(record, evaluation) if builds else record


def _differing(record: EvaluationRecord, evaluation: Evaluation) -> dict[str, tuple[Any, Any]]:
    """Field to what the record has and what is asked for, where these are not the same."""
    identity = evaluation.identity()  # with the batch size only where verdicts depend on it
    names = ["n_examples", *(name for name in identity if name not in ("n_examples", "settings", "carried"))]
    pairs = {name: (getattr(record, name), identity[name]) for name in names}
    pairs |= {
        "version": (record.version, str(evaluation.attack.model_dump().get("version", ""))),
        "settings": (_settings_today(record), settings_of(evaluation.attack)),
        "carried": (record.carried, len(evaluation.carried)),
    }
    return {name: (there, here) for name, (there, here) in pairs.items() if str(there) != str(here)}


def _settings_today(record: EvaluationRecord) -> dict[str, Any]:
    """A record's settings; older ones name random draws of ours for AutoAttack by its authors' code, which has none."""
    no_draws = record.attack == "autoattack" and record.settings.get("engine") == "reference"
    return {name: value for name, value in record.settings.items() if not (no_draws and name == "rng")}


def _carries_no_more(record: EvaluationRecord, evaluation: Evaluation) -> bool:
    """Whether all that a record carries can be among what is carried over now; it says how many, not which."""
    broken = [place for place in evaluation.carried if record.verdicts[place] not in (ROBUST, MISCLASSIFIED)]
    return len(broken) >= record.carried


def _in_curve(record: EvaluationRecord, evaluation: Evaluation) -> EvaluationRecord:
    """The record with what a smaller ball broke, as if that had been carried over."""
    carried, attacks = evaluation.carried, evaluation.attack.attacks
    verdicts = [
        str(carried[place].verdict) if place in carried else verdict for place, verdict in enumerate(record.verdicts)
    ]
    # What compares the attacks with each other is computed from all examples, and an opinion from those left standing.
    doubts = [each for each in record.warnings if not each.startswith(("square-better", "second-opinion"))]
    changes = {
        "verdicts": verdicts,
        "carried": len(carried),
        "warnings": doubts + square_doubts(verdicts, attacks),
        "second_opinion": None,
        **accuracies(verdicts, attacks),
    }
    fields = {name: getattr(record, name) for name in EvaluationRecord.model_fields}
    found = EvaluationRecord(**fields | changes)
    return found if record.second_opinion is None else recounted(found, record.second_opinion)
