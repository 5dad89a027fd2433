"""Labels beside the markers of a plot, where they can be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes

from sam_bench.leaderboard.placement import Box, Marker, place_labels


@dataclass(frozen=True)
class PointLabel:
    """The text of a marker, which may be empty: then the marker is only kept free of others' texts.

    Attributes:
        text: What to write.
        at: The marker's centre, in the units of the axes.
        area: The marker's, in square points.
        colour: The text's.
    """

    text: str
    at: tuple[float, float]
    area: float
    colour: str = "black"


def label_points(axes: Axes, labels: Sequence[PointLabel]) -> None:
    """Write each label beside its marker, where it covers neither markers nor curves nor other labels.

    Args:
        axes: A plot whose markers and curves are drawn and laid out (`Figure.draw_without_rendering`).
        labels: One for every marker.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    texts, markers = [], []
    for label in labels:
        text = axes.text(0, 0, label.text, transform=axes.transAxes, fontsize=8, zorder=4, color=label.colour)
        extent = text.get_window_extent()
        x, y = axes.transData.transform(label.at)
        radius = math.sqrt(label.area / math.pi) * figure.dpi / 72
        texts.append(text)
        markers.append(Marker(x, y, radius, extent.width, extent.height))
    dots = [dot for line in axes.lines for dot in _dots(axes.transData.transform(line.get_xydata()))]
    frame = axes.get_window_extent()
    boxes = place_labels(markers, Box(frame.x0, frame.y0, frame.x1, frame.y1), dots)
    for text, box in zip(texts, boxes, strict=True):
        text.set(position=axes.transAxes.inverted().transform((box.x0, box.y0)), va="bottom")


def _dots(corners: np.ndarray) -> list[Box]:
    """Small boxes along a curve, in pixels."""
    if len(corners) < 2:
        return []
    along = np.concatenate([np.linspace(start, end, 40) for start, end in pairwise(corners)])
    return [Box(x - 2, y - 2, x + 2, y + 2) for x, y in along]
