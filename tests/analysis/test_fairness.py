"""Fairness, against counts that are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from records_of_verdicts import named
from scipy.stats import binomtest

import sam_bench
from sam_bench.analysis.fairness import Fairness
from sam_bench.data import load_dataset
from sam_bench.errors import InputError


def test_accuracies_are_counted_class_by_class_the_best_first() -> None:
    labels = {7: torch.tensor([0, 1, 0, 1, 0, 1, 2])}
    (found,) = Fairness().combine([named("a", "RR-MR-R")], labels, ("cat", "dog", "2"))["records"]
    assert [(each["class"], each["examples"]) for each in found["clean"]["classes"]] == [
        ("cat", 3),
        ("class 2", 1),
        ("dog", 3),
    ]
    assert [each["accuracy"] for each in found["clean"]["classes"]] == pytest.approx([1, 1, 2 / 3])
    assert {each["class"]: each["accuracy"] for each in found["robust"]["classes"]} == pytest.approx(
        {"cat": 2 / 3, "dog": 1 / 3, "class 2": 1}
    )
    assert (found["clean"]["accuracy"], found["robust"]["accuracy"]) == pytest.approx((6 / 7, 4 / 7))


def test_the_interval_is_wilsons() -> None:
    (found,) = Fairness().combine([named("a", "RRR--")], {5: torch.zeros(5, dtype=torch.int64)}, ("all",))["records"]
    (each,) = found["robust"]["classes"]
    expected = binomtest(3, 5).proportion_ci(method="wilson")
    assert (each["low"], each["high"]) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_a_class_without_an_example_has_no_accuracy() -> None:
    (found,) = Fairness().combine([named("a", "R-")], {2: torch.tensor([0, 0])}, ("cat", "dog"))["records"]
    assert [each["class"] for each in found["robust"]["classes"]] == ["cat"]


def test_a_record_of_the_digits_is_read_with_their_labels(zoo: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    shared = {"attack": "fgsm", "eps": "4/255", "n_examples": 40, "zoo": zoo}
    told = sam_bench.evaluate("first", **shared, output=record)
    result = sam_bench.analyze("fairness", [str(record)], zoo=zoo, output=tmp_path / "out")
    (found,) = result.findings["records"]
    assert found["model"] == "first"
    labels = load_dataset("digits", data_dir=tmp_path, image_size=8, test_only=True).test.labels[:40].tolist()
    for each in found["robust"]["classes"]:
        own = [told.verdicts[i] for i, label in enumerate(labels) if str(label) == each["class"].split()[-1]]
        assert (each["examples"], each["accuracy"]) == (len(own), own.count("robust") / len(own))
    assert all(path.stat().st_size > 1000 for path in result.figures)
    assert result.lines[0].startswith("first, fgsm Linf 4/255: clean ")


def test_labels_of_other_images_are_refused(zoo: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    sam_bench.evaluate("first", attack="fgsm", eps="4/255", n_examples=40, zoo=zoo, output=record)
    with pytest.raises(InputError, match="over other images"):
        sam_bench.analyze("fairness", [str(record)], zoo=zoo, dataset="digits", image_size=12, output=tmp_path / "out")
