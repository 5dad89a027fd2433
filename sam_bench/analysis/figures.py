"""One look for all figures, and files that are the same for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

# Okabe and Ito's colours: readers of every colour vision tell them apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A7500", "#56B4E9", "#7A4FBF", "#666666")

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sam-bench",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,  # a `$` in a name is a `$`
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "legend.frameon": False,
}


def logarithmic(axes: Axes) -> None:
    """A logarithmic x axis with plain numbers, as 0.2, 0.5, 1: powers would need mathematical text."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def rendered(draw: Callable[[Figure], None]) -> dict[str, bytes]:
    """A figure as SVG and PNG.

    Args:
        draw: Draws on the empty figure that it is given.

    Returns:
        File suffix (`svg`, `png`) to content.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        files = {}
        for suffix, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
            file = io.BytesIO()
            figure.savefig(file, format=suffix, dpi=160, metadata=metadata)
            files[suffix] = file.getvalue()
        return files
