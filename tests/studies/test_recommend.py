"""Recommendations: nothing over budget or below the accepted accuracy, and the committed points."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sam_bench.errors import InputError, SamBenchError
from sam_bench.records import Radius
from sam_bench.studies import recommend_sweep
from sam_bench.studies.measured_points import Change, MeasuredPoint, committed_points
from sam_bench.studies.recommend import Question, recommend
from sam_bench.studies.recommend_sweep import grids, sweep_for
from sam_bench.training import load_recipe, override
from sam_bench.zoo import Zoo

ROOT = Path(__file__).parents[2]


def point(method: str, passes: float, clean: float, robust: float, **changes: Any) -> MeasuredPoint:
    """A method with these accuracies in per cent, beside plain training with 80 and 40."""
    family, _, strength = method.partition(" rho ")
    fields: dict[str, Any] = {
        "where": "a network",
        "method": method,
        "family": family,
        "strength": float(strength) if strength else None,
        "settings": {"recipe": family.lower()},
        "models": ("one",),
        "passes": passes,
        "attack": "pgd-10",
        "norm": "Linf",
        "eps": Radius("2/255"),
        "n_examples": 1000,
        "clean": clean / 100,
        "robust": robust / 100,
        "clean_change": Change(estimate=clean - 80, low=clean - 81, high=clean - 79),
        "robust_change": Change(estimate=robust - 40, low=robust - 41, high=robust - 39),
    }
    return MeasuredPoint(**{**fields, **changes})


POINTS = committed_points()
STANDARD = point("standard", 1, 80, 40, settings={"recipe": "standard"})


def ask(eps: str = "2/255", loss: float = 1, budget: float = 2, norm: Any = "Linf") -> Question:
    return Question(norm, Radius(eps), loss, budget)


def test_nothing_over_budget_or_below_the_accepted_accuracy_is_recommended() -> None:
    radii = (("Linf", "1/255"), ("Linf", "2/255"), ("Linf", "8/255"), ("L2", "32/255"))
    for (norm, eps), loss, budget in itertools.product(radii, (0, 1, 3, 6, 10, 25), (1, 1.5, 2, 6, 12, 20)):
        question = ask(eps, loss, budget, norm)
        chosen = recommend(POINTS, question).row
        rivals: dict[str, MeasuredPoint] = {}
        for row in POINTS:
            if (row.where, row.attack, row.norm, row.eps) == (chosen.where, chosen.attack, chosen.norm, chosen.eps):
                known = rivals.get(row.method)
                rivals[row.method] = row if known is None or len(row.models) > len(known.models) else known
        assert len(rivals) == 48
        allowed = [row for row in rivals.values() if -row.clean_change.estimate <= loss and row.passes <= budget]
        assert chosen in allowed
        sure = [row.robust_change.estimate for row in allowed if row.robust_change.low > 0]
        assert chosen.robust_change.estimate == max(sure) if sure else chosen.method == "standard"


def test_the_most_robust_allowed_method_wins_and_the_cheaper_of_two_alike() -> None:
    rows = [STANDARD, point("A", 2, 79.5, 45), point("B", 1.5, 79.5, 45), point("C", 2, 78, 60), point("D", 3, 80, 60)]
    answer = recommend(rows, ask())
    assert (answer.row.method, answer.settings) == ("B", {"recipe": "b"})
    assert answer.alternatives == ("For 3x the passes, D would buy +20.0 points of robust accuracy.",)


def test_without_a_method_that_qualifies_it_says_standard_and_what_would_have_to_give() -> None:
    rows = [STANDARD, point("A", 2, 80, 39), point("C", 2, 75, 60), point("D", 6, 70, 70)]
    answer = recommend(rows, ask())
    assert answer.row is STANDARD
    assert answer.reasons[:2] == (
        "2 of 4 measured methods lose at most 1 point of clean accuracy and cost at most 2x the passes of plain "
        "training.",
        "None of them is more robust than plain training by more than the noise.",
    )
    assert answer.alternatives == (
        "For 5.0 points of clean accuracy, C would buy +20.0 points of robust accuracy.",
        "For 6x the passes and 10.0 points of clean accuracy, D would buy +30.0 points of robust accuracy.",
    )


def test_it_warns_of_clean_accuracy_that_falls_and_of_a_plateau() -> None:
    rows = [
        STANDARD,
        point("SAM rho 0.1", 2, 79.5, 45),
        point("SAM rho 0.2", 2, 75, 45.5),
        point("SAM rho 0.4", 2, 60, 44),
    ]
    one_seed, falls, plateau, last = recommend(rows, ask(loss=2)).warnings
    assert "one seed" in one_seed
    assert falls.startswith(
        "SAM: clean accuracy less that of plain training falls from -0.5 to -20.0 points from rho 0.1 to rho 0.4."
    )
    assert plateau.startswith(
        "SAM: robust accuracy is on a plateau from rho 0.1 on, +5.0 points against plain training there and at most "
        "+5.5 beyond"
    )
    assert "small networks in short runs" in last


def test_strengths_from_harder_images_are_compared_by_what_they_change() -> None:
    # On the images of rho 0.2 plain training has 70 and 30: it loses no more clean accuracy, and gains more.
    changes = {
        "clean_change": Change(estimate=-0.5, low=-1, high=0),
        "robust_change": Change(estimate=9, low=8, high=10),
    }
    rows = [
        STANDARD,
        point("SAM rho 0.1", 2, 79.5, 45),
        point("SAM rho 0.2", 2, 69.5, 39, **changes, models=("a", "b")),
    ]
    answer = recommend(rows, ask())
    assert answer.row.method == "SAM rho 0.2"
    assert not any("falls" in each or "plateau" in each or "one seed" in each for each in answer.warnings)


def test_a_curve_that_rises_later_is_no_plateau() -> None:
    rows = [
        STANDARD,
        point("SAM rho 0.1", 2, 79, 45),
        point("SAM rho 0.2", 2, 79.2, 45.5),
        point("SAM rho 0.4", 2, 79, 50),
    ]
    answer = recommend(rows, ask())
    assert answer.row.method == "SAM rho 0.4"
    assert not any("plateau" in each or "falls" in each for each in answer.warnings)


def test_a_gain_that_the_noise_may_have_made_is_not_recommended() -> None:
    assert recommend([STANDARD, point("A", 2, 79.5, 40.5)], ask()).row is STANDARD
    assert recommend([STANDARD, point("A", 2, 79.5, 41.5)], ask()).row.method == "A"


def test_it_warns_of_a_loss_that_may_be_larger_than_accepted() -> None:
    warning = "The loss of clean accuracy may be larger than accepted: its interval reaches further."
    assert recommend([STANDARD, point("A", 2, 79.5, 45)], ask()).warnings[0] == warning
    assert warning not in recommend([STANDARD, point("A", 2, 79.5, 45)], ask(loss=2)).warnings


def test_the_nearest_radius_answers_and_of_two_the_larger() -> None:
    answer = recommend(POINTS, ask("4/255", 25, 20))
    assert str(answer.row.eps) == "8/255"
    assert "Linf 4/255 was not measured; 8/255 is the nearest radius that was." in answer.reasons
    assert str(recommend(POINTS, ask("3/255")).row.eps) == "2/255"


def test_it_says_what_the_method_bought_with_another_network() -> None:
    larger = {"where": "a larger network", "robust_change": Change(estimate=14, low=13, high=15.06)}
    rows = [
        STANDARD,
        point("A", 2, 79.5, 45),
        point("B", 2, 79.5, 44),
        point("A", 2, 79.8, 54, models=("one", "two"), **larger),
        point("A", 2, 79.8, 52, n_examples=9000, **larger),
        point("A", 2, 79.8, 54, eps=Radius("1/255"), **larger),
        point("A", 2, 79.8, 50, attack="autoattack", models=("one", "two", "three"), **larger),
    ]
    said = recommend(rows, ask()).reasons[-1]
    assert said == (
        "With a larger network (2 seeds): +14.0 points of robust accuracy [+13.0, +15.1] and -0.2 points of clean "
        "accuracy [-1.2, +0.8]."
    )
    assert not any("a larger network" in each for each in recommend(rows[:1] + rows[2:], ask()).reasons)
    assert not any("a larger network" in each for each in recommend(rows[:3], ask()).reasons)


def test_plain_training_is_shown_from_the_source_of_the_method() -> None:
    """Its accuracies differ between sources; the change was measured beside one of them."""
    standard = point("standard", 1, 81, 44, settings={"recipe": "standard"}, models=("one", "two"))
    rows = [standard, point("A", 2, 79.5, 45)]
    answer = recommend(rows, ask())
    assert "45.0% robust and 79.5% clean accuracy, where plain training has 40.0% and 80.0%." in answer.reasons[2]


def test_a_method_from_two_sources_counts_once_as_measured_with_more_seeds() -> None:
    rows = [STANDARD, point("A", 2, 80, 60), point("A", 2, 80, 50, models=("one", "two"))]
    answer = recommend(rows, ask())
    assert answer.row.robust == 0.5
    assert answer.reasons[0].startswith("2 of 2 measured methods")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"eps": "0"}, "eps='0' must be above 0"),
        ({"eps": "0.5"}, "eps: nothing was measured near Linf 0.5; measured radii: 1/255, 2/255, 8/255"),
        ({"norm": "L2", "eps": "0.5"}, "nothing was measured near L2 0.5; measured radii: 32/255"),
        ({"loss": -1}, "max_clean_loss=-1 must be points of accuracy from 0 to 100"),
        ({"budget": 0.5}, "budget=0.5 must be a multiple of plain training's passes"),
        ({"budget": float("nan")}, "budget=nan must be a multiple"),
    ],
)
def test_a_wrong_question_is_refused(question: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        recommend(POINTS, ask(**question))
    assert message in str(error.value)


def test_what_the_documentation_shows() -> None:
    one_step = recommend(POINTS, ask("1/255"))
    assert (one_step.settings, round(one_step.row.robust_change.estimate, 1)) == ({"recipe": "n-fgsm-025"}, 5.5)
    at = recommend(POINTS, ask("8/255", 25, 11))
    assert (at.settings, round(at.row.robust_change.estimate, 1)) == ({"recipe": "at"}, 29.9)


def test_every_point_can_be_trained() -> None:
    for row in POINTS:
        recipe, settings = load_recipe(str(row.settings["recipe"])), {**row.settings}
        del settings["recipe"]
        override(recipe, settings)


@pytest.mark.slow
def test_the_points_are_those_of_the_committed_records(tmp_path: Path) -> None:
    table = ROOT / "sam_bench/studies/measured_points.json"
    command = json.loads(table.read_text())["command"].split()
    made = tmp_path / "made.json"
    subprocess.run([sys.executable, *command[1:], "--output", str(made)], cwd=ROOT, check=True)
    assert made.read_text() == table.read_text()


def test_the_sweep_tries_what_the_budget_allows() -> None:
    assert [each["recipe"] for each in grids(ask(budget=1))] == [["standard"], ["swa"]]
    assert {"recipe": ["n-fgsm"], "eps": ["1/255", "2/255"]} in grids(ask())
    assert {"recipe": ["at-l2-32"], "eps": ["32/255"]} in grids(ask("32/255", budget=6, norm="L2"))


@pytest.mark.slow
def test_a_short_sweep_measures_on_the_users_data_and_names_what_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverges: dict[str, list[Any]] = {"recipe": ["sam"], "rho": [1e30]}
    monkeypatch.setattr(recommend_sweep, "grids", lambda question: [*grids(question), diverges])
    monkeypatch.setattr("sam_bench.training.precision.measured_gain", lambda *_: 2.0)  # `auto` would take bf16
    shared = {"epochs": 1, "limit_train": 128, "arch_options": {"width": 4}, "device": "cpu", "n_examples": 20}
    everything = sweep_for(ask("8/255", 5, 1), "digits", folder=tmp_path, **shared | {"n_examples": 100_000})
    assert {row.n_examples for row in everything.rows} == {500}, "no more than there are; other counts do not clash"
    swept = sweep_for(ask("8/255", 5, 1), "digits", folder=tmp_path, **shared)
    assert {row.method: row.passes for row in swept.rows}["standard"] == 1
    assert {row.family for row in swept.rows} == {"standard", "SWA"}
    assert {card.precision for card in Zoo(tmp_path / "model_zoo").cards()} == {"fp32"}
    (failure,) = swept.failures
    assert failure.startswith("sam-rho1e30-preactresnet18-w4 failed: training diverged: ")
    assert "Try a smaller lr or rho" in failure
    answer = recommend(swept.rows, ask("8/255", 5, 1.1))
    assert answer.row.n_examples == 20 and "digits" in answer.row.where


def test_a_radius_in_units_of_255_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(InputError, match=r"eps='8' is too large for Linf: .* you probably mean 8/255"):
        ask("8")


def test_nothing_learned_is_said_and_if_plain_training_fails_nothing_else_is_trained(tmp_path: Path) -> None:
    shared = {"limit_train": 128, "arch_options": {"width": 4}, "device": "cpu", "n_examples": 100, "folder": tmp_path}
    (warning,) = sweep_for(ask("8/255", 5, 1), "digits", epochs=1, **shared).warnings
    assert warning.startswith("plain training learned nothing: it is right on ") and "naming the largest" in warning
    before = set((tmp_path / "runs").iterdir())
    with pytest.raises(SamBenchError, match=r"compare with: .*epochs=2; for other data .* give another folder$"):
        sweep_for(ask("8/255", 5, 2), "digits", epochs=2, **shared)
    assert set((tmp_path / "runs").iterdir()) == before
