"""Accuracy class by class, from the verdicts of a record and the labels of its test images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam_bench.records import MISCLASSIFIED, ROBUST, EvaluationRecord


@dataclass(frozen=True, eq=False)
class TestLabels:
    """Labels of the test images behind a record.

    Args:
        labels: int64 [N], in the order of the verdicts.
        classes: Name of each class, by label.
    """

    __test__ = False  # for pytest, this is no test

    labels: NDArray[np.int64]
    classes: tuple[str, ...]


LabelsOf = Callable[[EvaluationRecord], TestLabels | None]
"""Labels of the very images that a record is about; None where they are not at hand."""


@dataclass(frozen=True)
class ClassShare:
    """One class: how many test examples it has, and the shares of them that are right and robust."""

    name: str
    examples: int
    clean: float
    robust: float


def class_shares(record: EvaluationRecord, test: TestLabels) -> list[ClassShare]:
    """Each class that has examples, from the most to the least robust."""
    verdicts = np.array(record.verdicts)
    found = []
    for label, name in enumerate(test.classes):
        own = verdicts[test.labels == label]
        if len(own):
            shown = f"class {name}" if name.isdigit() else name
            clean, robust = float((own != MISCLASSIFIED).mean()), float((own == ROBUST).mean())
            found.append(ClassShare(shown, len(own), clean, robust))
    return sorted(found, key=lambda each: -each.robust)
