"""What methods were measured to buy: changes against plain training on the same images, from cards and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sam_bench.analysis import NamedRecord
from sam_bench.analysis.comparisons import comparisons, model_name
from sam_bench.analysis.families import STANDARD, Setting, strength
from sam_bench.analysis.statistics import Bootstrap, Interval, Scores, paired_difference
from sam_bench.errors import InputError
from sam_bench.leaderboard.labels import architecture_label, attack_name
from sam_bench.records import MISCLASSIFIED, ROBUST, Norm, Radius, read_record
from sam_bench.records.fields import Fraction01, Record

_BOOTSTRAP = Bootstrap(draws=500)  # the table has hundreds of intervals
_TABLE = Path(__file__).with_name("measured_points.json")


class Change(Record):
    """A difference from plain training in points of accuracy, with its 95 % interval."""

    estimate: float
    low: float
    high: float


class MeasuredPoint(Record):
    """A method at one strength under one attack, beside plain training."""

    where: str  # network, epochs and training images
    method: str  # family and strength
    family: str
    strength: float | None
    settings: dict[str, str | float]  # of `train`: the recipe and what differs from it
    models: tuple[str, ...]
    passes: float  # as a multiple of plain training's
    attack: str
    norm: Norm
    eps: Radius
    n_examples: int
    clean: Fraction01
    robust: Fraction01
    clean_change: Change
    robust_change: Change


class MeasuredTable(Record):
    """The file of measured points."""

    version: Literal[1] = 1
    command: str
    rows: tuple[MeasuredPoint, ...]


def committed_points() -> tuple[MeasuredPoint, ...]:
    """The points that come with the package, made from its committed cards and records."""
    return read_record(_TABLE, MeasuredTable).rows


def measured_points(records: Sequence[NamedRecord], settings: Mapping[str, Mapping[str, Any]]) -> list[MeasuredPoint]:
    """Every method under every attack that plain training met too, on the same images.

    Models of one method and strength that differ in the seed are one row. Seeds are paired.

    Args:
        records: Each with the card of its model.
        settings: Model to the settings of `train` that make its method.

    Raises:
        InputError: There is no plain training among the records, or a record has no card.
    """
    rows = []
    for compared in comparisons(records):
        groups: dict[tuple[Setting, str], list[NamedRecord]] = {}
        for each in compared:
            groups.setdefault((_setting(each), _method(each)), []).append(each)
        for (setting, _), members in groups.items():
            standard = groups.get((setting, STANDARD))
            if standard is not None:
                rows.append(_row(members, standard, settings))
    if not rows:
        raise InputError("no record of plain training beside which a method could be measured")
    return rows


def _setting(named: NamedRecord) -> Setting:
    if named.card is None:
        raise InputError(f"{named.path} is of a model without a card here, so its method and cost are not known")
    return Setting.of(named.card)


def _method(named: NamedRecord) -> str:
    assert named.card is not None
    at = strength(named.card.recipe)
    return f"{at.family} {at.text}".strip()


def _row(
    members: Sequence[NamedRecord],
    standard: Sequence[NamedRecord],
    settings: Mapping[str, Mapping[str, Any]],
) -> MeasuredPoint:
    first = members[0]
    card, record = first.card, first.record
    assert card is not None
    at = strength(card.recipe)
    changes = [_change(members, standard, clean=clean) for clean in (True, False)]
    return MeasuredPoint(
        where=f"{architecture_label(card.architecture)}, {card.epochs} epochs of {card.train_examples:,} images of "
        f"{card.dataset}",
        method=_method(first),
        family=at.family,
        strength=at.value,
        settings=dict(settings[model_name(first)]),
        models=tuple(model_name(each) for each in members),
        passes=round(_passes(members) / _passes(standard), 3),
        attack=attack_name(record),
        norm=record.norm,
        eps=record.eps,
        n_examples=record.n_examples,
        clean=_mean([each.record.clean_accuracy for each in members]),
        robust=_mean([each.record.robust_accuracy for each in members]),
        clean_change=changes[0],
        robust_change=changes[1],
    )


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)


def _passes(members: Sequence[NamedRecord]) -> float:
    return sum(each.card.cost.passes for each in members if each.card) / len(members)


def _change(members: Sequence[NamedRecord], standard: Sequence[NamedRecord], *, clean: bool) -> Change:
    found = paired_difference(_scores(members, clean=clean), _scores(standard, clean=clean), _BOOTSTRAP)
    return _rounded(found)


def _rounded(found: Interval) -> Change:
    return Change(estimate=round(found.estimate, 3), low=round(found.low, 3), high=round(found.high, 3))


def _scores(members: Sequence[NamedRecord], *, clean: bool) -> Scores:
    verdicts = [np.array(each.record.verdicts) for each in members]
    right = [line != MISCLASSIFIED if clean else line == ROBUST for line in verdicts]
    return Scores(tuple(each.card.seed for each in members if each.card), np.stack(right))
