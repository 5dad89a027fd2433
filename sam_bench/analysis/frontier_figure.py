"""The figure of `frontier`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D

from sam_bench.analysis.base import Json
from sam_bench.analysis.families import STANDARD
from sam_bench.analysis.figures import COLOURS
from sam_bench.analysis.point_labels import PointLabel, label_points
from sam_bench.leaderboard.labels import count_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_PANELS = 6  # attacks and radii; the numbers have all
_LARGEST, _SMALLEST = 150.0, 14.0  # area of a marker in square points
_GREY = "0.62"
_RULE_IS_FOR = "AT"


def draw_frontier(findings: Json, figure: Figure) -> None:
    """A panel for each attack and radius, and one for rho against eps for each family of which any corresponds.

    Args:
        findings: Of `Frontier.combine`.
        figure: Where to draw.
    """
    shown = findings["comparisons"][:_MOST_PANELS]
    series = _corresponding(shown)
    panels = len(shown) + len(series)
    columns = min(panels, 3 if panels > 4 else 2)
    rows = math.ceil(panels / columns)
    figure.set_size_inches(4.3 * columns, 3.5 * rows + 0.8)
    every = list(figure.subplots(rows, columns, squeeze=False).flat)
    points = [point for each in shown for point in each["points"]]
    colours, most = _colours(shown), max(point["passes"] for point in points)
    labels = [_draw_panel(axes, each, colours, most) for axes, each in zip(every, shown, strict=False)]
    for axes, (other, found) in zip(every[len(shown) :], series.items(), strict=False):
        _draw_corresponding(axes, other, found, findings["recalled_rule"] if other == _RULE_IS_FOR else None)
    for axes in every[panels:]:
        axes.set_visible(False)
    _legend(figure, points, colours, most)
    figure.draw_without_rendering()  # lays the panels out
    for axes, of_panel in zip(every, labels, strict=False):
        label_points(axes, of_panel)


def _curves(compared: Json) -> dict[str, list[Json]]:
    """Family to its points in order of strength; plain training is the first of those that have several."""
    families: dict[str, list[Json]] = {}
    for point in compared["points"]:
        families.setdefault(point["family"], []).append(point)
    start = families.get(STANDARD, [])
    return {name: (start + own if len(own) > 1 and name != STANDARD else own) for name, own in families.items()}


def _colours(shown: Sequence[Json]) -> dict[str, str]:
    """A colour for each family that is a curve, and for the others while there are colours."""
    sizes = Counter({name: len(own) for each in shown for name, own in _curves(each).items()})
    names = sorted(sizes, key=lambda name: (name != STANDARD, -sizes[name], name))
    coloured = names if len(names) <= len(COLOURS) else [n for n in names if sizes[n] > 1 or n == STANDARD]
    return {STANDARD: "black", **dict(zip([n for n in coloured if n != STANDARD], COLOURS, strict=False))}


def _area(passes: float, most: float) -> float:
    return max(_SMALLEST, _LARGEST * passes / most) if most > 0 else _SMALLEST


def _draw_panel(axes: Axes, each: Json, colours: dict[str, str], most: float) -> list[PointLabel]:
    """Draw front, curves and markers; the markers' labels are to be written when all panels are drawn."""
    front = sorted((100 * point["clean"], 100 * point["robust"]) for point in each["points"] if point["front"])
    axes.plot(*zip(*front, strict=True), color="0.75", linewidth=5, alpha=0.5, zorder=1, solid_capstyle="round")
    labels = []
    for family, points in sorted(_curves(each).items(), key=lambda item: item[0] in colours):
        colour = colours.get(family, _GREY)
        clean, robust = ([100 * point[key] for point in points] for key in ("clean", "robust"))
        if len(points) > 1:
            axes.plot(clean, robust, color=colour, linewidth=1.2, zorder=2)
        own = [point for point in points if point["family"] == family]
        for point in own:
            at, area = (100 * point["clean"], 100 * point["robust"]), _area(point["passes"], most)
            axes.scatter(*at, s=area, color=colour, edgecolor="white", linewidth=0.6, zorder=3)
            if len(own) > 1:
                text = point["strength"].split(" ")[-1]
            else:
                text = family if family not in colours and point["front"] else ""
            labels.append(PointLabel(text, at, area, colour if colour != _GREY else "0.45"))
    axes.set_title(f"{each['title']}, {each['n_examples']:,} images", fontsize=9)
    axes.set(xlabel="clean accuracy (%)", ylabel="robust accuracy (%)")
    axes.margins(0.1, 0.1)
    return labels


def _corresponding(shown: Sequence[Json]) -> dict[str, dict[str, list[Json]]]:
    """Family of adversarial training and title to the strengths of SAM that correspond to one of the family."""
    series: dict[str, dict[str, list[Json]]] = {}
    for each in shown:
        for one in each["corresponding"]:
            if one["family"] == "SAM" and "estimate" in one:
                series.setdefault(one["other"], {}).setdefault(each["title"], []).append(one)
    return series


def _draw_corresponding(axes: Axes, other: str, series: dict[str, list[Json]], rule: Json | None) -> None:
    for number, (title, found) in enumerate(series.items()):
        rho = np.array([each["value"] for each in found]) * 1.02 ** (number - len(series) / 2)  # side by side
        eps, low, high = (255 * np.array([each[key] for each in found]) for key in ("estimate", "low", "high"))
        axes.errorbar(
            rho,
            eps,
            yerr=[eps - low, high - eps],
            fmt="o-",
            color=COLOURS[(number + 4) % len(COLOURS)],
            label=title,
            markersize=4,
            linewidth=1.1,
            capsize=2,
        )
    if rule:
        rho = np.linspace(0, max(each["value"] for found in series.values() for each in found) * 1.1, 50)
        shape = 2 * rho**2 / (2 * rho**2 + 3)
        axes.plot(rho, 255 * rule["eta"] * shape, "--", color="0.5", label="rule recalled, eta fitted")
    axes.set_title(f"{other}'s eps that is as robust as SAM's rho", fontsize=9)
    axes.set(xlabel="rho of SAM", ylabel=f"eps of {other} (1/255)", xlim=(0, None), ylim=(0, None))
    axes.legend(fontsize=7)


def _legend(figure: Figure, points: Sequence[Json], colours: dict[str, str], most: float) -> None:
    def key(colour: str, area: float, label: str) -> Line2D:
        size = math.sqrt(area)
        return Line2D([], [], marker="o", linestyle="", color=colour, markersize=size, markeredgewidth=0, label=label)

    present = {point["family"] for point in points}
    keys = [key(colour, 36, name) for name, colour in colours.items() if name in present]
    if present - colours.keys():
        keys.append(key(_GREY, 36, "other methods"))
    keys.append(Line2D([], [], color="0.75", linewidth=5, alpha=0.5, label="front"))
    passes = sorted({point["passes"] for point in points})
    for value in dict.fromkeys((passes[0], passes[len(passes) // 2], passes[-1])):
        keys.append(key("0.8", _area(value, most), f"{count_text(value)} passes"))
    figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 8), fontsize=8)
