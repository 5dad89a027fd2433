"""A card of a run that we made ourselves, too, is held against where that run ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sam_bench.api.verifying import check_training
from sam_bench.errors import InputError
from sam_bench.leaderboard.convergence import check_convergence, published_runs
from sam_bench.records import ModelCard

ROOT = Path(__file__).parents[2]
OTHERS = ROOT / "benchmarks/results/what-they-buy-w8/model_zoo/cifar10-jpeg/Linf"


def _card(name: str) -> ModelCard:
    return ModelCard.model_validate_json((OTHERS / f"{name}-prn18-w8.json").read_text())


@pytest.mark.slow
def test_the_table_is_that_of_the_committed_cards(tmp_path: Path) -> None:
    table, out = ROOT / "sam_bench/leaderboard/published_runs.json", tmp_path / "made.json"
    command = json.loads(table.read_text())["command"].split()
    subprocess.run([sys.executable, *command[1:], "--output", str(out)], cwd=ROOT, check=True)
    assert out.read_text() == table.read_text()
    assert len(published_runs()) == 17


@pytest.mark.parametrize(
    "name", ["standard", "sam-01", "sam-02", "sam-04", "asam", "noise-sam", "at-linf-1", "at-linf-2", "at"]
)
def test_runs_on_another_machine_end_within_the_band(name: str) -> None:
    assert "lies within" in check_convergence(_card(name))


def test_a_run_that_ends_elsewhere_is_refused() -> None:
    card = _card("sam-02")
    for accuracy in (card.clean_accuracy + 0.1, card.clean_accuracy - 0.1):
        with pytest.raises(InputError, match=r"but this run of sam ends at 48.86 to 60.24 %, by 5 published runs"):
            check_training(card.model_copy(update={"clean_accuracy": accuracy}))


def test_what_a_recipe_says_of_itself_hides_no_run() -> None:
    card = _card("sam-02").model_copy(update={"clean_accuracy": 0.99})
    said = card.recipe.model_copy(update={"summary": "another sentence", "name": "mine", "source": "", "good_for": ""})
    with pytest.raises(InputError, match="but this run of mine ends at"):
        check_convergence(card.model_copy(update={"recipe": said}))


def test_a_trained_model_has_an_epoch() -> None:
    card = _card("sam-02")
    nothing = card.cost.model_copy(update={"train_forward": 0, "train_backward": 0})
    with pytest.raises(InputError, match="is of 0 epochs, so that nothing was trained"):
        check_training(card.model_copy(update={"epochs": 0, "cost": nothing}))


def test_another_run_is_held_against_nothing() -> None:
    card = _card("sam-02").model_copy(update={"clean_accuracy": 0.99})
    for changes in ({"epochs": 7}, {"train_fingerprint": "0" * 64}, {"init_sha256": "0" * 64}):
        assert check_convergence(card.model_copy(update=changes)) == ""
