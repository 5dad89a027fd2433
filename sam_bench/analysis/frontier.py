"""Frontier: what each method buys at which clean accuracy and cost, and which rho corresponds to which eps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sam_bench.analysis.base import ANALYSES, Json, NamedRecord, RecordAnalysis
from sam_bench.analysis.comparisons import about, comparisons
from sam_bench.analysis.families import STANDARD, Setting, Strength, strength, told_apart
from sam_bench.analysis.frontier_figure import draw_frontier
from sam_bench.analysis.statistics import (
    Bootstrap,
    Floats,
    Interval,
    NotComparable,
    Scores,
    Verdicts,
    interval_of,
    matched_difference,
)
from sam_bench.errors import InputError
from sam_bench.leaderboard.convergence import run_of
from sam_bench.records import MISCLASSIFIED, ROBUST, ModelCard
from sam_bench.training.differences import first_difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BOOTSTRAP = Bootstrap()


@dataclass(frozen=True, eq=False)
class _Point:
    """The models of one family and strength, one a seed."""

    strength: Strength
    setting: Setting
    models: tuple[str, ...]
    passes: float
    verdicts: Verdicts

    @property
    def clean(self) -> float:
        return float(self.verdicts.clean.mean())

    @property
    def robust(self) -> float:
        (scores,) = self.verdicts.robust.values()
        return float(scores.mean())


@ANALYSES.register("frontier")
class Frontier(RecordAnalysis):
    """Clean against robust accuracy at each radius, a curve a family of methods.

    A family is a method at several strengths: SAM at several rho, adversarial training at several eps. Its curve
    starts at plain training. Families are compared at equal clean accuracy, by interpolation along the curve.
    """

    summary = "clean against robust accuracy and cost, a curve a method; which rho corresponds to which eps"

    def combine(
        self, records: list[NamedRecord], labels: Mapping[int, Tensor] | None, classes: tuple[str, ...]
    ) -> Json:
        """Points, fronts, gaps and corresponding strengths of each attack and radius."""
        unknown = [each.path for each in records if each.card is None]
        if unknown:
            raise InputError(
                f"{unknown[0]} is of a model without a card here, so its method and cost are not known",
                hint="give its `zoo`",
            )
        found = [_compared(each) for each in comparisons(records)]
        return {"comparisons": found, "recalled_rule": _recalled_rule(found)}

    def draw(self, measured: Json, findings: Json, figure: Figure) -> None:
        """A panel for each attack and radius, and one for rho against eps."""
        draw_frontier(findings, figure)

    def lines(self, measured: Json, findings: Json) -> list[str]:
        """For each attack and radius: the front, the gaps and the corresponding strengths."""
        said = []
        for each in findings["comparisons"]:
            said.append(f"{each['title']}, {each['n_examples']:,} images")
            front = [_label(point) for point in each["points"] if point["front"]]
            said.append(f"  nothing has more of both accuracies than: {', '.join(front)}")
            said += [f"  {_sentence(*both)}" for both in zip(each["gaps"], each["corresponding"], strict=True)]
        rule = findings["recalled_rule"]
        if rule:
            said.append(f"recalled rule, eps = eta 2 rho² / (2 rho² + 3): eta = {255 * rule['eta']:.1f}/255 fits best")
        return said


def _compared(records: Sequence[NamedRecord]) -> Json:
    points = _points(records)
    front = _undominated([(point.clean, point.robust) for point in points])
    at_cost = _undominated([(point.clean, point.robust, -point.passes) for point in points])
    names = told_apart([point.setting for point in points])
    pairs = list(_pairs(points))
    return {
        **about(records),
        "points": [
            {
                "family": point.strength.family + names[point.setting],
                "strength": point.strength.text,
                "value": point.strength.value,
                "models": list(point.models),
                "seeds": list(point.verdicts.seeds),
                "passes": point.passes,
                "clean": point.clean,
                "robust": point.robust,
                "front": on_front,
                "front_at_cost": on_front_at_cost,
            }
            for point, on_front, on_front_at_cost in zip(points, front, at_cost, strict=True)
        ],
        "gaps": [{**_names(point, curve, names), **_gap(point, curve)} for point, curve in pairs],
        "corresponding": [{**_names(point, curve, names), **_corresponding(point, curve)} for point, curve in pairs],
    }


def _points(records: Sequence[NamedRecord]) -> list[_Point]:
    """The models by family and strength, the weakest of a family first."""
    groups: dict[tuple[Strength, Setting], dict[int, NamedRecord]] = {}
    for named in records:
        assert named.card is not None
        of_point = groups.setdefault((strength(named.card.recipe), Setting.of(named.card)), {})
        for there in of_point.values():
            assert there.card is not None
            _check_seeds(there.card, named.card)
        of_point[named.card.seed] = named
    points = [_point(*key, members) for key, members in groups.items()]
    return sorted(points, key=lambda point: (point.strength.family, point.setting.epochs, point.strength.value or 0))


def _check_seeds(card: ModelCard, other: ModelCard) -> None:
    """Refuse two models of one method and strength unless they are one training with two seeds."""
    same = f"{card.name} and {other.name} are of one method"
    if card.seed == other.seed:
        raise InputError(f"{same}, strength and seed, so they would be one point; give the records of one of them")
    difference = first_difference(run_of(card), run_of(other))
    if difference is not None:
        raise InputError(
            f"{same} and strength, but not two seeds of one training: {difference.field} is {difference.before} and "
            f"{difference.now}; give the records of one of them"
        )


def _point(at: Strength, setting: Setting, members: dict[int, NamedRecord]) -> _Point:
    verdicts = [np.array(each.record.verdicts) for each in members.values()]
    cards = [each.card for each in members.values() if each.card is not None]
    eps = next(iter(members.values())).record.eps_float
    return _Point(
        strength=at,
        setting=setting,
        models=tuple(card.name for card in cards),
        passes=sum(card.cost.passes for card in cards) / len(cards),
        verdicts=Verdicts(
            seeds=tuple(members),
            clean=np.stack([line != MISCLASSIFIED for line in verdicts]),
            robust={eps: np.stack([line == ROBUST for line in verdicts])},
        ),
    )


def _undominated(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Of which points no other is at least as good in everything and better in something."""
    return [
        not any(
            other != point and all(theirs >= own for theirs, own in zip(other, point, strict=True)) for other in points
        )
        for point in points
    ]


def _pairs(points: Sequence[_Point]) -> Iterator[tuple[_Point, list[_Point]]]:
    """Each point of a method of the weights with each curve of adversarial training, in one setting.

    A curve has plain training and at least two strengths.
    """
    for setting in {point.setting: None for point in points}:
        own = [point for point in points if point.setting == setting]
        start = [point for point in own if point.strength.family == STANDARD]
        curves = [
            [*start, *(point for point in own if point.strength.family == family and point.strength.value)]
            for family in sorted({point.strength.family for point in own if point.strength.text.startswith("eps")})
        ]
        for point in own:
            if point.strength.text.startswith("rho") and point.strength.value:
                yield from ((point, curve) for curve in curves if start and len(curve) > 2)


def _names(point: _Point, curve: Sequence[_Point], names: dict[Setting, str]) -> Json:
    added = names[point.setting]
    return {
        "family": point.strength.family + added,
        "strength": point.strength.text,
        "value": point.strength.value,
        "other": curve[1].strength.family + added,
    }


def _gap(point: _Point, curve: Sequence[_Point]) -> Json:
    """The robust accuracy of the point less that of the curve where it is as accurate on clean images, in points."""
    (eps,) = point.verdicts.robust
    return _json(matched_difference(point.verdicts, [each.verdicts for each in curve], eps, _BOOTSTRAP))


def _corresponding(point: _Point, curve: Sequence[_Point]) -> Json:
    """The eps at which the curve is as robust as the point, with its interval."""
    (radius,) = point.verdicts.robust
    values = np.array([each.strength.value for each in curve], dtype=np.float64)
    scores: list[Scores] = [each.verdicts.at(radius) for each in (point, *curve)]
    observed = np.array([each.values.mean() for each in scores])[:, None]
    if observed[0] < observed[1]:
        return {"reason": "it is less robust than plain training"}
    # The strength lies between two points of the curve. How many seeds the others have does not matter.
    left = int(_segment(observed[0], observed[1:])[0][0])
    found = interval_of(
        lambda means: strength_of(means[0], means[1:], values),
        scores,
        _BOOTSTRAP,
        missing="no strength of the curve is as robust, or plain training is the most robust of it",
        fewest=min(len(each.verdicts.seeds) for each in (point, *curve[left : left + 2])),
    )
    if isinstance(found, Interval):
        found = Interval(found.estimate, max(0.0, found.low), found.high)
    return _json(found)


def strength_of(target: Floats, robust: Floats, values: Floats) -> Floats:
    """The strength at which a curve first is as robust as a target, linear between its points.

    Below the curve's first point the first segment is continued, if it rises. A draw of the bootstrap may lie there,
    and would else be lost, which would make the interval too short.

    Args:
        target: Robust accuracies, [draws].
        robust: Of the points of the curve in order of strength, [points, draws].
        values: Their strengths, [points].

    Returns:
        float [draws]; NaN where the curve is nowhere so robust.
    """
    at, there = _segment(target, robust)
    columns = np.arange(len(target))
    start, length = robust[at, columns], robust[at + 1, columns] - robust[at, columns]
    share = np.divide(target - start, length, out=np.zeros_like(length), where=length != 0)
    found: Floats = np.where(there, values[at] + share * (values[at + 1] - values[at]), np.nan)
    return found


def _segment(target: Floats, robust: Floats) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Between which points a curve first is as robust as a target: index of the left one, and whether it ever is."""
    left, right = robust[:-1], robust[1:]
    inside = (left <= target) & (target <= right)
    inside[0] |= (target < left[0]) & (left[0] < right[0])
    return inside.argmax(axis=0), np.asarray(inside.any(axis=0))


def _json(found: Interval | NotComparable) -> Json:
    if isinstance(found, NotComparable):
        return {"reason": found.reason}
    return {"estimate": found.estimate, "low": found.low, "high": found.high}


def _recalled_rule(compared: Sequence[Json]) -> Json | None:
    """The eta that brings the matching rule of the literature nearest to what was measured of SAM.

    The rule is recalled from Wei et al. 2023 (arXiv 2305.05392) as 2 + 3 / rho² = 2 eta / eps. We could not derive
    it. Its eta is the size of the features of a model of the data, which no data set tells, so it is fitted.
    """
    measured = [
        (float(found["value"]), float(found["estimate"]))
        for each in compared
        if each["norm"] == "Linf"
        for found in each["corresponding"]
        if found["family"] == "SAM" and found["other"] == "AT" and "estimate" in found
    ]
    if not measured:
        return None
    rho, eps = np.array(measured).T
    shape = recalled_shape(rho)
    return {"eta": float((shape * eps).sum() / (shape**2).sum()), "points": len(measured)}


def recalled_shape(rho: Any) -> Any:
    """Eps over eta by the recalled rule."""
    return 2 * rho**2 / (2 * rho**2 + 3)


def _label(point: Json) -> str:
    return f"{point['family']} {point['strength']}".strip()


def _sentence(gap: Json, found: Json) -> str:
    """What a point's gap to a curve is, and which strength of the curve it corresponds to."""
    start = f"{_label(gap)}: at the same clean accuracy"
    if "reason" in gap:
        start += f" not compared with {gap['other']} ({gap['reason']})"
    else:
        start += f" {gap['estimate']:+.1f} points [{gap['low']:+.1f}, {gap['high']:+.1f}] against {gap['other']}"
    if "reason" in found:
        return f"{start}; as robust as {found['other']} at no eps ({found['reason']})"
    estimate, low, high = (255 * found[key] for key in ("estimate", "low", "high"))
    return f"{start}; as robust as {found['other']} at eps {estimate:.2f}/255 [{low:.2f}, {high:.2f}]"
