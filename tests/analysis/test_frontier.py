"""Frontier: planted curves, families of all recipes, committed records."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records_of_verdicts import card, named

import sam_bench
from sam_bench.analysis.families import strength
from sam_bench.analysis.figures import rendered
from sam_bench.analysis.frontier import Frontier, strength_of
from sam_bench.api import list_recipes, load_recipe
from sam_bench.errors import InputError
from sam_bench.records import ComponentSpec, Recipe

RESULTS = Path(__file__).parents[2] / "benchmarks/results/wei2023-tiny/results.tar.xz"
AT = {"method": "pgd", "norm": "Linf"}


def model(name: str, clean: int, robust: int, *, passes: float = 1, seed: int = 0, **parts: Any) -> Any:
    """A record over 200 images: the first `robust` held, those up to `clean` broken, the rest misclassified."""
    letters = "R" * robust + "-" * (clean - robust) + "M" * (200 - clean)
    recipe = {part: ComponentSpec(**settings) for part, settings in parts.items()}
    return named(name, letters, of=card(name, passes=passes, seed=seed, **recipe))


def planted(sam: tuple[int, int]) -> list[Any]:
    return [
        model("standard", 160, 80),
        model("at-1", 140, 100, passes=6, inputs={**AT, "eps": "1/255"}),
        model("at-2", 120, 120, passes=6, inputs={**AT, "eps": "2/255"}),
        model("sam", *sam, passes=2, weights={"method": "sam", "rho": 0.1}),
    ]


def combine(records: list[Any]) -> dict[str, Any]:
    return Frontier().combine(records, None, ())


def test_a_point_half_way_along_the_curve_corresponds_to_half_the_radius() -> None:
    (found,) = combine(planted((150, 90)))["comparisons"]
    (gap,), (same,) = found["gaps"], found["corresponding"]
    assert (gap["family"], gap["strength"], gap["other"]) == ("SAM", "rho 0.1", "AT")
    assert gap["estimate"] == pytest.approx(0, abs=1e-9)
    assert same["estimate"] == pytest.approx(0.5 / 255)
    assert 0 <= same["low"] < 0.5 / 255 < same["high"]


def test_the_gap_is_taken_at_the_same_clean_accuracy() -> None:
    (found,) = combine(planted((130, 100)))["comparisons"]
    assert found["gaps"][0]["estimate"] == pytest.approx(100 * (100 - 110) / 200)


def test_what_has_no_place_on_the_curve_says_why() -> None:
    (found,) = combine(planted((170, 70)))["comparisons"]
    assert "lies outside the curve" in found["gaps"][0]["reason"]
    assert found["corresponding"][0]["reason"] == "it is less robust than plain training"
    (found,) = combine(planted((160, 150)))["comparisons"]
    assert "no strength of the curve is as robust" in found["corresponding"][0]["reason"]
    assert all(line for line in Frontier().lines({}, {"comparisons": [found], "recalled_rule": None}))


def test_a_strength_is_read_where_the_curve_first_is_as_robust() -> None:
    robust = np.array([[0.4], [0.6], [0.5], [0.7]])
    values = np.array([0.0, 1.0, 2.0, 4.0])
    for target, expected in ((0.4, 0), (0.5, 0.5), (0.6, 1), (0.65, 3.5), (0.35, -0.25), (0.8, np.nan)):
        assert strength_of(np.array([target]), robust, values) == pytest.approx([expected], nan_ok=True)


def test_below_a_curve_that_falls_at_once_nothing_corresponds() -> None:
    found = strength_of(np.array([0.3]), np.array([[0.4], [0.35], [0.5]]), np.array([0.0, 1.0, 2.0]))
    assert np.isnan(found).all()


def test_the_fronts_are_what_nothing_dominates() -> None:
    records = [
        model("standard", 160, 80, passes=1),
        model("worse", 150, 70, passes=1, weights={"method": "noise", "rho": 0.1}),
        model("cheaper", 150, 90, passes=2, weights={"method": "sam", "rho": 0.1}),
        model("dearer", 150, 100, passes=6, inputs={**AT, "eps": "1/255"}),
    ]
    (found,) = combine(records)["comparisons"]
    names = {kind: {each["models"][0] for each in found["points"] if each[kind]} for kind in ("front", "front_at_cost")}
    assert names == {"front": {"standard", "dearer"}, "front_at_cost": {"standard", "cheaper", "dearer"}}


def test_seeds_of_one_strength_are_one_point() -> None:
    weights = {"method": "sam", "rho": 0.1}
    records = [model("a", 160, 80, weights=weights), model("b", 140, 100, seed=1, weights=weights)]
    (found,) = combine(records)["comparisons"]
    (point,) = found["points"]
    assert (point["seeds"], point["models"], point["clean"], point["robust"]) == ([0, 1], ["a", "b"], 0.75, 0.45)
    with pytest.raises(InputError, match="a and b are of one method, strength and seed"):
        combine([model("a", 160, 80), model("b", 150, 80)])


def test_seeds_of_a_point_that_does_not_matter_do_not_lengthen_the_interval() -> None:
    def models(seeds_of_the_strongest: int) -> list[Any]:
        found = []
        for seed in range(3):
            found += [
                model(f"standard-{seed}", 160, 80 + seed, seed=seed),
                model(f"at-1-{seed}", 140, 100 + seed, seed=seed, inputs={**AT, "eps": "1/255"}),
                model(f"sam-{seed}", 150, (90, 96, 86)[seed], seed=seed, weights={"method": "sam", "rho": 0.1}),
            ]
        far = range(seeds_of_the_strongest)
        return found + [model(f"at-8-{seed}", 130, 125, seed=seed, inputs={**AT, "eps": "8/255"}) for seed in far]

    first, second = (combine(models(seeds))["comparisons"][0]["corresponding"][0] for seeds in (3, 2))
    assert first == pytest.approx(second)


def test_two_trainings_of_one_strength_are_no_seeds_of_one_point() -> None:
    inputs = {**AT, "eps": "1/255"}
    ten, five = ({**inputs, "steps": steps} for steps in (10, 5))
    with pytest.raises(InputError, match=r"a and b .* not two seeds of one training: recipe.inputs.steps is 10 and 5"):
        combine([model("a", 160, 80, inputs=ten), model("b", 150, 80, seed=1, inputs=five)])


def test_a_record_without_a_card_is_refused() -> None:
    with pytest.raises(InputError, match="without a card"):
        combine([named("a", "RR")])


def test_another_number_of_epochs_is_another_family() -> None:
    records = planted((150, 90))
    longer = model("longer", 165, 85)
    longer = replace(longer, card=longer.card.model_copy(update={"epochs": 2}))
    (found,) = combine([*records, longer])["comparisons"]
    assert {each["family"] for each in found["points"]} == {"standard", "AT", "SAM", "standard (2 epochs)"}


def test_every_recipe_has_a_family_and_recipes_that_differ_only_in_strength_share_it() -> None:
    places = {each["name"]: strength(load_recipe(each["name"])) for each in list_recipes()}
    assert all(each.family for each in places.values())
    assert places["standard"].family == "standard"
    assert {places[name].family for name in ("at", "at-linf-1", "at-linf-2", "at-linf-4")} == {"AT"}
    assert {places[name].family for name in ("at-l2-16", "at-l2-32", "at-l2-64", "at-l2-128")} == {"AT L2"}
    assert {places[name].family for name in ("n-fgsm", "n-fgsm-05", "n-fgsm-1")} == {"N-FGSM"}
    assert (places["n-fgsm-05"].text, places["n-fgsm-05"].value) == ("eps 0.5/255", 0.5 / 255)
    assert places["sam"].family == "SAM" and places["sam"].text.startswith("rho ")
    assert places["sam-at"].family == "SAM rho=0.1 + AT" and places["sam-at"].text == "eps 8/255"
    assert (places["trades"].family, places["mart"].family, places["at-ema"].family) == ("TRADES", "MART", "AT + EMA")


def test_the_strength_of_another_packages_inputs_is_their_first_number() -> None:
    sam = ComponentSpec(method="sam", rho=0.1)
    recipes = [
        Recipe(
            name="her", summary="hers", inputs=ComponentSpec(method="uniform", clip=True, spread=spread), weights=sam
        )
        for spread in (0.02, 0.05)
    ]
    found = [strength(recipe) for recipe in recipes]
    assert [each.text for each in found] == ["spread 0.02", "spread 0.05"]
    assert {each.family for each in found} == {"SAM rho=0.1 + Uniform"}


def test_the_committed_records_give_the_numbers_of_the_documentation(tmp_path: Path) -> None:
    with tarfile.open(RESULTS) as archive:
        archive.extractall(tmp_path, filter="data")
    records = sorted(tmp_path.glob("evaluations/*-s[0-9]/pgd-Linf-2over255-*.json"))
    result = sam_bench.analyze("frontier", records, zoo=tmp_path / "model_zoo", output=tmp_path / "out")
    (found,) = result.findings["comparisons"]
    assert len({model for each in found["points"] for model in each["models"]}) == len(records) == 63
    told = {
        (each["strength"], each["other"]): tuple(f"{255 * each[key]:.2f}" for key in ("estimate", "low", "high"))
        for each in found["corresponding"]
        if each["family"] == "SAM"
    }
    assert told == {
        ("rho 0.05", "N-FGSM"): ("0.06", "0.00", "0.13"),
        ("rho 0.1", "N-FGSM"): ("0.06", "0.00", "0.16"),
        ("rho 0.2", "N-FGSM"): ("0.10", "0.05", "0.16"),
        ("rho 0.4", "N-FGSM"): ("0.15", "0.05", "0.24"),
        ("rho 0.05", "AT"): ("0.18", "0.00", "0.39"),
        ("rho 0.1", "AT"): ("0.17", "0.00", "0.46"),
        ("rho 0.2", "AT"): ("0.29", "0.12", "0.45"),
        ("rho 0.4", "AT"): ("0.40", "0.10", "0.71"),
    }
    gaps = {
        (each["strength"], each["other"]): f"{each['estimate']:.1f}" if "estimate" in each else None
        for each in found["gaps"]
        if each["family"] == "SAM"
    }
    assert gaps == {
        ("rho 0.05", "N-FGSM"): "-11.9",
        ("rho 0.1", "N-FGSM"): "-13.1",
        ("rho 0.2", "N-FGSM"): None,
        ("rho 0.4", "N-FGSM"): None,
        ("rho 0.05", "AT"): None,
        ("rho 0.1", "AT"): "-3.8",
        ("rho 0.2", "AT"): "-16.2",
        ("rho 0.4", "AT"): None,
    }
    assert result.findings["recalled_rule"]["points"] == 4
    assert all(path.stat().st_size > 1000 for path in result.figures)


def test_models_without_a_curve_are_drawn_too() -> None:
    findings = combine([model("standard", 160, 80), model("sam", 150, 90, weights={"method": "sam", "rho": 0.1})])
    assert findings["recalled_rule"] is None
    assert rendered(lambda figure: Frontier().draw({}, findings, figure))["png"].startswith(b"\x89PNG")
