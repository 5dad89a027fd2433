"""The figure: clean against robust accuracy, marker size = training passes, one colour a method."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sam_bench.leaderboard.boards import Board, Row
from sam_bench.leaderboard.labels import count_text, examples_text, family
from sam_bench.leaderboard.placement import Box, Marker, needs_line, place_labels

MAX_PANELS = 6
_MOST_LABELS = 30  # a panel; the first rows have them, and more would cover one another
# Okabe and Ito's colours, told apart by readers of every colour vision; darkened where contrast needs it.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B65C95", "#8A7500", "#3A9AD9", "#7A4FBF", "#666666")
_INK, _FAINT, _PAPER = "#1d2330", "#8b93a1", "#fefdfe"
_LARGEST, _SMALLEST = 420.0, 28.0
# Inches.
_PANEL_WIDTH, _PANEL_HEIGHT = 3.55, 3.0
_LEFT, _RIGHT, _ABOVE, _BELOW, _LEGEND = 0.78, 0.16, 0.42, 0.58, 0.76
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sam-bench",  # the same rows give the same file
    "svg.fonttype": "path",
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,  # a `$` in a name is a `$`
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def _passes(row: Row) -> float:
    """Training passes; 0, and with it the smallest marker, where they are not known."""
    return row.entry.sam_bench.passes or 0.0


@dataclass(frozen=True)
class _Scale:
    """What colours and sizes mean, the same in every panel."""

    colours: dict[str, str]
    most: float

    @classmethod
    def of(cls, boards: Sequence[Board]) -> _Scale:
        rows = [row for board in boards for row in board.rows]
        families = sorted({family(row.method) for row in rows}, key=lambda name: (name != "Standard", name.lower()))
        colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(families)}
        return cls(colours, max(_passes(row) for row in rows))

    def colour(self, row: Row) -> str:
        return self.colours[family(row.method)]

    def area(self, passes: float) -> float:
        """Marker area in square points, proportional to the passes down to a smallest that can be seen."""
        return max(_SMALLEST, _LARGEST * passes / self.most) if self.most > 0 else _SMALLEST


def render(boards: Sequence[Board]) -> tuple[str, bytes]:
    """The figure as SVG text and PNG bytes, a panel a board (the first six), of the rows that have a rank.

    Args:
        boards: At least one, each with at least one row.
    """
    # What is over other images does not compare: its point would lie elsewhere for that alone.
    boards = [replace(board, rows=tuple(row for row in board.rows if row.ranked)) for board in boards]
    with _drawing():
        figure = _draw(boards[:MAX_PANELS], _Scale.of(boards))
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
        return _svg(figure), png.getvalue()


@contextmanager
def _drawing() -> Iterator[None]:
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A sign that the font lacks is drawn as a box; the tables have it as it is.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(text, format="svg", metadata=nothing)
    return text.getvalue()


def _draw(boards: Sequence[Board], scale: _Scale) -> Figure:
    columns = 2 if len(boards) in (2, 4) else min(len(boards), 3)
    lines = math.ceil(len(boards) / columns)
    cell_width, cell_height = _LEFT + _PANEL_WIDTH + _RIGHT, _ABOVE + _PANEL_HEIGHT + _BELOW
    if columns == 1:
        cell_width += 0.9  # alone it may be wider
    width, height = columns * cell_width, lines * cell_height + _LEGEND
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    panels = []
    for number in range(len(boards)):
        line, column = divmod(number, columns)
        left = column * cell_width + _LEFT
        bottom = _LEGEND + (lines - 1 - line) * cell_height + _BELOW
        inner = cell_width - _LEFT - _RIGHT
        axes = figure.add_axes((left / width, bottom / height, inner / width, _PANEL_HEIGHT / height))
        panels.append(axes)
    for axes, board in zip(panels, boards, strict=True):
        _panel(axes, board, scale)
    for axes, board in zip(panels, boards, strict=True):
        _labels(figure, axes, board, scale)
    _legends(figure, [row for board in boards for row in board.rows], scale)
    return figure


def _panel(axes: Axes, board: Board, scale: _Scale) -> None:
    axes.patch.set_visible(False)
    intervals = [(100 * low, 100 * high) for low, high in (row.interval() for row in board.rows)]
    axes.set_xlim(*_limits([100 * row.row.clean_accuracy for row in board.rows]))
    axes.set_ylim(*_limits([bound for interval in intervals for bound in interval]))
    title = f"{board.short_title}"
    axes.set_title(title if len(title) <= 48 else f"{title[:47]}…", fontsize=10.5, loc="left", fontweight="bold")
    axes.set_xlabel(f"clean accuracy ({examples_text(board.examples)})")
    axes.set_ylabel("robust accuracy")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(_Percentages())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.grid(color=_FAINT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    # Small markers last, so that none hides under a large one.
    order = sorted(zip(board.rows, intervals, strict=True), key=lambda pair: -_passes(pair[0]))
    for row, (low, high) in order:
        x, y = 100 * row.row.clean_accuracy, 100 * row.row.robust_accuracy
        colour, area = scale.colour(row), scale.area(_passes(row))
        axes.vlines(x, low, high, color=colour, alpha=0.3, linewidth=1.1, zorder=2)
        axes.scatter([x], [y], s=area, color=colour, alpha=0.88, edgecolor=_PAPER, linewidth=0.9, zorder=3)


class _Percentages(MaxNLocator):
    """Ticks at round numbers between 0 and 100 %."""

    def __init__(self) -> None:
        super().__init__(nbins=6, steps=[1, 2, 2.5, 5, 10])

    def tick_values(self, vmin: float, vmax: float) -> Any:
        return [tick for tick in super().tick_values(vmin, vmax) if -1e-9 <= tick <= 100 + 1e-9]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """An axis' range around the values: room for markers and labels, at least ten points wide."""
    low, high = min(values), max(values)
    span = max(high - low, 10.0)
    middle = (low + high) / 2
    low, high = middle - 0.64 * span, middle + 0.64 * span
    # Not far beyond what an accuracy can be: a little, so that a marker at 0 or 100 % is whole.
    return max(low, -0.08 * span), min(high, 100 + 0.08 * span)


def _labels(figure: Figure, axes: Axes, board: Board, scale: _Scale) -> None:
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    texts, markers, intervals = [], [], []
    labelled = board.rows[:_MOST_LABELS]
    for row, name in zip(labelled, _names(labelled), strict=True):
        x, y = axes.transData.transform((100 * row.row.clean_accuracy, 100 * row.row.robust_accuracy))
        low, high = (axes.transData.transform((0, 100 * bound))[1] for bound in row.interval())
        text = axes.text(0, 0, name, fontsize=8.5, color=_INK, ha="left", va="bottom", zorder=4)
        extent = text.get_window_extent(renderer)
        radius = math.sqrt(scale.area(_passes(row)) / math.pi) * figure.dpi / 72
        texts.append(text)
        markers.append(Marker(x, y, radius, extent.width, extent.height))
        intervals.append(Box(x - 1, low, x + 1, high))
    frame = axes.get_window_extent(renderer)
    boxes = place_labels(markers, Box(frame.x0 + 2, frame.y0 + 2, frame.x1, frame.y1), intervals)
    to_axes = axes.transAxes.inverted()
    for index, (text, box, marker) in enumerate(zip(texts, boxes, markers, strict=True)):
        left, bottom = to_axes.transform((box.x0, box.y0))
        text.set_transform(axes.transAxes)
        text.set_position((left, bottom))
        if needs_line(marker, box, markers[:index] + markers[index + 1 :]):
            points = to_axes.transform([box.nearest(marker.x, marker.y), (marker.x, marker.y)])
            line = Line2D(points[:, 0], points[:, 1], color=scale.colour(board.rows[index]), transform=axes.transAxes)
            line.set(linewidth=0.8, alpha=0.8, zorder=2.5)
            axes.add_line(line)


def _names(rows: Sequence[Row]) -> list[str]:
    """The method where it tells the rows apart, the model's name where it does not; long ones cut."""
    methods = [row.method for row in rows]
    names = [row.method if methods.count(row.method) == 1 else row.model for row in rows]
    return [name if len(name) <= 34 else f"{name[:33]}…" for name in names]


def _legends(figure: Figure, rows: Sequence[Row], scale: _Scale) -> None:
    """Below the panels: on the left the methods, on the right the passes that marker sizes stand for."""
    present = {family(row.method) for row in rows}
    passes = sorted({_passes(row) for row in rows})
    shown = passes if len(passes) <= 3 else [passes[0], passes[len(passes) // 2], passes[-1]]
    methods = [
        _key(colour, 49.0, name if len(name) <= 16 else f"{name[:15]}…")
        for name, colour in scale.colours.items()
        if name in present
    ]
    sizes = [_key(_FAINT, scale.area(value), count_text(value)) for value in shown]
    margin = 0.2 / figure.get_figwidth()
    common: dict[str, Any] = {
        "frameon": False,
        "fontsize": 9,
        "title_fontsize": 9,
        "alignment": "left",
        "handletextpad": 0.6,
        "columnspacing": 1.5,
        "borderpad": 0.1,
        "handleheight": 1.9,
        "labelspacing": 0.8,
    }
    bottom = 0.04 / figure.get_figheight()
    columns = max(1, int(figure.get_figwidth() - 2.8))
    common |= {"handles": methods, "title": "method", "ncols": min(len(methods), columns), "handlelength": 1.2}
    figure.legend(loc="lower left", bbox_to_anchor=(margin, bottom), **common)
    common |= {"handles": sizes, "title": "training passes per example", "ncols": len(sizes), "handlelength": 2.2}
    figure.legend(loc="lower right", bbox_to_anchor=(1 - margin, bottom), **common)


def _key(colour: str, area: float, label: str) -> Line2D:
    return Line2D(
        [], [], marker="o", linestyle="", color=colour, markersize=math.sqrt(area), markeredgewidth=0, label=label
    )
