"""Records and cards made of verdicts, for analyses of records."""

from __future__ import annotations

from typing import Any

from sam_bench.analysis import NamedRecord
from sam_bench.records import (
    Architecture,
    Cost,
    EvaluationRecord,
    ModelCard,
    Radius,
    Recipe,
    WeightsFile,
    accuracies,
)

_LETTERS = {"R": "robust", "M": "misclassified", "-": "pgd"}


def record(model: str, verdicts: str, *, eps: str = "1/255", **changes: Any) -> EvaluationRecord:
    """A record whose verdicts are written as letters: R robust, M misclassified, - broken."""
    told = [_LETTERS[letter] for letter in verdicts]
    fields: dict[str, Any] = {
        "model": model,
        "checkpoint_sha256": "0" * 64,
        "dataset": "toy",
        "dataset_fingerprint": f"{len(told):064d}",
        "attack": "pgd",
        "version": "",
        "engine": "test",
        "norm": "Linf",
        "eps": Radius(eps),
        "eps_float": float(Radius(eps)),
        "seed": 0,
        "batch_size": 1,
        "n_examples": len(told),
        "seconds": 0,
        "device": "cpu",
        "packages": {},
        "created": "2026-01-01T00:00:00+00:00",
        "verdicts": told,
        **accuracies(told, ["pgd"]),
    }
    return EvaluationRecord(**{**fields, **changes})


def card(name: str, *, passes: float = 1, seed: int = 0, **parts: Any) -> ModelCard:
    """A card with a recipe of these parts."""
    architecture = Architecture(name="preactresnet18", num_classes=10, options={"width": 4})
    return ModelCard(
        name=name,
        dataset="toy",
        architecture=architecture,
        parameters=1,
        recipe=Recipe(name="made-up", summary="for tests", **parts),
        epochs=1,
        seed=seed,
        precision="fp32",
        train_examples=10,
        train_fingerprint="0" * 64,
        test_fingerprint="0" * 64,
        clean_accuracy=0.5,
        cost=Cost(train_forward=passes, train_backward=passes, seconds=0, device="cpu"),
        packages={},
        weights=WeightsFile(file=f"{name}.safetensors", size=1, sha256="0" * 64),
        created="2026-01-01T00:00:00+00:00",
    )


def named(model: str, verdicts: str, *, of: ModelCard | None = None, **changes: Any) -> NamedRecord:
    """A record as an analysis gets it."""
    return NamedRecord(record(model, verdicts, **changes), f"{model}.json", of)
