"""Cards and records to make leaderboards of, written where a zoo and an evaluation would write them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sam_bench.attacks.autoattack.suite import ATTACKS_OF
from sam_bench.leaderboard import submit_entry
from sam_bench.records import (
    MISCLASSIFIED,
    ROBUST,
    Architecture,
    ComponentSpec,
    Cost,
    EvaluationRecord,
    ModelCard,
    Radius,
    Recipe,
    WeightsFile,
    accuracies,
    write_record,
)

STANDARD = Recipe(name="standard", summary="plain training")
SAM = Recipe(name="sam", summary="SAM", weights=ComponentSpec(method="sam", rho=0.2))
AT = Recipe(
    name="at",
    summary="PGD adversarial training",
    inputs=ComponentSpec(method="pgd", norm="Linf", eps="8/255", steps=10, step_size="2/255"),
)


def digest(text: str) -> str:
    """A SHA-256 that stands for `text`."""
    return hashlib.sha256(text.encode()).hexdigest()


def head_fingerprint(dataset: str, count: int, whole: int = 10_000) -> str:
    """The fingerprint of the first `count` test examples of the made-up data sets here."""
    return digest(f"{dataset} test{'' if count == whole else f' first {count}'}")


def make_card(
    name: str, recipe: Recipe = SAM, *, dataset: str = "cifar10", passes: float = 20, **changes: Any
) -> ModelCard:
    """A card; `changes` replace fields."""
    fields: dict[str, Any] = {
        "name": name,
        "dataset": dataset,
        "architecture": Architecture(name="preactresnet18", num_classes=10, options={"width": 16}),
        "parameters": 702_442,
        "recipe": recipe,
        "epochs": 10,
        "seed": 0,
        "precision": "bf16",
        "train_examples": 50_000,
        "train_fingerprint": digest(f"{dataset} train"),
        "test_fingerprint": head_fingerprint(dataset, 10_000),
        "clean_accuracy": 0.8,
        "cost": Cost(train_forward=passes, train_backward=passes, seconds=1.0, device="cpu"),
        "packages": {"torch": "2.15.0"},
        "weights": WeightsFile(file=f"{name}.safetensors", size=10, sha256=digest(name)),
        "created": "2026-01-01T00:00:00Z",
        "command": f"sam-bench train --recipe {recipe.name} --name {name}",
    }
    return ModelCard(**{**fields, **changes})


def make_record(
    card: ModelCard,
    *,
    clean: int,
    robust: int,
    n: int = 100,
    attack: str = "autoattack",
    norm: str = "Linf",
    eps: str = "8/255",
    warnings: tuple[str, ...] = (),
    **changes: Any,
) -> EvaluationRecord:
    """A record of `n` examples, `clean` of them classified right, `robust` robust; `attacks` are what ran."""
    version = changes.get("version", "standard") if attack == "autoattack" else ""
    attacks = changes.pop("attacks", None) or ATTACKS_OF.get(version, [attack])
    broken = clean - robust
    # None by Square, which would be worth a warning.
    by = [attacks[0]] * (broken - broken // 3) + [attacks[:2][-1]] * (broken // 3)
    verdicts = [ROBUST] * robust + by + [MISCLASSIFIED] * (n - clean)
    fields: dict[str, Any] = {
        "model": card.name,
        "checkpoint_sha256": card.weights.sha256,
        "dataset": card.dataset,
        "dataset_fingerprint": head_fingerprint(card.dataset, n),
        "attack": attack,
        "version": version,
        "engine": "pyautoattack 0.2.0" if attack == "autoattack" else "sam-bench 0.1.0",
        "settings": {"steps": 20} if attack == "pgd" else {},
        "norm": norm,
        "eps": eps,
        "eps_float": float(Radius(eps)),
        "seed": 0,
        "batch_size": 128,
        "n_examples": n,
        "warnings": list(warnings),
        "seconds": 12.5,
        "device": "a CPU",
        "packages": {"torch": "2.15.0"},
        "created": "2026-01-01T00:00:00Z",
        "command": f"sam-bench evaluate {card.name} --attack {attack} --norm {norm} --eps {eps} --n-examples {n}",
        "verdicts": verdicts,
        **accuracies(verdicts, attacks),
    }
    return EvaluationRecord(**{**fields, **changes})


class Bench:
    """A zoo, a folder of evaluations and a folder of leaderboards under one root."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "leaderboards"
        self.count = 0

    def card_path(self, name: str, *, dataset: str = "cifar10", threat: str = "Linf") -> Path:
        return self.root / "model_zoo" / dataset / threat / f"{name}.json"

    def card_file(self, card: ModelCard) -> Path:
        path = self.card_path(card.name, dataset=card.dataset, threat=card.threat)
        write_record(path, card)
        return path

    def record_file(self, record: EvaluationRecord) -> Path:
        self.count += 1
        path = self.root / "evaluations" / f"{self.count}.json"
        write_record(path, record)
        return path

    def submit(self, card: ModelCard, *records: EvaluationRecord, **options: Any) -> Any:
        paths = [self.record_file(record) for record in records]
        return submit_entry(card, self.card_file(card), paths, folder=self.folder, **options)


def fill(bench: Bench) -> None:
    """Six models on three boards of cifar10 and two on own-digits; one record has a doubt, one fewer examples."""
    doubt = "zero-gradients: the gradient is zero on 3 % of the points, so white-box attacks may be too weak"
    models: list[tuple[str, Recipe, float, tuple[int, int, int, int]]] = [
        ("standard", STANDARD, 10, (94, 0, 2, 47)),
        ("sam-rho0.1", SAM.model_copy(update={"weights": ComponentSpec(method="sam", rho=0.1)}), 20, (95, 0, 4, 58)),
        ("sam-rho0.2", SAM, 20, (94, 1, 5, 66)),
        ("sam-rho0.4", SAM.model_copy(update={"weights": ComponentSpec(method="sam", rho=0.4)}), 20, (91, 2, 9, 69)),
        ("at-eps8", AT, 110, (82, 46, 51, 78)),
        (
            "at-eps4",
            AT.model_copy(update={"inputs": ComponentSpec(method="pgd", norm="Linf", eps="4/255", steps=10)}),
            110,
            (87, 38, 44, 84),
        ),
    ]
    for name, recipe, passes, (clean, aa, pgd, small) in models:
        card = make_card(name, recipe, passes=passes, authors="Ada Lovelace, Alan Turing", venue="Journal 2026")
        records = [
            make_record(card, clean=clean, robust=aa, warnings=(doubt,) if name == "sam-rho0.4" else ()),
            make_record(card, clean=clean, robust=pgd, attack="pgd"),
            make_record(card, clean=clean, robust=small, attack="pgd", eps="1/255"),
        ]
        if name == "at-eps4":
            records[2] = make_record(card, clean=44, robust=42, n=50, attack="pgd", eps="1/255")
        bench.submit(card, *records)
    for name, recipe, robust in (("tiny-standard", STANDARD, 30), ("tiny-sam", SAM, 71)):
        card = make_card(name, recipe, dataset="own-digits", passes=20 if recipe is STANDARD else 40)
        bench.submit(card, make_record(card, clean=99, robust=robust, eps="16/255"))
