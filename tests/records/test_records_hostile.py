"""Files that someone else wrote: another type, a pipe, megabytes in one field; and every committed record."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam_bench.data import load_dataset
from sam_bench.errors import InputError
from sam_bench.leaderboard.files import read_checked
from sam_bench.records import EvaluationRecord, LeaderboardEntry, ModelCard, Record, read_record
from sam_bench.training import load_recipe
from sam_bench.zoo.checkpoint import read_state_dict

ROOT = Path(__file__).parents[2]
LONGEST = 900  # characters of a message, the file's path included
CARD = ROOT / "model_zoo/cifar10-jpeg/Linf/sam-rho02-prn18-w16.json"
EVALUATION = ROOT / "leaderboards/cifar10-jpeg/Linf/records/sam-rho02-prn18-w16-autoattack-Linf-1over255.json"


def _committed() -> list[tuple[Path, type[Record]]]:
    found: list[tuple[Path, type[Record]]] = []
    for folder in ("model_zoo", "leaderboards", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.json")):
            content = json.loads(path.read_text())
            kinds = {"verdicts": EvaluationRecord, "weights": ModelCard, "sam_bench": LeaderboardEntry}
            found += [(path, kind) for key, kind in kinds.items() if isinstance(content, dict) and key in content]
    return found


def test_every_committed_card_record_and_entry_is_read() -> None:
    found = _committed()
    assert {kind for _, kind in found} == {EvaluationRecord, ModelCard, LeaderboardEntry}
    for path, kind in found:
        read_record(path, kind)


@pytest.mark.parametrize("read", [read_record, read_checked])
def test_a_file_in_place_of_another_is_called_what_it_is(read: Callable[..., Any]) -> None:
    manifest = EVALUATION.parent / "sam-rho02-prn18-w16.manifest.json"
    for path, called in ((CARD, "a model's card"), (manifest, "an entry's manifest")):
        with pytest.raises(InputError) as caught:
            read(path, EvaluationRecord)
        assert str(caught.value) == f"{path} is {called}, not an evaluation record (evaluations/NAME/*.json)"
    with pytest.raises(InputError, match=r"is an evaluation record, not a leaderboard entry \(leaderboards/DATASET/"):
        read(EVALUATION, LeaderboardEntry)


def _with(path: Path, source: Path, field: str, value: Any) -> Path:
    content = json.loads(source.read_text())
    where = content
    *outer, last = field.split(".")
    for key in outer:
        where = where[key]
    where[last] = value
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("value", [True, "7", 7.5])
@pytest.mark.parametrize(
    ("source", "kind", "field"),
    [
        (CARD, ModelCard, "seed"),
        (CARD, ModelCard, "recipe.epochs"),
        (CARD, ModelCard, "architecture.num_classes"),
        (CARD, ModelCard, "weights.size"),
        (EVALUATION, EvaluationRecord, "seed"),
        (EVALUATION, EvaluationRecord, "n_examples"),
    ],
)
def test_what_is_no_whole_number_is_refused(
    source: Path, kind: type[Record], field: str, value: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"{field}: must be a valid integer"):
        read_record(_with(tmp_path / "record.json", source, field, value), kind)


@pytest.mark.parametrize("value", [True, "0.5"])
def test_what_is_no_number_is_refused(value: Any, tmp_path: Path) -> None:
    for source, kind in ((CARD, ModelCard), (EVALUATION, EvaluationRecord)):
        with pytest.raises(InputError, match="clean_accuracy: must be a valid number"):
            read_record(_with(tmp_path / "record.json", source, "clean_accuracy", value), kind)


@pytest.mark.parametrize("line", ["epochs: true", "batch_size: true", "augmentation: {crop_padding: true}"])
def test_a_recipe_takes_no_truth_value_for_a_number(line: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(line)
    with pytest.raises(InputError, match="must be a valid integer, not true"):
        load_recipe(tmp_path / "mine.yaml")


def test_a_pipe_or_an_impossible_path_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", Path("/dev/zero")):
        with pytest.raises(InputError, match="it is no regular file"):
            read_record(path, ModelCard)
    with pytest.raises(InputError, match="cannot read"):
        read_record(tmp_path / "a\0b.json", ModelCard)


LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("source", "kind", "field"),
    [
        (CARD, ModelCard, "name"),
        (CARD, ModelCard, "threat"),
        (CARD, ModelCard, "seed"),
        (CARD, ModelCard, LONG),
        (CARD, ModelCard, f"cost.{LONG}"),
        (CARD, ModelCard, "train_fingerprint"),
        (EVALUATION, EvaluationRecord, "eps"),
        (EVALUATION, EvaluationRecord, "dataset"),
    ],
)
def test_a_message_about_a_record_is_short(source: Path, kind: type[Record], field: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_record(_with(tmp_path / "record.json", source, field, LONG), kind)
    assert len(str(caught.value)) < LONGEST


def test_a_message_about_verdicts_is_short(tmp_path: Path) -> None:
    content = json.loads(EVALUATION.read_text())
    for changes in (
        {"verdicts": [LONG, *content["verdicts"][1:]]},
        {"accuracy_after": {f"attack-{number}": 0.5 for number in range(10_000)}},
    ):
        path = tmp_path / "record.json"
        path.write_text(json.dumps(content | changes))
        with pytest.raises(InputError) as caught:
            read_record(path, EvaluationRecord)
        assert len(str(caught.value)) < LONGEST


@pytest.mark.parametrize(
    "changes",
    [
        {"name": np.array(LONG)},
        {"name": np.array("é" * 100_000)},
        {"robustbench": np.array(LONG)},
        {"y_test": None, **{f"array-{number}": np.zeros(1) for number in range(2000)}},
    ],
)
def test_a_message_about_a_data_file_is_short(changes: dict[str, Any], tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    content = {"x_train": images, "y_train": np.arange(4) % 2, "x_test": images, "y_test": np.arange(4) % 2} | changes
    np.savez(tmp_path / "mine.npz", **{key: value for key, value in content.items() if value is not None})
    with pytest.raises(InputError) as caught:
        load_dataset(str(tmp_path / "mine.npz"))
    assert len(str(caught.value)) < LONGEST


def test_a_message_about_a_checkpoint_is_short(tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    from sam_bench.models import create_model
    from sam_bench.zoo import Zoo
    from sam_bench.zoo.weights import fit

    architecture = read_record(CARD, ModelCard).architecture
    torch.save({LONG: 1}, tmp_path / "weights.pt")
    with pytest.raises(InputError) as caught:
        read_state_dict(tmp_path / "weights.pt")
    assert len(str(caught.value)) < LONGEST
    (tmp_path / "weights.safetensors").write_bytes(safetensors.torch.save({LONG: torch.zeros(1)}))
    with pytest.raises(InputError) as caught:
        fit(create_model(architecture), read_state_dict(tmp_path / "weights.safetensors"), "it", "the network")
    assert len(str(caught.value)) < LONGEST

    folder = tmp_path / "zoo/cifar10-jpeg/Linf"
    folder.mkdir(parents=True)
    weights = CARD.with_name(read_record(CARD, ModelCard).weights.file)
    (folder / weights.name).write_bytes(weights.read_bytes())
    for field, value in (
        ("architecture.name", LONG),
        ("architecture.name", f"timm:{LONG}"),
        ("architecture.options", {LONG: 1}),
        ("architecture.options", {"width": LONG}),
        ("architecture.mean", [0.5] * 50_000),
    ):
        _with(folder / CARD.name, CARD, field, value)
        problems = Zoo(tmp_path / "zoo").verify(read_record(folder / CARD.name, ModelCard))
        assert problems and all(len(problem.message) < LONGEST for problem in problems)
