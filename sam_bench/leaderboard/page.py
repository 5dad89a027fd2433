"""The page: one HTML file that needs nothing else, sorts, searches and filters, and links card and record."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sam_bench import __version__
from sam_bench.leaderboard.labels import count_text, examples_text, percent
from sam_bench.leaderboard.tables import HEADERS, Board, Row, carried_text

# Header -> how its cells sort, and what hovering over it says.
_COLUMNS: dict[str, tuple[str, str]] = {
    "#": ("number", "rank on its board by robust accuracy; – for other or fewer test examples"),
    "model": ("text", "name in the zoo"),
    "clean": ("number", "accuracy without an attack, in per cent, on the same examples"),
    "robust": ("number", "accuracy under the attack, in per cent"),
    "attack": ("text", "the attack"),
    "eps": ("number", "norm and radius of the attack's ball, inputs in [0, 1]"),
    "method": ("text", "how it was trained"),
    "architecture": ("text", "the network"),
    "epochs": ("number", "epochs behind the weights"),
    "training passes": ("number", "forward-backward passes per training example over the run, the attack's included"),
    "parameters": ("number", "trainable parameters"),
}


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and the number or text it sorts by."""

    text: str
    key: str | float
    numeric: bool


def render_page(boards: Sequence[Board], *, folder: Path, figures: Sequence[str], title: str) -> str:
    """The page's HTML.

    Args:
        boards: What to show.
        folder: The leaderboards folder, where the page will lie; links are relative to it.
        figures: SVG of each board, for use inside HTML (`figure.render_panels`).
        title: The page's heading.
    """
    environment = Environment(
        loader=PackageLoader("sam_bench.leaderboard", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(cells=cells, details=details)
    # Style and script are ours and stand as they are; everything else on the page is escaped.
    style, script = (environment.loader.get_source(environment, name)[0] for name in ("page.css.j2", "page.js.j2"))  # type: ignore[union-attr]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        title=title,
        boards=boards,
        columns=[(header, *_COLUMNS[header]) for header in HEADERS],
        folder=folder,
        figures=[Markup(figure) for figure in figures],
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'",
        models=len({(row.stored.path, row.model) for board in boards for row in board.rows}),
        version=__version__,
    )


def cells(row: Row, index: int) -> list[Cell]:
    """One cell a column of `HEADERS`; numbers sort by their unrounded value.

    Args:
        row: A line of a board.
        index: On the board, from 1.
    """
    evidence = row.entry.sam_bench
    keys: dict[str, float] = {
        "#": index,
        "clean": row.row.clean_accuracy,
        "robust": row.row.robust_accuracy,
        "eps": float(row.row.eps),
        "epochs": evidence.epochs,
        "training passes": evidence.passes or 0.0,
        "parameters": evidence.parameters,
    }
    return [
        Cell(text, keys.get(header, text.lower()), header in keys)
        for header, text in zip(HEADERS, row.cells(index), strict=True)
    ]


def details(row: Row, folder: Path) -> list[tuple[str, str, str]]:
    """What a row shows when opened: label, text, and a relative link or ''."""
    entry, record = row.entry, row.record
    low, high = row.interval()
    card, evidence = row.stored.card_path(), row.stored.record_path(row.row)
    settings = ", ".join(f"{key}={value}" for key, value in record.settings.items() if value is not None)
    after = ", ".join(f"{name} {percent(value)}" for name, value in record.accuracy_after.items())
    lines = [
        ("robust", f"{percent(row.row.robust_accuracy)} % of {examples_text(row.row.n_examples)} "
         f"(95 % interval {percent(low)} to {percent(high)})", ""),
        ("of a curve", carried_text(record), ""),
        ("after each attack", after if len(record.accuracy_after) > 1 else "", ""),
        ("evaluated by", f"{record.engine}{f' with {settings}' if settings else ''}, seed {record.seed}, "
         f"{count_text(record.seconds)} s on {record.device}", ""),
        ("evaluation command", record.command, ""),
        ("training command", row.train_command, ""),
        ("card", _shown(card, folder), _link(card, folder) if row.card_found else ""),
        ("record", _shown(evidence, folder), _link(evidence, folder)),
        ("entry", _shown(row.stored.path, folder), _link(row.stored.path, folder)),
        ("paper", entry.name, entry.link if entry.link.startswith(("https://", "http://")) else ""),
        ("authors", f"{entry.authors} · {entry.venue}", ""),
        ("checkpoint", f"SHA-256 {entry.sam_bench.checkpoint_sha256}", ""),
    ]  # fmt: skip
    return [line for line in lines if line[1]]


def _shown(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _link(path: Path, folder: Path) -> str:
    # A leading `./` and quoting keep a path from being read as a scheme, whatever it is called.
    return f"./{quote(_shown(path, folder), safe='/')}"
