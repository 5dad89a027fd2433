"""Overlap: which model holds which images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sam_bench.analysis.base import ANALYSES, Json, NamedRecord, RecordAnalysis
from sam_bench.analysis.comparisons import about, comparisons, model_name
from sam_bench.errors import InputError
from sam_bench.leaderboard.labels import percent
from sam_bench.proportions import PairedShares
from sam_bench.records import MISCLASSIFIED, ROBUST

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_COMPARISONS = 6  # in a figure; the numbers have all
_MOST_NUMBERS = 8  # models up to which each field of the figure has its number written in it
_MOST_LINES = 12  # pairs of a comparison in the text


@ANALYSES.register("overlap")
class Overlap(RecordAnalysis):
    """Verdicts of several models on the same images, pair by pair.

    A model *holds* an image if its verdict is `robust`. The difference of two robust accuracies on the same images has
    a smaller standard error than two accuracies on different images: images that both hold or both lose say nothing
    about it (McNemar 1947, Psychometrika 12(2)).
    """

    summary = "which images each model holds that another one loses, and the paired difference"

    def combine(
        self, records: list[NamedRecord], labels: Mapping[int, Tensor] | None, classes: tuple[str, ...]
    ) -> Json:
        """Every pair of models that were asked the same."""
        found = [_compared(each) for each in comparisons(records) if len(each) > 1]
        if not found:
            raise InputError(
                "no two of the records are of the same attack, norm and radius on the same images; "
                "evaluate two models with the same attack and `n_examples`"
            )
        return {"comparisons": found}

    def draw(self, measured: Json, findings: Json, figure: Figure) -> None:
        """Two fields of colour a comparison: what the row holds and the column loses, and Jaccard's index."""
        shown = findings["comparisons"][:_MOST_COMPARISONS]
        largest = max(len(each["models"]) for each in shown)
        cell = max(0.22, 0.62 - 0.05 * largest)
        side = max(1.6, cell * largest)
        figure.set_size_inches(2 * side + 4.2, len(shown) * (side + 1.9))
        rows = figure.subplots(len(shown), 2, squeeze=False)
        for (left, right), each in zip(rows, shown, strict=True):
            _draw_held(left, each)
            _draw_jaccard(right, each)

    def lines(self, measured: Json, findings: Json) -> list[str]:
        """A sentence a pair, the largest differences first."""
        said = []
        for each in findings["comparisons"]:
            said.append(f"{each['title']}, {each['n_examples']:,} images:")
            pairs = sorted(each["pairs"], key=lambda pair: -abs(pair["difference"]))
            said += [f"  {_sentence(pair)}" for pair in pairs[:_MOST_LINES]]
            if len(pairs) > _MOST_LINES:
                said.append(f"  … and {len(pairs) - _MOST_LINES} pairs more, in the numbers")
        return said


def _compared(records: Sequence[NamedRecord]) -> Json:
    verdicts = [each.record.verdicts for each in records]
    held = np.array([[verdict == ROBUST for verdict in line] for line in verdicts])
    wrong = np.array([[verdict == MISCLASSIFIED for verdict in line] for line in verdicts])
    order = sorted(range(len(held)), key=lambda row: -int(held[row].sum()))
    names = [model_name(each) for each in records]
    return {
        **about(records),
        "models": [names[row] for row in order],
        "holds": [int(held[row].sum()) for row in order],
        "held_by_all": int(held.all(axis=0).sum()),
        "held_by_none": int((~held.any(axis=0)).sum()),
        "pairs": [
            {"a": names[a], "b": names[b], **_pair(held[a], held[b], wrong[a], wrong[b])}
            for place, a in enumerate(order)
            for b in order[place + 1 :]
        ],
    }


def _pair(a: NDArray[np.bool_], b: NDArray[np.bool_], wrong_a: NDArray[np.bool_], wrong_b: NDArray[np.bool_]) -> Json:
    """What two models hold, bool [images] each; `wrong`: misclassified without any attack."""
    paired = PairedShares.of(a, b)
    both, either = int((a & b).sum()), int((a | b).sum())
    return {
        "both": both,
        "only_a": paired.only_a,
        "only_a_wrong_clean": int((a & ~b & wrong_b).sum()),
        "only_b": paired.only_b,
        "only_b_wrong_clean": int((b & ~a & wrong_a).sum()),
        "neither": paired.count - either,
        "difference": 100 * paired.difference,
        "standard_error": 100 * paired.standard_error,
        "jaccard": both / either if either else 1.0,
    }


def _sentence(pair: Json) -> str:
    return (
        f"{pair['a']} less {pair['b']}: {pair['difference']:+.2f} ± {pair['standard_error']:.2f} points; "
        f"holds {pair['only_a']:,} that the other loses, loses {pair['only_b']:,} that the other holds"
    )


def _matrix(each: Json, of_pair: Iterable[tuple[Any, Any]], diagonal: float) -> NDArray[np.float64]:
    """A field for each ordered pair of models: for each pair the value of (a, b) and that of (b, a)."""
    place = {name: index for index, name in enumerate(each["models"])}
    values = np.full((len(place), len(place)), diagonal)
    for pair, (there, back) in zip(each["pairs"], of_pair, strict=True):
        a, b = place[pair["a"]], place[pair["b"]]
        values[a, b], values[b, a] = there, back
    return values


def _draw_held(axes: Axes, each: Json) -> None:
    n = each["n_examples"]
    counts = [(pair["only_a"], pair["only_b"]) for pair in each["pairs"]]
    values = _matrix(each, counts, math.nan)
    _field(axes, each, 100 * values / n, [[f"{v:,.0f}" for v in line] for line in values], "Blues")
    axes.set_title(f"{each['title']}: images that the row holds\nand the column loses (of {n:,})", fontsize=9)
    axes.set_yticks(range(len(each["models"])), [_with_accuracy(each, row) for row in range(len(each["models"]))])


def _draw_jaccard(axes: Axes, each: Json) -> None:
    values = _matrix(each, [(pair["jaccard"], pair["jaccard"]) for pair in each["pairs"]], math.nan)
    _field(axes, each, values, [[f"{v:.2f}" for v in line] for line in values], "Greens")
    axes.set_title("held by both, as a share of\nthose held by either (Jaccard)", fontsize=9)
    axes.set_yticks([])


def _field(axes: Axes, each: Json, values: NDArray[np.float64], texts: list[list[str]], colours: str) -> None:
    image = axes.imshow(values, cmap=colours)
    axes.grid(visible=False)
    turned = 40 if len(values) <= _MOST_NUMBERS else 90
    axes.set_xticks(range(len(values)), each["models"], rotation=turned, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    if len(values) > _MOST_NUMBERS:
        figure = axes.get_figure()
        assert figure is not None
        bar = figure.colorbar(image, ax=axes, shrink=0.7)
        bar.ax.set_title("% of images" if colours == "Blues" else "index", fontsize=7)
        return
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for row, column in np.argwhere(~np.isnan(values)):
        colour = "white" if values[row, column] > middle else "black"
        axes.text(column, row, texts[row][column], ha="center", va="center", color=colour, fontsize=8)


def _with_accuracy(each: Json, row: int) -> str:
    return f"{each['models'][row]}  {percent(each['holds'][row] / each['n_examples'])} %"
