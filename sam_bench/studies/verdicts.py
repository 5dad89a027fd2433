"""From a claim and what was measured to a verdict, with a sentence that gives the numbers and the rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sam_bench.analysis.statistics import (
    Bootstrap,
    Interval,
    NotComparable,
    Scores,
    Verdicts,
    matched_difference,
    median_difference,
    paired_difference,
)
from sam_bench.errors import InputError
from sam_bench.records import Radius
from sam_bench.studies.claims import CLEAN, Claim, Comparison, Family, NoLess, Part, Passes, Verdict

FEWEST_SEEDS = 2
"""A claim is inconclusive if a row of it has fewer."""

_SAME = 1e-6  # ratios of passes that differ by less, relatively, are equal


class Measurements(Protocol):
    """What was measured, by the names of the plan."""

    def measured(self, row: str, of: str) -> Verdicts | Scores | None:
        """What a row got under an evaluation.

        Args:
            row: Its name.
            of: The evaluation's name, or `clean`.

        Returns:
            Verdicts of an attack or of clean images; Scores for distances, in levels of 255; None if not measured.
        """

    def passes(self, row: str) -> Mapping[int, float] | None:
        """For each seed of a row the passes of its training; None if not trained."""

    def family(self, name: str) -> Sequence[str]:
        """The family's rows in order of strength, `standard` first."""


@dataclass(frozen=True)
class Point:
    """A comparison at one radius.

    Attributes:
        eps: The radius; None for clean accuracy and for distances.
        interval: Of the difference; None if the sides cannot be compared.
        verdict: What the rule says.
        sentence: The numbers.
    """

    eps: Radius | None
    interval: Interval | None
    verdict: Verdict
    sentence: str


@dataclass(frozen=True)
class PartDecision:
    """What one part of a claim comes to.

    Attributes:
        part: The part.
        verdict: Over its radii.
        sentence: The rule and the numbers.
        points: One for each radius; none for a ratio of passes, and if nothing could be compared.
        answered: Whether the part could be looked at. If not, the whole claim is inconclusive.
    """

    part: Part
    verdict: Verdict
    sentence: str
    points: tuple[Point, ...] = ()
    answered: bool = True


@dataclass(frozen=True)
class Decision:
    """What a claim comes to: the verdict, why, and its parts."""

    claim: Claim
    verdict: Verdict
    sentence: str
    parts: tuple[PartDecision, ...]


class _UnansweredError(Exception):
    """A part cannot be looked at; the message says why."""


def decide(claim: Claim, measurements: Measurements, bootstrap: Bootstrap) -> Decision:
    """The verdict on a claim.

    It is supported if all parts are, and not supported if one is not. Else it is inconclusive. It is inconclusive,
    too, if a part lacks a measurement or a second seed, or cannot be compared.

    Args:
        claim: From the plan.
        measurements: What was measured.
        bootstrap: How intervals are made.

    Raises:
        InputError: A part names an attack and no radius.
    """
    parts = tuple(_decide_part(part, measurements, bootstrap) for part in claim.parts)
    unanswered = [part for part in parts if not part.answered]
    verdict = "inconclusive" if unanswered else _of_all([part.verdict for part in parts])
    # The parts that made the verdict.
    deciding = unanswered or [part for part in parts if part.verdict == verdict]
    sentence = " ".join(part.sentence for part in deciding)
    return Decision(claim, verdict, f"{verdict.capitalize()}. {sentence}", parts)


def _of_all(verdicts: Sequence[Verdict]) -> Verdict:
    if "not supported" in verdicts:
        return "not supported"
    return "inconclusive" if "inconclusive" in verdicts else "supported"


def _of_any(verdicts: Sequence[Verdict]) -> Verdict:
    if "supported" in verdicts:
        return "supported"
    return "inconclusive" if "inconclusive" in verdicts else "not supported"


def _decide_part(part: Part, measurements: Measurements, bootstrap: Bootstrap) -> PartDecision:
    try:
        if isinstance(part, Passes):
            return _decide_passes(part, measurements)
        return _decide_comparison(part, measurements, bootstrap)
    except _UnansweredError as reason:
        return PartDecision(part, "inconclusive", f"{_subject(part)}: {reason}.", answered=False)


def _decide_passes(part: Passes, measurements: Measurements) -> PartDecision:
    passes = []
    for row in (part.a, part.b):
        found = measurements.passes(row)
        if found is None:
            raise _UnansweredError(f"{row} is not trained")
        _check_seeds(row, found)
        passes.append(found)
    common = sorted(passes[0].keys() & passes[1].keys())
    _check_seeds(f"{part.a} with {part.b}", common)
    ratios = [passes[0][seed] / passes[1][seed] for seed in common]
    same = all(math.isclose(ratio, part.ratio, rel_tol=_SAME) for ratio in ratios)
    shown = " and ".join(sorted({f"{ratio:g}" for ratio in ratios}))
    verdict: Verdict = "supported" if same else "not supported"
    sentence = f"{_subject(part)}: {shown}. It must be {part.ratio:g}: {verdict}."
    return PartDecision(part, verdict, sentence)


def _decide_comparison(part: Comparison, measurements: Measurements, bootstrap: Bootstrap) -> PartDecision:
    radii: Sequence[Radius | None] = part.eps or (None,)
    if part.where == "any":
        bootstrap = bootstrap.shared_over(len(radii))
    points = tuple(_point(part, eps, measurements, bootstrap) for eps in radii)
    verdicts = [point.verdict for point in points]
    verdict = _of_any(verdicts) if part.where == "any" else _of_all(verdicts)
    answered = all(point.interval for point in points)
    numbers = "; ".join(point.sentence for point in points)
    sentence = f"{_subject(part)}: {numbers}."
    if not answered:
        return PartDecision(part, "inconclusive", sentence, points, answered=False)
    where = f" at {part.where} of the radii" if len(radii) > 1 else ""
    asks = f"The {100 * bootstrap.level:g} % interval must {part.asks}{where}: {verdict}."
    return PartDecision(part, verdict, f"{sentence} {asks}", points)


def _point(part: Comparison, eps: Radius | None, measurements: Measurements, bootstrap: Bootstrap) -> Point:
    found = _difference(part, eps, measurements, bootstrap)
    at = "" if eps is None else f" at {eps}"
    if isinstance(found, NotComparable):
        return Point(eps, None, "inconclusive", f"no comparison{at}, because {found.reason}")
    unit = "levels of 255" if eps is None and part.of != CLEAN else "points"
    numbers = f"{found.estimate:+.2f} {unit} ({found.low:+.2f} to {found.high:+.2f}){at}"
    verdict = part.judge(found)
    if verdict == "supported" and _at_floor(part, eps, found, measurements):
        numbers += ", where any method meets the rule: the other side keeps no more than the margin"
    return Point(eps, found, verdict, numbers)


def _at_floor(part: Comparison, eps: Radius | None, found: Interval, measurements: Measurements) -> bool:
    """Whether the second side of a rule with a margin is so low that a side with no image right is within it."""
    if not isinstance(part, NoLess) or eps is None:
        return False
    first = _measured(part.a, part.of, eps, measurements)
    assert isinstance(first, Verdicts)
    return 100 * float(first.at(eps).values.mean()) - found.estimate <= part.margin


def _difference(
    part: Comparison, eps: Radius | None, measurements: Measurements, bootstrap: Bootstrap
) -> Interval | NotComparable:
    against = measurements.family(part.b.family) if isinstance(part.b, Family) else [part.b]
    found = [_measured(row, part.of, eps, measurements) for row in (part.a, *against)]
    verdicts = [each for each in found if isinstance(each, Verdicts)]
    distances = [each for each in found if isinstance(each, Scores)]
    if not isinstance(part.b, Family):
        _check_seeds(f"{part.a} with {part.b}", set(found[0].seeds) & set(found[1].seeds))
        if distances:
            return median_difference(distances[0], distances[1], bootstrap)
        return paired_difference(verdicts[0].at(eps), verdicts[1].at(eps), bootstrap)
    if distances or eps is None:
        raise InputError(f"{part.of} measures no accuracy, so a family has no curve in it; name a row")
    if len(against) < 2:
        raise _UnansweredError(f"the family {part.b.family} has fewer than two rows here")
    return matched_difference(verdicts[0], verdicts[1:], eps, bootstrap)


def _measured(row: str, of: str, eps: Radius | None, measurements: Measurements) -> Verdicts | Scores:
    found = measurements.measured(row, of)
    if found is None or (isinstance(found, Verdicts) and eps is not None and eps not in found.robust):
        raise _UnansweredError(f"{row} is not measured" + ("" if eps is None else f" at {eps}"))
    if isinstance(found, Verdicts) and eps is None and of != CLEAN:
        raise InputError(f"a claim about {of} names no radius; give `eps`")
    _check_seeds(row, found.seeds)
    return found


def _check_seeds(rows: str, seeds: Sequence[int] | set[int] | Mapping[int, float]) -> None:
    if len(seeds) < FEWEST_SEEDS:
        raise _UnansweredError(f"{rows} has {len(seeds)} of the {FEWEST_SEEDS} seeds that a claim needs")


def _subject(part: Part) -> str:
    """What is compared: `sam-02 less standard, in pgd-linf`."""
    if isinstance(part, Passes):
        return f"Passes of {part.a} over those of {part.b}"
    if isinstance(part.b, Family):
        return f"{part.a} less the curve of {part.b.family} at the same clean accuracy, in {part.of}"
    return f"{part.a} less {part.b}, in {part.of}"
