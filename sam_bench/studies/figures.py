"""The figures of a report: robust against clean accuracy at equal cost, and robust accuracy over the radius."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sam_bench.analysis.figures import COLOURS, rendered
from sam_bench.analysis.point_labels import PointLabel, label_points
from sam_bench.records import Radius
from sam_bench.studies.jobs import STANDARD

Json = dict[str, Any]

_FRONTIER = ("1/255", "2/255")
_SIZE = 30.0  # points squared of a marker, for the passes of `standard`


def frontier(numbers: Json, evaluation: str) -> dict[str, bytes] | None:
    """Clean against robust accuracy, the families as curves, passes as size; None if there is nothing to draw."""
    rows = {name: row for name, row in numbers["rows"].items() if _at(row, evaluation, _FRONTIER[0])}
    return rendered(partial(_draw_frontier, rows, evaluation)) if STANDARD in rows else None


def _draw_frontier(rows: dict[str, Json], evaluation: str, figure: Figure) -> None:
    figure.set_size_inches(9.6, 4.6)
    looks, families = family_looks(rows), _families(rows)
    panels: Sequence[Axes] = figure.subplots(1, 2)
    points = [{name: at for name in rows if (at := _at(rows[name], evaluation, eps))} for eps in _FRONTIER]
    for axes, eps, found in zip(panels, _FRONTIER, points, strict=True):
        for family, members in families.items():
            curve = [found[name] for name in members if name in found]
            if family != STANDARD and len(curve) > 1:
                axes.plot(*zip(*curve, strict=True), color=looks[family][0], linewidth=1.2, zorder=2)
        for name, (x, y) in found.items():
            colour, marker = looks[rows[name]["family"]]
            area = _area(rows, name)
            axes.scatter(x, y, s=area, color=colour, marker=marker, edgecolors="white", linewidths=0.6, zorder=3)
        axes.set_xlabel("clean accuracy, %")
        axes.set_ylabel(f"robust accuracy, %, {evaluation} at {eps}")
        axes.margins(0.12)
    lines = [
        Line2D([], [], color=colour, marker=marker, linestyle="-", label=name)
        for name, (colour, marker) in looks.items()
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=min(5, len(lines)), fontsize=8)
    figure.draw_without_rendering()  # lays the panels out
    for axes, found in zip(panels, points, strict=True):
        label_points(axes, [PointLabel(_called(rows, name), at, _area(rows, name)) for name, at in found.items()])


def _called(rows: dict[str, Json], name: str) -> str:
    """On a curve, a row is called by its strength. One that is alone in its family has its name in the legend."""
    family = rows[name]["family"]
    if family == STANDARD:
        return name
    alone = sum(row["family"] == family for row in rows.values()) == 1
    return "" if alone else str(rows[name]["strength"])


def _area(rows: dict[str, Json], name: str) -> float:
    """Of a marker, in square points."""
    return float(_SIZE * rows[name]["passes"] / rows[STANDARD]["passes"])


def curves(numbers: Json, evaluations: Sequence[str]) -> dict[str, bytes] | None:
    """Robust accuracy over the radius, a panel for each evaluation; None if there is nothing to draw."""
    drawn = [each for each in evaluations if any(each in row["evaluations"] for row in numbers["rows"].values())]
    return rendered(partial(_draw_curves, numbers["rows"], drawn)) if drawn else None


def _draw_curves(rows: dict[str, Json], evaluations: Sequence[str], figure: Figure) -> None:
    figure.set_size_inches(4.8 * len(evaluations), 4.6)
    main = [name for name, row in rows.items() if row["seeds"] == "main"]
    for axes, evaluation in zip(figure.subplots(1, len(evaluations), squeeze=False)[0], evaluations, strict=True):
        for name, colour in zip(main, [*COLOURS, "#1d2330", "#B65C95"], strict=False):
            found = rows[name]["evaluations"].get(evaluation)
            if found is None:
                continue
            radii = [0.0, *(255 * float(Radius(eps)) for eps in found["radii"])]
            values = [found["clean"]["mean"], *(each["mean"] for each in found["radii"].values())]
            axes.plot(radii, values, marker="o", markersize=3, color=colour, label=name)
        axes.set_xlabel(f"radius in levels of 255, {evaluation}")
        axes.set_ylabel("accuracy, %")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)


def family_looks(rows: dict[str, Json]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each family, no two alike; strength 0 is black."""
    families = [family for family in _families(rows) if family != STANDARD]
    looks = [(colour, marker) for marker in "os^" for colour in COLOURS]
    return {STANDARD: ("#1d2330", "o")} | dict(zip(families, looks, strict=False))


def _families(rows: dict[str, Json]) -> dict[str, list[str]]:
    """Rows by family in order of strength; every curve starts at `standard`."""
    found: dict[str, list[str]] = {}
    for name, row in rows.items():
        found.setdefault(row["family"], [] if row["family"] == STANDARD else [STANDARD]).append(name)
    return {
        family: sorted(members, key=lambda name: 0.0 if name == STANDARD else float(Radius(rows[name]["strength"])))
        for family, members in found.items()
    }


def _at(row: Json, evaluation: str, eps: str) -> tuple[float, float] | None:
    """Clean and robust accuracy on the same images."""
    found = row["evaluations"].get(evaluation)
    if found is None or eps not in found["radii"]:
        return None
    return found["clean"]["mean"], found["radii"][eps]["mean"]
