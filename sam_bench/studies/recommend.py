"""Which method to start with: from measured points, for a radius, a loss of clean accuracy and a budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sam_bench.analysis.families import STANDARD
from sam_bench.errors import InputError
from sam_bench.perturb.ball import check_eps
from sam_bench.records import Norm, Radius
from sam_bench.studies.measured_points import MeasuredPoint

FARTHEST = 2.0
"""A radius is answered by the nearest measured one, if neither is more than this many times the other."""

_PLATEAU = 1.0  # points of robust accuracy below which a greater strength buys nothing
_WORTH_TELLING = 1.0  # points of robust accuracy that an alternative has to buy


@dataclass(frozen=True)
class Question:
    """What a user cares about.

    Args:
        norm: Of the attack.
        eps: Its radius, above 0 and not in units of 1/255.
        max_clean_loss: Points of clean accuracy that may be lost against plain training.
        budget: Passes as a multiple of plain training's, at least 1.

    Raises:
        InputError: A value is out of range; names the field.
    """

    norm: Norm
    eps: Radius
    max_clean_loss: float
    budget: float

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise InputError("must be above 0", field="eps", value=str(self.eps))
        check_eps(self.norm, self.eps, hint="")
        if not 0 <= self.max_clean_loss <= 100:
            raise InputError(
                "must be points of accuracy from 0 to 100", field="max_clean_loss", value=self.max_clean_loss
            )
        if not 1 <= self.budget < math.inf:
            raise InputError(
                "must be a multiple of plain training's passes, at least 1", field="budget", value=self.budget
            )

    def allows(self, row: MeasuredPoint) -> bool:
        """Whether a method loses no more clean accuracy and costs no more passes than asked for."""
        return self.keeps(row) and self.affords(row)

    def keeps(self, row: MeasuredPoint) -> bool:
        """Whether it loses no more clean accuracy than accepted."""
        return -row.clean_change.estimate <= self.max_clean_loss

    def affords(self, row: MeasuredPoint) -> bool:
        """Whether it costs no more passes than there are."""
        return row.passes <= self.budget + 0.005  # as many decimals as are shown


@dataclass(frozen=True)
class Recommendation:
    """What to start with.

    Attributes:
        row: The method as it was measured.
        settings: Of `train`.
        reasons: Why, as sentences.
        warnings: Where tuning goes wrong, as sentences.
        alternatives: What would buy more, and what for, as sentences.
    """

    row: MeasuredPoint
    settings: Mapping[str, Any]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    alternatives: tuple[str, ...]


def recommend(rows: Sequence[MeasuredPoint], question: Question) -> Recommendation:
    """The most robust method that a question allows, by what was measured nearest to it.

    Plain training is always allowed. It is recommended if nothing else that is allowed is more robust by more than
    the noise: the interval of the gain must lie above zero.

    Args:
        rows: Measured points. Those of one network, training set and attack are compared, the greatest number of
            methods if there are several such.
        question: What is asked for.

    Raises:
        InputError: Nothing was measured near the radius.
    """
    near = _nearest(rows, question)
    standard = next(row for row in near if row.family == STANDARD)
    chosen = _best([row for row in near if question.allows(row)]) or standard
    gain = chosen.robust_change.estimate
    return Recommendation(
        row=chosen,
        settings=chosen.settings,
        reasons=(*_reasons(chosen, standard, near, question), *_elsewhere(chosen, rows)),
        warnings=tuple(_warnings(chosen, near, question)),
        alternatives=tuple(_alternatives(near, question, gain)),
    )


def _best(rows: Sequence[MeasuredPoint]) -> MeasuredPoint | None:
    """The most robust of those whose gain is above the noise; of equally robust ones the cheapest."""
    above = [row for row in rows if row.robust_change.low > 0]
    return max(above, key=lambda row: (row.robust_change.estimate, -row.passes), default=None)


def _nearest(rows: Sequence[MeasuredPoint], question: Question) -> list[MeasuredPoint]:
    """The rows of the nearest radius, in the place and under the attack that saw most methods."""
    radii = {float(row.eps): row.eps for row in rows if row.norm == question.norm}
    near = {value for value in radii if _ratio(value, question.eps) <= FARTHEST + 1e-9}
    if not near:
        known = ", ".join(f"{row_eps}" for _, row_eps in sorted(radii.items())) or "none"
        raise InputError(
            f": nothing was measured near {question.norm} {question.eps}; measured radii: {known}",
            field="eps",
            hint="measure it on your data with `sweep=True`",
        )
    # Of two that are equally near the larger one: robustness in a larger ball is robustness in a smaller one.
    nearest = min(near, key=lambda value: (round(_ratio(value, question.eps), 9), -value))
    groups: dict[tuple[str, str], list[MeasuredPoint]] = {}
    for row in rows:
        if row.norm == question.norm and float(row.eps) == nearest:
            groups.setdefault((row.where, row.attack), []).append(row)
    largest = max(groups.values(), key=lambda group: (len(group), group[0].n_examples))
    # The same method from two sources counts once: as it was measured with more seeds, then on more images.
    by_seeds = sorted(largest, key=lambda row: (len(row.models), row.n_examples))
    return list({row.method: row for row in by_seeds}.values())


def _ratio(a: float, b: float) -> float:
    return max(a / b, b / a)


def _reasons(
    chosen: MeasuredPoint, standard: MeasuredPoint, near: Sequence[MeasuredPoint], question: Question
) -> Iterator[str]:
    count = sum(question.allows(row) for row in near)
    lost = f"{question.max_clean_loss:g} point{'' if question.max_clean_loss == 1 else 's'} of clean accuracy"
    yield (
        f"{count} of {len(near)} measured methods lose at most {lost} and cost at most {question.budget:g}x the passes "
        "of plain training."
    )
    if chosen is standard:
        yield "None of them is more robust than plain training by more than the noise."
        yield f"Plain training has {standard.clean:.1%} clean and {standard.robust:.1%} robust accuracy."
    else:
        yield (
            f"{chosen.method} is the most robust of them: {_signed(chosen, 'robust')} and "
            f"{_signed(chosen, 'clean')}, for {chosen.passes:.3g}x the passes."
        )
        # Plain training of the same source: the table may have it from another one with more seeds.
        robust, clean = (
            100 * chosen.robust - chosen.robust_change.estimate,
            100 * chosen.clean - chosen.clean_change.estimate,
        )
        yield (
            f"That leaves {chosen.robust:.1%} robust and {chosen.clean:.1%} clean accuracy, where plain training has "
            f"{robust:.1f}% and {clean:.1f}%."
        )
    yield (
        f"Measured with {chosen.where}; {_seeds(chosen)}; {chosen.attack} at {chosen.norm} {chosen.eps} on "
        f"{chosen.n_examples:,} test images. Brackets are 95 % intervals."
    )
    if _ratio(chosen.eps, question.eps) > 1 + 1e-9:
        yield f"{question.norm} {question.eps} was not measured; {chosen.eps} is the nearest radius that was."


def _elsewhere(chosen: MeasuredPoint, rows: Sequence[MeasuredPoint]) -> Iterator[str]:
    """What the method changed with other networks or data, each as it was measured with the most seeds."""
    if chosen.family == STANDARD:
        return
    asked = chosen.method, chosen.attack, chosen.norm, chosen.eps
    same = [row for row in rows if (row.method, row.attack, row.norm, row.eps) == asked]
    best = {row.where: row for row in sorted(same, key=lambda row: (len(row.models), row.n_examples))}
    for row in best.values():
        if row.where != chosen.where:
            yield f"With {row.where} ({_seeds(row)}): {_signed(row, 'robust')} and {_signed(row, 'clean')}."


def _seeds(row: MeasuredPoint) -> str:
    return f"{len(row.models)} seed{'' if len(row.models) == 1 else 's'}"


def _signed(row: MeasuredPoint, kind: str) -> str:
    change = row.robust_change if kind == "robust" else row.clean_change
    return f"{change.estimate:+.1f} points of {kind} accuracy [{change.low:+.1f}, {change.high:+.1f}]"


def _alternatives(near: Sequence[MeasuredPoint], question: Question, gain: float) -> Iterator[str]:
    """What more passes, a larger loss, or both, would buy beyond `gain` points of robust accuracy."""
    for affords, keeps in ((False, True), (True, False), (False, False)):
        found = _best([r for r in near if (question.affords(r), question.keeps(r)) == (affords, keeps)])
        if found is None or found.robust_change.estimate < gain + _WORTH_TELLING:
            continue
        gain = found.robust_change.estimate
        price = [] if affords else [f"{found.passes:.3g}x the passes"]
        price += [] if keeps else [f"{-found.clean_change.estimate:.1f} points of clean accuracy"]
        yield f"For {' and '.join(price)}, {found.method} would buy {gain:+.1f} points of robust accuracy."


def _warnings(chosen: MeasuredPoint, near: Sequence[MeasuredPoint], question: Question) -> Iterator[str]:
    if chosen.family != STANDARD and chosen.clean_change.low < -question.max_clean_loss:
        yield "The loss of clean accuracy may be larger than accepted: its interval reaches further."
    if chosen.family != STANDARD and len(chosen.models) == 1:
        yield "It was measured with one seed: the intervals know nothing of another seed, which moves a gain by points."
    yield from _tuning_warnings(chosen.family, near)
    if chosen.family != "SAM":
        yield from _tuning_warnings("SAM", near)
    yield (
        "These are small networks in short runs: take it as a place to start. Train plain training beside it, and "
        "measure both under AutoAttack."
    )


def _tuning_warnings(family: str, near: Sequence[MeasuredPoint]) -> Iterator[str]:
    """Where a greater strength of a family costs clean accuracy, or buys no robust accuracy.

    Strengths may have been measured on different images. So changes from plain training on the same images count.
    """
    curve = sorted((row for row in near if row.family == family and row.strength), key=lambda row: row.strength or 0)
    if len(curve) < 2:
        return
    strengths = " to ".join(row.method.removeprefix(f"{family} ") for row in (curve[0], curve[-1]))
    clean = [row.clean_change.estimate for row in curve]
    if all(later < earlier for earlier, later in pairwise(clean)):
        yield (
            f"{family}: clean accuracy less that of plain training falls from {clean[0]:+.1f} to {clean[-1]:+.1f} "
            f"points from {strengths}. Raise the strength in small steps and stop at the first that costs too much."
        )
    robust = [row.robust_change.estimate for row in curve]
    for place, row in enumerate(curve[:-1]):
        best = max(robust[place + 1 :])
        if best - robust[place] < _PLATEAU:
            yield (
                f"{family}: robust accuracy is on a plateau from {row.method.removeprefix(f'{family} ')} on, "
                f"{robust[place]:+.1f} points against plain training there and at most {best:+.1f} beyond. A greater "
                "strength buys nothing at this radius."
            )
            return
