"""The quickstart, made small: the same code from training to sentences; and sentences for every way numbers fall."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sam_bench.cli.main import cli
from sam_bench.errors import InputError
from sam_bench.progress import SilentReporter
from sam_bench.quickstart import Plan, PlannedAttack, findings, quickstart
from sam_bench.records import (
    MISCLASSIFIED,
    ROBUST,
    Architecture,
    Cost,
    EvaluationRecord,
    ModelCard,
    Radius,
    Recipe,
    WeightsFile,
    accuracies,
    read_record,
)
from sam_bench.zoo import Zoo

# At this radius AutoAttack's first attack breaks everything: what is tested is the way, not the attack.
SMALL = Plan(
    runs={
        "standard": {"epochs": 2},
        "sam": {"epochs": 2, "rho": 0.1},
        "at": {"epochs": 2, "eps": "0.1", "steps": 2, "step_size": "0.05"},
    },
    attacks=(
        PlannedAttack("pgd", "8/255", {"steps": 3}, 64),
        PlannedAttack("pgd", "16/255", {"steps": 3}, 64),
        PlannedAttack("autoattack", "0.9", n_examples=4),
    ),
    width=4,
    limit_train=400,
    validation=40,
)


def run(folder: Path, *options: str) -> Result:
    result = CliRunner().invoke(cli, ["quickstart", "--folder", str(folder), *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result


@pytest.mark.slow
def test_the_quickstart_goes_the_whole_way_and_repeats_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_bench.quickstart.DEFAULT_PLAN", SMALL)
    first = run(tmp_path, "--quiet", "--json")
    printed = json.loads(first.stdout)
    assert first.stderr == "" and set(printed) == {"cards", "robust_accuracy", "files", "sentences"}

    zoo = Zoo(tmp_path / "model_zoo")
    cards = {name: zoo.find(f"digits-{name}") for name in ("standard", "sam", "at")}
    assert printed["cards"] == {name: card.model_dump(mode="json") for name, card in cards.items()}
    assert [card.cost.passes for card in cards.values()] == [2, 4, 6]
    assert {card.architecture.options["width"] for card in cards.values()} == {4}
    assert {card.train_examples for card in cards.values()} == {360}
    verdicts = {}
    for name, card in cards.items():
        records = {
            path.stem: read_record(path, EvaluationRecord)
            for path in (tmp_path / "evaluations" / card.name).glob("*.json")
        }
        assert {stem: record.n_examples for stem, record in records.items()} == {
            "pgd-8over255": 64,
            "pgd-16over255": 64,
            "autoattack-0.9": 4,
        }
        assert {record.checkpoint_sha256 for record in records.values()} == {card.weights.sha256}
        assert printed["robust_accuracy"][name] == {
            f"{record.attack} Linf {record.eps}": record.robust_accuracy for record in records.values()
        }
        verdicts[name] = {stem: record.verdicts for stem, record in records.items()}
    assert {Path(file).suffix for file in printed["files"]} == {".md", ".tex", ".csv", ".html", ".svg", ".png"}
    assert all(Path(file).stat().st_size > 100 for file in printed["files"])
    sam, at, strong = printed["sentences"]
    assert "PGD-3 at 16/255" in sam and "2.0 times its passes" in sam and "3.0 times the passes" in at
    assert "at 0.9 on 4 images" in strong

    # Run again it continues what is there, all but one finished, and finds the same; for a person, in one process.
    (tmp_path / "evaluations" / "digits-at" / "pgd-16over255.json").unlink()
    second = run(tmp_path, "--workers", "1")
    assert second.stderr.count("after epoch 2 of 2") == 3 and second.stderr.count("record written to") == 1
    assert second.stderr.count("is finished: nothing to resume") == 8
    assert all(sentence in second.stdout for sentence in printed["sentences"])
    assert all(name in second.stdout for name in ("digits-standard", "digits-sam", "digits-at"))
    assert str(tmp_path / "leaderboards" / "site" / "index.html") in second.stdout
    for name, card in cards.items():
        again = zoo.find(card.name)
        here = {"device": again.cost.device}  # a process alone has all threads
        assert again.weights == card.weights and again.cost == card.cost.model_copy(update=here)
        for stem, before in verdicts[name].items():
            path = tmp_path / "evaluations" / card.name / f"{stem}.json"
            assert read_record(path, EvaluationRecord).verdicts == before


def test_a_folder_that_cannot_be_is_refused_by_the_option_that_named_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"^folder: nothing can be written into .*, because .*/file is a file$"):
        quickstart(tmp_path / "file" / "new", seed=0, device="cpu", reporter=SilentReporter())


def test_what_is_advertised_is_what_the_default_plan_does() -> None:
    plan = Plan()
    assert {name: run["epochs"] for name, run in plan.runs.items()} == {"standard": 20, "sam": 20, "at": 10}
    assert plan.runs["sam"]["rho"] == 0.2 and plan.width == 8 and plan.limit_train is None
    assert [(planned.attack, planned.eps) for planned in plan.attacks] == [
        ("pgd", "8/255"),
        ("pgd", "16/255"),
        ("autoattack", "16/255"),
    ]
    assert all(planned.settings == {"steps": 20} for planned in plan.attacks[:2])
    assert plan.attacks[-1].n_examples == 128


def card_of(name: str, clean: float, passes: float) -> ModelCard:
    return ModelCard(
        name=name,
        dataset="digits",
        architecture=Architecture(name="preactresnet18", num_classes=10, in_channels=1, image_size=8),
        parameters=1,
        recipe=Recipe(name=name, summary=name),
        epochs=20,
        seed=0,
        precision="fp32",
        train_examples=1200,
        train_fingerprint="0" * 64,
        test_fingerprint="1" * 64,
        clean_accuracy=clean,
        cost=Cost(train_forward=passes, train_backward=passes, seconds=1, device="a CPU"),
        packages={},
        weights=WeightsFile(file=f"{name}.safetensors", size=1, sha256="2" * 64),
        created="2026-01-01T00:00:00Z",
    )


def record_of(attack: str, eps: str, robust: int, settings: dict[str, Any]) -> EvaluationRecord:
    verdicts = [ROBUST] * robust + [attack] * (190 - robust) + [MISCLASSIFIED] * 10
    return EvaluationRecord(
        model="m",
        checkpoint_sha256="2" * 64,
        dataset="digits",
        dataset_fingerprint="1" * 64,
        attack=attack,
        version="",
        engine="sam-bench",
        settings=settings,
        norm="Linf",
        eps=eps,
        eps_float=float(Radius(eps)),
        seed=0,
        batch_size=128,
        n_examples=200,
        seconds=1,
        device="a CPU",
        packages={},
        created="2026-01-01T00:00:00Z",
        verdicts=verdicts,
        **accuracies(verdicts, [attack]),
    )


def found(pgd: tuple[int, int, int], strong: tuple[int, int, int]) -> list[str]:
    """The sentences for so many robust examples of 200 under PGD and AutoAttack: standard, SAM, AT."""
    names = ("standard", "sam", "at")
    cards = {
        name: card_of(name, clean, passes)
        for name, clean, passes in zip(names, (0.95, 0.955, 0.94), (20, 40, 110), strict=True)
    }
    records = {
        name: [
            record_of("pgd", "8/255", 190, {"steps": 20}),
            record_of("pgd", "16/255", usual, {"steps": 20}),
            record_of("autoattack", "16/255", strongest, {}),
        ]
        for name, usual, strongest in zip(names, pgd, strong, strict=True)
    }
    return findings(cards, records)


def test_the_sentences_carry_the_numbers() -> None:
    sam, at, strong = found((56, 142, 180), (10, 90, 170))
    assert sam == (
        "Perturbing only the weights, SAM keeps 71.0% of the test images right under PGD-20 at 16/255, "
        "more than the 28.0% of standard training, for 2.0 times its passes."
    )
    assert at == (
        "Adversarial training, which perturbs the inputs, keeps 90.0% for 5.5 times the passes; "
        "clean accuracy is 95.0% (standard), 95.5% (SAM) and 94.0% (AT)."
    )
    assert strong == (
        "AutoAttack, the stronger attack, leaves 5.0%, 45.0% and 85.0% at 16/255 on 200 images: "
        "SAM alone buys some robustness, adversarial training buys more."
    )


@pytest.mark.parametrize(
    ("sam", "words"),
    [(142, "more than the 28.0% of standard"), (20, "less than the 28.0%"), (56, "about the 28.0%")],
)
def test_sam_is_compared_with_standard_training_whichever_way_it_fell(sam: int, words: str) -> None:
    assert words in found((56, sam, 180), (10, 90, 170))[0]


@pytest.mark.parametrize(
    ("strong", "words"),
    [
        ((10, 90, 170), "SAM alone buys some robustness, adversarial training buys more"),
        ((10, 10, 170), "SAM alone buys no robustness that holds"),
        ((0, 0, 0), "SAM alone buys no robustness that holds"),
        ((20, 10, 5), "SAM alone buys no robustness that holds"),
        ((10, 90, 90), "SAM alone matches adversarial training"),
        ((10, 120, 90), "SAM alone beats adversarial training"),
        ((50, 60, 20), "SAM alone beats adversarial training"),
    ],
)
def test_the_verdict_follows_from_the_numbers(strong: tuple[int, int, int], words: str) -> None:
    assert words in found((56, 142, 180), strong)[2]
