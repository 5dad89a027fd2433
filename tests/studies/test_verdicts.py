"""Verdicts on claims: every rule on either side of its threshold, and what becomes of what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

import sam_bench.studies
from sam_bench.analysis.statistics import (
    Bootstrap,
    Interval,
    Scores,
    Verdicts,
    matched_difference,
    median_difference,
    paired_difference,
)
from sam_bench.errors import InputError
from sam_bench.records import Radius
from sam_bench.studies.claims import Claim, Comparison, Equal, Family, More, NoLess, Part, Passes
from sam_bench.studies.verdicts import Decision, decide

FEW = Bootstrap(draws=100)
IMAGES = 400

SIDES: dict[str, Any] = {"a": "sam", "b": "standard", "of": "clean"}
MORE = More(rule="more", least=1, **SIDES)
NO_LESS = NoLess(rule="no-less", margin=1, **SIDES)
EQUAL = Equal(rule="equal", margin=1, **SIDES)


@pytest.mark.parametrize(
    ("rule", "low", "high", "verdict"),
    [
        (MORE, 1.01, 5, "supported"),
        (MORE, 1, 5, "inconclusive"),
        (MORE, -1, 1, "inconclusive"),
        (MORE, -1, 0.99, "not supported"),
        (NO_LESS, -0.99, 5, "supported"),
        (NO_LESS, -1, 5, "inconclusive"),
        (NO_LESS, -3, -1, "inconclusive"),
        (NO_LESS, -3, -1.01, "not supported"),
        (EQUAL, -1, 1, "supported"),
        (EQUAL, -0.5, 0.5, "supported"),
        (EQUAL, -1.01, 0.5, "inconclusive"),
        (EQUAL, -0.5, 1.01, "inconclusive"),
        (EQUAL, -2, 2, "inconclusive"),
        (EQUAL, 1, 2, "inconclusive"),
        (EQUAL, -2, -1, "inconclusive"),
        (EQUAL, 1.01, 2, "not supported"),
        (EQUAL, -2, -1.01, "not supported"),
    ],
)
def test_each_rule_on_either_side_of_its_threshold(rule: Comparison, low: float, high: float, verdict: str) -> None:
    assert rule.judge(Interval((low + high) / 2, low, high)) == verdict


class Measured:
    """Rows whose images are right up to a share, alike for all seeds: intervals come from images alone.

    Args:
        rows: Row to its accuracy on clean images and at each radius.
        seeds: Row to its number of seeds, if not 3.
    """

    def __init__(self, rows: Mapping[str, Mapping[Any, float]], **seeds: int) -> None:
        self.rows, self.seeds = rows, seeds
        self.ratios = {"standard": 10.0, "sam": 20.0, "at": 110.0}

    def _values(self, row: str, share: float) -> np.ndarray:
        return np.repeat(np.arange(IMAGES)[None] < share * IMAGES, self.seeds.get(row, 3), 0)

    def measured(self, row: str, of: str) -> Verdicts | Scores | None:
        if row not in self.rows or of == "unmeasured":
            return None
        names = tuple(range(self.seeds.get(row, 3)))
        if of == "distance":
            return Scores(names, self._values(row, 1) * np.arange(IMAGES)[None] * self.rows[row]["distance"])
        shares = {key: self._values(row, share) for key, share in self.rows[row].items()}
        return Verdicts(names, shares["clean"], {key: value for key, value in shares.items() if key != "clean"})

    def passes(self, row: str) -> Mapping[int, float] | None:
        if row not in self.ratios:
            return None
        return dict.fromkeys(range(self.seeds.get(row, 3)), self.ratios[row])

    def family(self, name: str) -> Sequence[str]:
        return ["standard", "weak", "strong"] if name == "at" else ["standard"]


ONE, TWO = Radius("1/255"), Radius("2/255")


def measured(at_one: float, at_two: float, **seeds: int) -> Measured:
    """SAM as given at two radii, at 80 % clean; standard 85, 50, 30; the curve at 80 % clean: 60, 40."""
    return Measured(
        {
            "standard": {"clean": 0.85, ONE: 0.5, TWO: 0.3, "distance": 1.0},
            "weak": {"clean": 0.75, ONE: 0.7, TWO: 0.5},
            "strong": {"clean": 0.6, ONE: 0.6, TWO: 0.55},
            "sam": {"clean": 0.8, ONE: at_one, TWO: at_two, "distance": 1.2},
        },
        **seeds,
    )


def claim(*parts: dict[str, Any]) -> Claim:
    return Claim.model_validate({"text": "A claim.", "parts": parts})


def more(**given: Any) -> dict[str, Any]:
    return {"rule": "more", "a": "sam", "b": "standard", "of": "pgd", "eps": ["1/255", "2/255"], "least": 0, **given}


HIGH, EVEN, LOW = 0.2, 0.0, -0.2  # supported, inconclusive, not supported


@pytest.mark.parametrize("gains", list(product([HIGH, EVEN, LOW], repeat=2)))
@pytest.mark.parametrize("where", ["all", "any"])
def test_radii_are_joined_by_all_or_any(gains: tuple[float, float], where: str) -> None:
    decision = decide(claim(more(where=where)), measured(0.5 + gains[0], 0.3 + gains[1]), FEW)
    first, last = (HIGH, LOW) if where == "any" else (LOW, HIGH)  # one decides, or all must agree
    expected = {HIGH: "supported", LOW: "not supported"}
    verdict = expected[first] if first in gains else expected[last] if gains == (last, last) else "inconclusive"
    assert decision.verdict == verdict
    assert [point.verdict for point in decision.parts[0].points] == [
        {HIGH: "supported", EVEN: "inconclusive", LOW: "not supported"}[gain] for gain in gains
    ]
    assert f"at {where} of the radii: {verdict}" in decision.sentence


@pytest.mark.parametrize("gains", list(product([HIGH, EVEN, LOW], repeat=2)))
def test_parts_are_joined_as_all(gains: tuple[float, float]) -> None:
    parts = more(eps=["1/255"]), more(eps=["2/255"])
    decision = decide(claim(*parts), measured(0.5 + gains[0], 0.3 + gains[1]), FEW)
    expected = "not supported" if LOW in gains else "inconclusive" if EVEN in gains else "supported"
    assert decision.verdict == expected
    # The sentence is that of the parts which made the verdict.
    assert all((part.sentence in decision.sentence) == (part.verdict == expected) for part in decision.parts)


def test_several_tries_at_any_radius_share_the_error() -> None:
    rows = measured(0.52, 0.31)
    for where, level in (("all", 0.95), ("any", 0.975)):
        (part,) = decide(claim(more(where=where)), rows, FEW).parts
        a, b = rows.measured("sam", "pgd"), rows.measured("standard", "pgd")
        assert isinstance(a, Verdicts) and isinstance(b, Verdicts)
        expected = paired_difference(a.at(ONE), b.at(ONE), Bootstrap(draws=100, level=level))
        assert part.points[0].interval == expected and f"The {100 * level:g} % interval" in part.sentence


def test_a_difference_of_clean_accuracies() -> None:
    for margin, verdict in ((10, "supported"), (5, "inconclusive"), (0.5, "not supported")):
        part = {"rule": "no-less", "a": "sam", "b": "standard", "of": "clean", "margin": margin}
        decision = decide(claim(part), measured(0.5, 0.3), FEW)
        assert decision.verdict == verdict and "sam less standard, in clean: -5.00 points (" in decision.sentence


def test_a_difference_of_distances_is_that_of_medians() -> None:
    part = more(of="distance", eps=[])
    rows = measured(0.5, 0.3)
    decision = decide(claim(part), rows, FEW)
    a, b = rows.measured("sam", "distance"), rows.measured("standard", "distance")
    assert isinstance(a, Scores) and isinstance(b, Scores)
    assert decision.verdict == "supported" and "levels of 255 (" in decision.sentence
    assert decision.parts[0].points[0].interval == median_difference(a, b, FEW)


@pytest.mark.parametrize(("robust", "verdict"), [(0.6, "supported"), (0.62, "inconclusive"), (0.75, "not supported")])
def test_a_family_is_met_on_its_curve(robust: float, verdict: str) -> None:
    part = {"rule": "equal", "a": "sam", "b": {"family": "at"}, "of": "pgd", "eps": ["1/255"], "margin": 4}
    rows = measured(robust, 0.3)
    decision = decide(claim(part), rows, FEW)
    assert decision.verdict == verdict
    found = [rows.measured(row, "pgd") for row in ("sam", *rows.family("at"))]
    verdicts = [each for each in found if isinstance(each, Verdicts)]
    interval = matched_difference(verdicts[0], verdicts[1:], ONE, FEW)
    assert isinstance(interval, Interval) and interval.estimate == pytest.approx(100 * robust - 60)
    assert decision.parts[0].points[0].interval == interval


@pytest.mark.parametrize(("ratio", "verdict"), [(2, "supported"), (2.001, "not supported"), (11, "not supported")])
def test_passes_are_counted(ratio: float, verdict: str) -> None:
    part = {"rule": "passes", "a": "sam", "b": "standard", "ratio": ratio}
    decision = decide(claim(part), measured(0.5, 0.3), FEW)
    assert decision.verdict == verdict
    assert f"Passes of sam over those of standard: 2. It must be {ratio:g}" in decision.sentence


def test_a_rule_that_any_method_meets_says_so() -> None:
    rows = Measured({name: {**each, TWO: 0.0} for name, each in measured(0.5, 0.3).rows.items()})
    part = {"rule": "no-less", "a": "sam", "b": {"family": "at"}, "of": "pgd", "eps": ["1/255", "2/255"], "margin": 1}
    (found,) = decide(claim({**part, "where": "any"}), rows, FEW).parts
    assert [point.verdict for point in found.points] == ["not supported", "supported"]
    assert ["any method meets the rule" in point.sentence for point in found.points] == [False, True]
    ahead = decide(claim({**part, "margin": 25}), measured(0.6, 0.4), FEW).parts[0]
    assert ahead.verdict == "supported" and "any method" not in ahead.sentence


CURVE = {"rule": "equal", "a": "sam", "b": {"family": "at"}, "of": "pgd", "eps": ["1/255"], "margin": 4}
PASSES = {"rule": "passes", "a": "sam", "b": "standard", "ratio": 2}


@pytest.mark.parametrize(
    ("part", "rows", "reason"),
    [
        (more(), measured(0.7, 0.5, sam=1), "sam has 1 of the 2 seeds"),
        (more(), measured(0.7, 0.5, standard=1), "standard has 1 of the 2 seeds"),
        (PASSES, measured(0.7, 0.5, sam=1), "sam has 1 of the 2 seeds"),
        (CURVE, measured(0.7, 0.5, strong=1), "strong has 1 of the 2 seeds"),
        (more(of="unmeasured"), measured(0.7, 0.5), "sam is not measured at 1/255"),
        (more(of="unmeasured", eps=[]), measured(0.7, 0.5), "sam is not measured"),
        (more(b="other"), measured(0.7, 0.5), "other is not measured"),
        (more(eps=["1/255", "4/255"]), measured(0.7, 0.5), "sam is not measured at 4/255"),
        ({**PASSES, "a": "other"}, measured(0.7, 0.5), "other is not trained"),
        ({**CURVE, "b": {"family": "lone"}}, measured(0.7, 0.5), "fewer than two rows"),
        ({**CURVE, "a": "high"}, Measured({**measured(0, 0).rows, "high": {"clean": 0.99, ONE: 0.1}}), "outside"),
    ],
)
def test_what_cannot_be_answered_leaves_the_whole_claim_inconclusive(
    part: dict[str, Any], rows: Measured, reason: str
) -> None:
    # The other part would decide it.
    other = {"rule": "passes", "a": "at", "b": "at", "ratio": 5}
    decision = decide(claim(other, part), rows, FEW)
    assert decision.parts[0].verdict == "not supported"
    assert decision.verdict == decision.parts[1].verdict == "inconclusive"
    assert reason in decision.sentence and decision.sentence.startswith("Inconclusive. ")


def test_seeds_must_be_common_to_both_rows() -> None:
    class Apart(Measured):
        def measured(self, row: str, of: str) -> Verdicts | Scores | None:
            found = super().measured(row, of)
            assert isinstance(found, Verdicts)
            return Verdicts(tuple(seed + 2 * (row == "sam") for seed in found.seeds), found.clean, found.robust)

    decision = decide(claim(more()), Apart(measured(0.7, 0.5).rows), FEW)
    assert decision.verdict == "inconclusive" and "sam with standard has 1 of the 2 seeds" in decision.sentence


@pytest.mark.parametrize(
    ("part", "match"),
    [
        (more(eps=[]), "names no radius"),
        ({**CURVE, "of": "distance"}, "no curve"),
    ],
)
def test_a_claim_that_does_not_fit_its_evaluation_is_refused(part: dict[str, Any], match: str) -> None:
    rows = Measured({name: {"clean": 0.5, "distance": 1.0} for name in ("sam", "standard", "weak", "strong")})
    with pytest.raises(InputError, match=match):
        decide(claim(part), rows, FEW)


@pytest.mark.parametrize(
    "part",
    [
        more(rule="most"),
        more(margin=1),
        more(where="most"),
        more(of="clean"),
        more(b={"family": "at"}, eps=[]),
        {**PASSES, "ratio": 0},
        {**CURVE, "margin": 0},
    ],
)
def test_what_a_plan_cannot_say_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        claim(part)


def test_the_committed_plan_is_understood() -> None:
    plan = yaml.safe_load((Path(sam_bench.studies.__path__[0]) / "wei2023.yaml").read_text())
    claims = TypeAdapter(dict[str, Claim]).validate_python(plan["claims"])
    assert list(claims) == list(plan["claims"])
    for each in claims.values():
        for part in each.parts:
            assert {part.a} | ({part.b} if isinstance(part.b, str) else set()) <= plan["rows"].keys()
            if not isinstance(part, Passes):
                assert part.of == "clean" or part.of in plan["evaluations"]
                assert set(part.eps) <= {Radius(eps) for eps in plan["evaluations"].get(part.of, {}).get("eps", [])}
    last: Part = claims["E"].parts[0]
    assert isinstance(last, NoLess) and last.b == Family(family="n-fgsm") and last.where == "any"


def test_a_decision_keeps_its_claim_and_parts() -> None:
    asked = claim(more(), more(least=5))
    decision = decide(asked, measured(0.7, 0.5), FEW)
    assert isinstance(decision, Decision) and decision.claim is asked
    assert [part.part for part in decision.parts] == list(asked.parts)
