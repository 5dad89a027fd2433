"""Overlap, against counts that are known and against the committed records."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records_of_verdicts import named

import sam_bench
from sam_bench.analysis.overlap import Overlap
from sam_bench.errors import InputError

ROOT = Path(__file__).parents[2]


def compare(*records: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = Overlap().combine(list(records), None, ())["comparisons"]
    return found


def test_a_pair_is_counted_image_by_image() -> None:
    (found,) = compare(named("a", "RRRRR-M-MM"), named("b", "RRRM-RR-MM"))
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"]) == ("a", "b")
    assert (pair["both"], pair["only_a"], pair["only_b"], pair["neither"]) == (3, 2, 2, 3)
    assert (pair["only_a_wrong_clean"], pair["only_b_wrong_clean"]) == (1, 1)
    assert pair["difference"] == 0
    assert pair["jaccard"] == pytest.approx(3 / 7)
    assert (found["held_by_all"], found["held_by_none"], found["holds"]) == (3, 3, [5, 5])


def test_the_standard_error_is_that_of_the_mean_of_differences_between_images() -> None:
    rng = np.random.default_rng(0)
    a, b = ("".join(rng.choice(["R", "-"], 200, p=p)) for p in ((0.7, 0.3), (0.5, 0.5)))
    ((pair,),) = (each["pairs"] for each in compare(named("a", a), named("b", b)))
    each = 100.0 * np.array([(x == "R") - (y == "R") for x, y in zip(a, b, strict=True)], dtype=float)
    assert pair["difference"] == pytest.approx(each.mean())
    assert pair["standard_error"] == pytest.approx(each.std() / np.sqrt(len(each)))


def test_only_the_same_attack_radius_and_images_are_compared() -> None:
    one, other = named("a", "RR-"), named("b", "R--")
    elsewhere = [
        named("b", "R--", eps="2/255"),
        named("b", "R--", norm="L2"),
        named("b", "R--", settings={"steps": 20}),
        named("b", "R---"),
    ]
    for each in elsewhere:
        with pytest.raises(InputError, match="no two of the records are of the same attack"):
            compare(one, each)
    (found,) = compare(one, *elsewhere, other)
    assert found["models"] == ["a", "b"]


def test_another_packages_attack_is_compared_with_the_same_settings_only() -> None:
    attack = "torchattacks:PGD"
    one, other = ({"attack": attack, "settings": {"steps": 10, "alpha": alpha}} for alpha in (0.01, 0.0001))
    with pytest.raises(InputError, match="no two of the records are of the same attack"):
        compare(named("a", "RR-", **one), named("b", "R--", **other))
    (found,) = compare(named("a", "RR-", **one), named("a", "RR-", **other), named("b", "R--", **one))
    assert found["models"] == ["a", "b"]


def test_the_same_radius_written_otherwise_is_the_same() -> None:
    (found,) = compare(named("a", "RR-"), named("b", "R--", eps="0.00392156862745098"))
    assert found["models"] == ["a", "b"]


def test_two_records_of_one_model_are_refused() -> None:
    with pytest.raises(InputError, match="both of a under one attack"):
        compare(named("a", "RR-"), named("a", "R--"))


def test_the_committed_records_say_what_the_documentation_says(tmp_path: Path) -> None:
    records = sorted((ROOT / "leaderboards/cifar10-jpeg/Linf/records").glob("*pgd-10*.json"))
    found = sam_bench.analyze("overlap", list(map(str, records)), zoo=ROOT / "model_zoo", output=tmp_path)
    at_1, at_2 = found.findings["comparisons"]
    pairs = {(pair["a"].split("-")[0], pair["b"].split("-")[0]): pair for pair in at_1["pairs"]}
    assert (pairs["at", "sam"]["only_a"], pairs["at", "sam"]["only_b"]) == (1727, 201)
    sam = pairs["sam", "standard"]
    assert f"{sam['difference']:.2f} {sam['standard_error']:.2f}" == "3.97 0.37"
    (sam,) = [pair for pair in at_2["pairs"] if pair["a"].startswith("sam")]
    assert f"{sam['difference']:.2f} {sam['standard_error']:.2f}" == "5.90 0.34"
    assert all(path.stat().st_size > 1000 for path in found.figures)


def test_many_models_are_drawn_too() -> None:
    from sam_bench.analysis.figures import rendered

    lines = ["".join(each) for each in itertools.islice(itertools.product("R-", repeat=4), 12)]
    findings = Overlap().combine([named(f"m{number}", line) for number, line in enumerate(lines)], None, ())
    assert len(findings["comparisons"][0]["pairs"]) == 66
    assert rendered(lambda figure: Overlap().draw({}, findings, figure))["png"].startswith(b"\x89PNG")
    assert Overlap().lines({}, findings)[-1] == "  … and 54 pairs more, in the numbers"
