"""Data sorted by class, as every folder is: an evaluation of a part takes each class in turn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import sam_bench
from sam_bench import api
from sam_bench.data import load_dataset
from sam_bench.records import EvaluationRecord


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of sorted digits, with AutoAttack on a part of the test images and PGD on all; both break most."""
    root = tmp_path_factory.mktemp("sorted")
    digits = load_dataset("digits", image_size=8)
    assert digits.train is not None
    arrays = {}
    for part, split in (("train", digits.train.head(400)), ("test", digits.test.head(120))):
        order = np.argsort(split.labels.numpy(), kind="stable")
        arrays[f"x_{part}"] = split.images.numpy()[order].transpose(0, 2, 3, 1)
        arrays[f"y_{part}"] = split.labels.numpy()[order]
    np.savez(root / "mine.npz", **arrays)
    shared = {"zoo": root / "zoo", "device": "cpu"}
    settings = {"epochs": 6, "optimizer.lr": 0.05}
    sam_bench.train(
        "standard",
        root / "mine.npz",
        settings=settings,
        arch="preactresnet10",
        arch_options={"width": 4},
        validation=0,
        name="m",
        run_dir=root / "run",
        **shared,
    )
    kept = {"save_adversarial": True, "dataset": root / "mine.npz", **shared}
    for attack, count in (("autoattack", 24), ("pgd", 120)):
        sam_bench.evaluate("m", attack=attack, eps="48/255", n_examples=count, output=root / f"{attack}.json", **kept)
    return root


@pytest.mark.slow
def test_its_entry_is_submitted_verified_and_given_evidence(bench: Path) -> None:
    data, zoo = bench / "mine.npz", bench / "zoo"
    part = EvaluationRecord.model_validate_json((bench / "autoattack.json").read_text())
    assert part.sorted_by_class
    records = [bench / "autoattack.json", bench / "pgd.json"]
    done = api.submit("m", records, zoo=zoo, folder=bench / "board", dataset=data)
    found = api.verify_entry(done.path, dataset=data, zoo=zoo, device="cpu")
    assert found.passed, found.reason
    for bundle in done.path.parent.rglob("*.npz"):
        bundle.unlink()
    assert len(api.add_evidence(done.path, dataset=data, zoo=zoo, device="cpu")) == 2
    again = api.verify_entry(done.path, dataset=data, zoo=zoo, device="cpu")
    assert again.passed, again.reason


@pytest.mark.slow
def test_its_accuracies_are_counted_class_by_class(bench: Path) -> None:
    path = bench / "autoattack.json"
    done = api.analyze("fairness", [str(path)], dataset=bench / "mine.npz", zoo=bench / "zoo", output=bench / "fair")
    (found,) = json.loads(done.numbers.read_text())["findings"]["records"]
    assert sorted(each["examples"] for each in found["clean"]["classes"]) == [2] * 6 + [3] * 4
