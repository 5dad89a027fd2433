"""Fairness: clean and robust accuracy of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sam_bench.analysis.base import ANALYSES, Json, NamedRecord, RecordAnalysis
from sam_bench.analysis.comparisons import attack_title, model_name
from sam_bench.proportions import wilson_interval
from sam_bench.records import MISCLASSIFIED, ROBUST

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CLEAN, _ROBUST = "#0072B2", "#D55E00"


@ANALYSES.register("fairness")
class Fairness(RecordAnalysis):
    """Accuracy class by class, from the verdicts of records.

    Adversarial training lowers the accuracy of some classes far more than that of others (Xu et al. 2021, "To be
    Robust or to be Fair", arXiv 2010.06121).
    """

    summary = "clean and robust accuracy of each class, and the worst class"
    needs_labels = True

    def combine(
        self, records: list[NamedRecord], labels: Mapping[int, Tensor] | None, classes: tuple[str, ...]
    ) -> Json:
        """Each record's classes."""
        assert labels is not None
        return {"records": [_of(each, labels[each.record.n_examples].numpy(), classes) for each in records]}

    def draw(self, measured: Json, findings: Json, figure: Figure) -> None:
        """A line of points a record, a point a class: above clean, below robust; the worst class by name."""
        records = findings["records"]
        figure.set_size_inches(8.0, 1.3 + 0.62 * len(records))
        axes = figure.add_subplot()
        for row, each in enumerate(records):
            _draw_classes(axes, row - 0.15, each["clean"], _CLEAN, above=True)
            _draw_classes(axes, row + 0.17, each["robust"], _ROBUST, above=False)
        axes.set_yticks(range(len(records)), [f"{each['model']}\n{each['title']}" for each in records], fontsize=8)
        axes.set(xlim=(0, 1), ylim=(len(records) - 0.4, -0.6), xlabel="accuracy of a class")
        for name, colour in (("clean", _CLEAN), ("robust", _ROBUST)):
            axes.plot([], [], "o", color=colour, label=name)
        axes.plot([], [], "|", color="black", markersize=9, label="all classes")
        axes.plot([], [], "-", color="0.4", label="95 % interval of the worst class")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)

    def lines(self, measured: Json, findings: Json) -> list[str]:
        """The worst and the best class of each record."""
        return [
            f"{each['model']}, {each['title']}: "
            + "; ".join(
                f"{kind} {each[kind]['accuracy']:.1%}, worst {_words(each[kind], -1)}, best {_words(each[kind], 0)}"
                for kind in ("clean", "robust")
            )
            for each in findings["records"]
        ]


def _of(named: NamedRecord, labels: NDArray[np.int64], classes: Sequence[str]) -> Json:
    verdicts = np.array(named.record.verdicts)
    return {
        "model": model_name(named),
        "title": attack_title(named.record),
        "dataset": named.record.dataset,
        "n_examples": len(verdicts),
        "clean": _by_class(verdicts != MISCLASSIFIED, labels, classes),
        "robust": _by_class(verdicts == ROBUST, labels, classes),
    }


def _by_class(right: NDArray[np.bool_], labels: NDArray[np.int64], classes: Sequence[str]) -> Json:
    """Accuracies, the best class first; a class without an example is left out."""
    found = []
    for label, given in enumerate(classes):
        name = f"class {given}" if given.isdigit() else given
        own = right[labels == label]
        if len(own):
            low, high = wilson_interval(float(own.mean()), len(own))
            found.append({"class": name, "examples": len(own), "accuracy": float(own.mean()), "low": low, "high": high})
    return {"accuracy": float(right.mean()), "classes": sorted(found, key=lambda each: -each["accuracy"])}


def _words(kind: Json, place: int) -> str:
    each = kind["classes"][place]
    return f"{each['class']} {each['accuracy']:.1%} [{each['low']:.1%}, {each['high']:.1%}]"


def _draw_classes(axes: Axes, y: float, kind: Json, colour: str, *, above: bool) -> None:
    accuracies = [each["accuracy"] for each in kind["classes"]]
    worst = kind["classes"][-1]
    axes.hlines(y, worst["low"], worst["high"], color=colour, alpha=0.45, linewidth=2)
    axes.plot(
        accuracies,
        [y] * len(accuracies),
        "o",
        color=colour,
        alpha=0.6,
        markersize=4.5,
        markeredgewidth=0,
        clip_on=False,
    )
    axes.plot([kind["accuracy"]], [y], "|", color="black", markersize=9)
    axes.annotate(
        worst["class"],
        (worst["accuracy"], y),
        xytext=(0, 4 if above else -4),
        textcoords="offset points",
        ha="center",
        va="bottom" if above else "top",
        fontsize=7,
        color=colour,
    )
