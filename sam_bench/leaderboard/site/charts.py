"""The plots, as Vega-Lite specifications. Colours of ink and paper come from the page, so both themes work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sam_bench.leaderboard.boards import Board, Row
from sam_bench.leaderboard.labels import AUTOATTACK, family, radius_text, spelled
from sam_bench.leaderboard.published import Published
from sam_bench.leaderboard.site.classes import ClassShare
from sam_bench.proportions import wilson_interval

Json = dict[str, Any]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
"""Okabe and Ito's colours without black and yellow, which one of the two themes swallows, and a grey."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
THEIRS = "RobustBench"

_HEIGHT = 300
_LEGEND = {"title": None, "orient": "bottom", "symbolOpacity": 1}
_NUMBERS_OF_A_MARK = [
    {"field": "model", "title": "model"},
    {"field": "method", "title": "method"},
    {"field": "rank", "title": "rank"},
    {"field": "clean", "title": "clean %", "format": ".2f"},
    {"field": "robust", "title": "robust %", "format": ".2f"},
    {"field": "passes", "title": "passes", "format": ",.0f"},
]
# The legend singles a method out; with shift, wheel and mouse zoom and move, and the page still scrolls without it.
_INTERACTION = [
    {"name": "shown", "select": {"type": "point", "fields": ["family"]}, "bind": "legend"},
    {
        "name": "zoom",
        "bind": "scales",
        "select": {
            "type": "interval",
            "zoom": "wheel![event.shiftKey]",
            "translate": "[pointerdown[event.shiftKey], window:pointerup] > window:pointermove!",
        },
    },
]


def fronts(board: Board, published: Sequence[Published], links: dict[str, str]) -> list[Json]:
    """Two plots of a board: robust accuracy over clean accuracy, and over training passes, each with its front.

    Args:
        board: Its ranked rows are shown.
        published: RobustBench's entries of the same board; their cost is not known.
        links: Address of each model's page, by the path of its entry.
    """
    points = [_point(row, links) for row in board.rows if row.ranked]
    theirs = [
        {"model": each.name, "method": each.paper, "family": THEIRS, "clean": each.clean, "robust": each.robust}
        for each in published
    ]
    families = _families(points) + [THEIRS] * bool(theirs)
    paid = [point for point in points if point["passes"] is not None]
    passes = [point["passes"] for point in paid]
    over_decades = bool(passes) and min(passes) > 0 and max(passes) > 8 * min(passes)
    return [
        _front(
            _with_front(points + theirs, "clean", higher=True),
            families,
            _axis(
                "clean", "clean accuracy (%)", scale={"domain": _domain([point["clean"] for point in points + theirs])}
            ),
            f"Robust over clean accuracy of {len(points) + len(theirs)} models on {board.title}",
        ),
        _front(
            _with_front(paid, "passes", higher=False),
            families,
            _axis(
                "passes",
                "training passes per example",
                scale=({"type": "log"} if over_decades else {"zero": False}) | {"nice": False, "padding": 16},
                axis={"format": "~s", "tickCount": 6},
            ),
            f"Robust accuracy over training cost of {len(paid)} models on {board.title}",
        ),
    ]


def _point(row: Row, links: dict[str, str]) -> Json:
    return {
        "model": row.model,
        "method": row.method,
        "family": family(row.method),
        "clean": _percent(row.row.clean_accuracy),
        "robust": _percent(row.row.robust_accuracy),
        **_interval(row.row.robust_accuracy, row.row.n_examples),
        "passes": row.entry.sam_bench.passes,
        "rank": row.rank_text,
        "href": links[str(row.stored.path)],
    }


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _interval(share: float, examples: int) -> Json:
    """The ends of a share's 95 % Wilson interval, in per cent."""
    low, high = wilson_interval(share, examples)
    return {"low": _percent(low), "high": _percent(high)}


def _axis(field: str, title: str, **more: Any) -> Json:
    """A channel for a number."""
    return {"field": field, "type": "quantitative", "title": title, **more}


def _looks(field: str, names: Sequence[str], legend: Json) -> tuple[Json, Json]:
    """Colour and shape of each name; more names than there are colours repeat in other pairs."""
    shown = {"field": field, "type": "nominal", "legend": legend}
    colours = [COLOURS[at % len(COLOURS)] for at in range(len(names))]
    shapes = [SHAPES[(at + at // len(COLOURS)) % len(SHAPES)] for at in range(len(names))]
    colour, shape = ({"scale": {"domain": list(names), "range": looks}} for looks in (colours, shapes))
    return shown | colour, shown | shape


def _families(points: Sequence[Json]) -> list[str]:
    names = {point["family"] for point in points}
    return sorted(names, key=lambda name: (name != "Standard", name.lower()))


def _with_front(points: list[Json], cost: str, *, higher: bool) -> list[Json]:
    """Each point with whether it is on the front: no other is at least as good in both, and better in one."""
    best = float("-inf")
    found = []
    for point in sorted(points, key=lambda each: (-each[cost] if higher else each[cost], -each["robust"])):
        found.append(point | {"front": point["robust"] > best})
        best = max(best, point["robust"])
    return found


def _domain(shares: Sequence[float]) -> list[float]:
    """Ends of an axis of per cent: around the values, at least ten points apart."""
    low, high = min(shares, default=0), max(shares, default=100)
    margin = max(0.06 * (high - low), 5 - (high - low) / 2)
    return [max(-1.0, low - margin), min(101.0, high + margin)]


def _front(points: list[Json], families: list[str], x: Json, description: str) -> Json:
    shares = [point[key] for point in points for key in ("robust", "low", "high") if key in point]
    y = _axis("robust", "robust accuracy (%)", scale={"domain": _domain(shares)})
    colour, shape = _looks("family", families, _LEGEND | {"columns": {"expr": "max(1, floor(width / 130))"}})
    dimmed = {"condition": {"param": "shown", "value": 1}, "value": 0.12}
    return _chart(
        description,
        points,
        [
            {
                "transform": [{"filter": "datum.front"}],
                "mark": {"type": "line", "strokeDash": [5, 4], "strokeWidth": 1.5, "interpolate": "linear"},
                "encoding": {"x": x, "y": y, "order": {"field": x["field"]}, "color": {"value": "#8C8C8C"}},
            },
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "rule", "strokeWidth": 1.2, "opacity": 0.45},
                "encoding": {
                    "x": x,
                    "y": y | {"field": "low"},
                    "y2": {"field": "high"},
                    "color": colour,
                    "opacity": {"condition": {"param": "shown", "value": 0.45}, "value": 0.05},
                },
            },
            {
                "params": _INTERACTION,
                "mark": {"type": "point", "filled": True, "size": 90, "strokeWidth": 1.5, "cursor": "pointer"},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": colour,
                    "shape": shape,
                    "opacity": dimmed,
                    "href": {"field": "href"},
                    "tooltip": _NUMBERS_OF_A_MARK,
                },
            },
        ],
    )


def curves(rows: Sequence[Row]) -> list[Json]:
    """Robust accuracy of one model over the radius, a plot a norm, a line an attack; at radius 0 the clean accuracy.

    Args:
        rows: All rows of the model, of any boards.
    """
    return [_curve([row for row in rows if row.row.norm == norm]) for norm in dict.fromkeys(r.row.norm for r in rows)]


def _curve(rows: Sequence[Row]) -> Json:
    norm = rows[0].row.norm
    unit = 255 if norm == "Linf" else 1
    attacks = sorted({row.row.attack for row in rows}, key=lambda name: (name != AUTOATTACK, name))
    points = []
    for attack in attacks:
        own = [row for row in rows if row.row.attack == attack]
        widest = max(own, key=lambda row: row.row.n_examples)
        shares = [(0.0, "0", widest.row.clean_accuracy, widest.row.n_examples)]
        shares += [(float(r.row.eps), radius_text(r.row.eps), r.row.robust_accuracy, r.row.n_examples) for r in own]
        for eps, text, share, count in sorted(shares):
            point = {"attack": spelled(attack), "x": round(unit * eps, 6), "eps": text, "robust": _percent(share)}
            points.append(point | _interval(share, count))
    names = [spelled(attack) for attack in attacks]
    colour, shape = _looks("attack", names, _LEGEND)
    title = f"eps, {norm}" + (" (in 1/255)" if unit == 255 else "")
    x = _axis("x", title, axis={"values": sorted({0.0, *(point["x"] for point in points)}), "format": ".3~g"})
    y = _axis("robust", "accuracy (%)", scale={"domain": [0, 100]})
    tooltip = [
        {"field": "attack", "title": "attack"},
        {"field": "eps", "title": f"eps, {norm}"},
        {"field": "robust", "title": "robust %", "format": ".2f"},
        {"field": "low", "title": "from", "format": ".2f"},
        {"field": "high", "title": "to", "format": ".2f"},
    ]
    return _chart(
        f"Accuracy over the radius of the {norm} ball under {', '.join(names)}",
        points,
        [
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y, "color": colour}},
            {
                "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.5},
                "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, "color": colour},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": tooltip},
            },
        ],
    )


def classes_plot(shares: Sequence[ClassShare]) -> Json:
    """Clean and robust accuracy of each class, the most robust class first."""
    kinds = {"domain": ["clean", "robust"], "range": [COLOURS[0], COLOURS[1]]}
    values = []
    for each in shares:
        for kind, share in (("clean", each.clean), ("robust", each.robust)):
            value = {"class": each.name, "kind": kind, "share": _percent(share)}
            values.append(value | _interval(share, each.examples))
    x = _axis("share", "accuracy (%)", scale={"domain": [0, 100]})
    y = {"field": "class", "type": "nominal", "title": None, "sort": None}  # as they come
    kind_field = {"field": "kind", "type": "nominal", "legend": _LEGEND}
    colour = kind_field | {"scale": kinds}
    shape = kind_field | {"scale": kinds | {"range": ["circle", "diamond"]}}
    return _chart(
        "Clean and robust accuracy of each class",
        values,
        [
            {
                "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.5},
                "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}, "y": y, "color": colour},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": colour,
                    "shape": shape,
                    "tooltip": [
                        {"field": "class", "title": "class"},
                        {"field": "kind", "title": "accuracy"},
                        {"field": "share", "title": "%", "format": ".2f"},
                    ],
                },
            },
        ],
        height={"step": 24},
    )


def _chart(description: str, values: Sequence[Json], layers: Sequence[Json], height: int | Json = _HEIGHT) -> Json:
    return {
        "description": description,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": layers,
        "data": {"values": values},  # last: what comes before is the same on many pages
    }
