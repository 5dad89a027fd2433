"""All numbers of a report as one JSON object; tables, figures and sentences are made from it alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sam_bench import __version__
from sam_bench.analysis.statistics import Interval, Scores, median
from sam_bench.leaderboard.labels import network_label
from sam_bench.records import ROBUST, EvaluationRecord
from sam_bench.studies.claims import CLEAN, Claim, Family, Part, Passes
from sam_bench.studies.jobs import Measurement, Model, Study
from sam_bench.studies.notes import Distances, Fault, Matched
from sam_bench.studies.opening import plan_of
from sam_bench.studies.results import Measured
from sam_bench.studies.verdicts import decide
from sam_bench.versions import package_versions, source_commit, timestamp
from sam_bench.zoo import Zoo

Json = dict[str, Any]
_POINTS = 100.0


def numbers_of(found: Measured, *, command: str = "") -> Json:
    """Everything that a report says. Accuracies are in per cent, distances in levels of 255."""
    study = found.study
    return {
        "about": _about(study, command),
        "progress": _progress(found),
        "cost": _cost(found),
        "claims": _claims(found),
        "rows": {row: _row(found, row) for row in study.rows},
        "fault": [each for row in study.rows for each in _faults(found, row)],
        "confidence": [each for row in study.rows for each in _confidences(found, row)],
    }


def _about(study: Study, command: str) -> Json:
    scale = study.scale
    return {
        "title": study.plan.title,
        "source": study.plan.source,
        "scale": study.scale_name,
        "dataset": study.dataset_name,
        "precision": study.precision,
        "network": network_label(scale.arch, scale.network),
        "width": scale.width,
        "epochs": scale.epochs,
        "limit_train": scale.limit_train,
        "seeds": scale.seeds.model_dump(),
        "plan": study.file.path.name,
        "plan_text": study.file.text,
        "plan_sha256": study.file.sha256,
        "plan_sha256_at_start": plan_of(study.folder),
        "statistics": asdict(study.plan.statistics),
        "sam_bench": __version__,
        "commit": source_commit(),
        "packages": package_versions(),
        "created": timestamp(),
        "command": command,
    }


def _progress(found: Measured) -> Json:
    """How much of the plan is done."""
    study = found.study
    jobs = study.jobs()
    trained = sum(map(len, found.cards.values()))
    both = set(found.records) | set(found.notes)
    measured = sum(len(found.records.get(key) or found.notes.get(key, {})) for key in both)
    return {
        "models": [trained, sum(isinstance(job, Model) for job in jobs)],
        "measurements": [measured, sum(isinstance(job, Measurement) for job in jobs)],
    }


def _cost(found: Measured) -> Json:
    hours: dict[str, dict[str, float]] = {"training": {}, "evaluation": {}}
    for kind, device, seconds in found.seconds():
        hours[kind][device] = hours[kind].get(device, 0.0) + seconds / 3600
    return hours


def _claims(found: Measured) -> Json:
    """Each claim with its verdict, which it has once all planned seeds are there, not as soon as it looks decided."""
    plan = found.study.plan
    claims: Json = {}
    for name, claim in plan.claims.items():
        decision, missing = decide(claim, found, plan.statistics), waits_for(claim, found)
        absent = left_out(claim, found)
        claims[name] = {
            "text": claim.text,
            "verdict": "not tested" if absent else "unfinished" if missing else decision.verdict,
            "so_far": decision.verdict,
            "waits_for": missing,
            "left_out": absent,
            "sentence": decision.sentence,
            "parts": [
                {
                    "rule": part.part.model_dump(mode="json"),
                    "verdict": part.verdict,
                    "sentence": part.sentence,
                    "points": [
                        {
                            "eps": None if point.eps is None else str(point.eps),
                            "interval": None if point.interval is None else interval(point.interval),
                            "verdict": point.verdict,
                            "sentence": point.sentence,
                        }
                        for point in part.points
                    ],
                }
                for part in decision.parts
            ],
        }
    return claims


def waits_for(claim: Claim, found: Measured) -> list[str]:
    """The rows of a claim that lack seeds, as `at: 1 of 3 seeds of autoattack`; empty if nothing is missing.

    A row that the scale leaves out is not waited for; see `left_out`.
    """
    lacking: dict[str, None] = {}
    for part in claim.parts:
        of = None if isinstance(part, Passes) else part.of
        for row in _rows_of(part, found):
            if row not in found.study.rows:
                continue
            done, planned = _seeds_done(found, row, of), len(found.study.seeds(row))
            if done < planned:
                lacking[f"{row}: {done} of {planned} seeds" + (f" of {of}" if of else "")] = None
    return list(lacking)


def left_out(claim: Claim, found: Measured) -> list[str]:
    """The rows of a claim that the scale leaves out; of a family all, where too few are left for a curve."""
    study, needed = found.study, set[str]()
    for part in claim.parts:
        needed |= {part.a, part.b} if isinstance(part.b, str) else {part.a}
        if isinstance(part.b, Family) and len(found.family(part.b.family)) < 2:
            needed |= {row for row, each in study.plan.rows.items() if each.family == part.b.family}
    return [row for row in study.plan.rows if row in needed - study.rows.keys()]


def _rows_of(part: Part, found: Measured) -> Iterator[str]:
    yield part.a
    yield from [part.b] if isinstance(part.b, str) else found.family(part.b.family)


def _seeds_done(found: Measured, row: str, of: str | None) -> int:
    """How many seeds of a row are trained, and measured where something is asked of them."""
    if of is None:
        return len(found.cards.get(row, {}))
    measured = found.measured(row, of)
    return 0 if measured is None else len(measured.seeds)


def interval(of: Interval) -> Json:
    """Estimate and bounds; a bound that is not finite is null."""
    return {name: value if math.isfinite(value) else None for name, value in asdict(of).items()}


def _row(found: Measured, row: str) -> Json:
    study, planned = found.study, found.study.rows[row]
    cards = found.cards.get(row, {})
    zoo = Zoo(study.zoo)
    return {
        **planned.model_dump(mode="json"),
        "planned_seeds": len(study.seeds(row)),
        "models": {
            str(seed): {
                "card": _relative(study, zoo.card_path(card)),
                "passes": card.cost.passes,
                "seconds": card.cost.seconds,
                "clean": _POINTS * card.clean_accuracy,
                "command": card.command,
            }
            for seed, card in cards.items()
        },
        "passes": statistics.fmean(card.cost.passes for card in cards.values()) if cards else None,
        "clean": over_seeds({seed: _POINTS * card.clean_accuracy for seed, card in cards.items()}),
        "evaluations": {
            name: _evaluation(found, row, name)
            for name in study.evaluations(row)
            if (row, name) in found.records or isinstance(found.measured(row, name), Scores)
        },
    }


def over_seeds(values: Mapping[int, float]) -> Json:
    """Mean and standard deviation over seeds, and each seed's value; null where a value is infinite."""
    several = list(values.values())
    finite = all(map(math.isfinite, several))
    return {
        "mean": statistics.fmean(several) if several and finite else None,
        "sd": statistics.stdev(several) if len(several) > 1 and finite else None,
        "seeds": {str(seed): value if math.isfinite(value) else None for seed, value in values.items()},
    }


def _evaluation(found: Measured, row: str, name: str) -> Json:
    records = found.records.get((row, name))
    if records is None:
        return _distances(found, row, name)
    first: EvaluationRecord = next(iter(records.values()))[0]
    clean = {seed: _POINTS * each[0].clean_accuracy for seed, each in records.items()}
    return {
        "n_examples": first.n_examples,
        "clean": over_seeds(clean),
        "radii": {
            str(record.eps): {
                **over_seeds({seed: _POINTS * each[index].robust_accuracy for seed, each in records.items()}),
                "records": {
                    str(seed): _relative(found.study, found.study.record(_job(row, seed, name), each[index].eps))
                    for seed, each in records.items()
                },
            }
            for index, record in enumerate(next(iter(records.values())))
        },
        "warnings": sorted({warning for each in records.values() for one in each for warning in one.warnings}),
    }


def _distances(found: Measured, row: str, name: str) -> Json:
    scores = found.measured(row, name)
    assert isinstance(scores, Scores)
    notes = found.notes[row, name]
    between = median(scores, found.study.plan.statistics)
    medians = np.median(scores.values, axis=1)
    return {
        "n_examples": scores.images,
        "median": over_seeds({seed: float(each) for seed, each in zip(scores.seeds, medians, strict=True)}),
        "interval": interval(between) if isinstance(between, Interval) else None,
        "notes": {str(seed): _note(found.study, row, seed, name) for seed in notes},
        "not_found": sum(
            each is None for note in notes.values() if isinstance(note, Distances) for each in note.distances
        ),
    }


def _faults(found: Measured, row: str) -> list[Json]:
    """The published fault beside the correct evaluation of the same images, model by model."""
    result = []
    for (of, name), notes in found.notes.items():
        for seed, note in notes.items():
            if of != row or not isinstance(note, Fault):
                continue
            correct = _correct(found, row, seed, note)
            result.append(
                {
                    "row": row,
                    "seed": seed,
                    "n_examples": note.n_examples,
                    "norm": note.norm,
                    "eps": str(note.eps),
                    "clean": _percent(note.clean),
                    "clipped": _percent(note.clipped),
                    "robust": _percent(note.robust),
                    "correct": correct,
                    "mean": list(note.mean),
                    "std": list(note.std),
                    "note": _note(found.study, row, seed, name),
                }
            )
    return result


def _correct(found: Measured, row: str, seed: int, note: Fault) -> float | None:
    """Robust accuracy by AutoAttack as it is meant, on the same images at the same radius."""
    for (of, name), records in found.records.items():
        evaluation = found.study.plan.evaluations[name]
        if of != row or seed not in records or evaluation.attack != "autoattack" or evaluation.temperature:
            continue
        for record in records[seed]:
            same = (record.norm, float(record.eps)) == (note.norm, float(note.eps))
            alike = record.dataset_fingerprint == note.dataset_fingerprint
            if same and (alike or (note.head and record.n_examples > note.n_examples)):
                return _percent([each == ROBUST for each in record.verdicts[: note.n_examples]])
    return None


def _confidences(found: Measured, row: str) -> list[Json]:
    """The temperatures at which all models are equally confident."""
    return [
        {
            "row": row,
            "seed": seed,
            "temperature": note.temperature,
            "before": note.confidence_before,
            "after": note.confidence_after,
            "target": note.target,
            "note": _note(found.study, row, seed, name),
        }
        for (of, name), notes in found.notes.items()
        for seed, note in notes.items()
        if of == row and isinstance(note, Matched) and name != CLEAN
    ]


def _percent(right: Sequence[bool]) -> float:
    return _POINTS * sum(right) / len(right)


def _job(row: str, seed: int, name: str) -> Measurement:
    return Measurement(Model(row, seed), name)


def _note(study: Study, row: str, seed: int, name: str) -> str:
    return _relative(study, study.notes(_job(row, seed, name)))


def _relative(study: Study, path: Path) -> str:
    return path.relative_to(study.folder).as_posix()
