"""The pages' HTML: one template a kind of page, filled from boards, cards and records."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from sam_bench import __version__
from sam_bench.leaderboard.boards import RANKS_EXPLAINED, Board, Row, carried_text
from sam_bench.leaderboard.entries import StoredEntry, headline_of
from sam_bench.leaderboard.labels import (
    count_text,
    examples_text,
    parameters_text,
    percent,
    radius_text,
    spelled,
)
from sam_bench.leaderboard.published import Published, of_board
from sam_bench.leaderboard.site.assets import assets
from sam_bench.leaderboard.site.charts import classes_plot, curves, fronts
from sam_bench.leaderboard.site.classes import LabelsOf, class_shares
from sam_bench.leaderboard.site.packing import Pieces
from sam_bench.proportions import PairedShares
from sam_bench.records import write_atomic

FOLDER = "site"
_MOST_CLASSES = 20  # shown of a data set with more: the least robust ones

STATES = {
    "claimed": "the numbers follow from the record's verdicts; nothing else was verified",
    "replayed": "every broken example was shown to be broken, so the robust accuracy is an upper bound",
    "audited": "AutoAttack was run again on random examples of those claimed robust, which gives a lower bound",
}


@dataclass(frozen=True)
class Content:
    """What the pages show.

    Args:
        boards: All boards, ranked.
        folder: The leaderboards folder; the pages go into `site/` inside, and link files relative to themselves.
        published: RobustBench's entries, to be shown beside ours.
        labels_of: Labels of a record's test images; None where they are not at hand.
    """

    boards: Sequence[Board]
    folder: Path
    published: Sequence[Published] = ()
    labels_of: LabelsOf = lambda record: None

    @property
    def site(self) -> Path:
        """Where the pages go."""
        return self.folder / FOLDER

    def models(self) -> list[tuple[StoredEntry, list[tuple[Board, Row]]]]:
        """Each model with its rows and their boards."""
        found: dict[Path, tuple[StoredEntry, list[tuple[Board, Row]]]] = {}
        for board in self.boards:
            for row in board.rows:
                found.setdefault(row.stored.path, (row.stored, []))[1].append((board, row))
        return list(found.values())

    def board_page(self, board: Board) -> Path:
        """Where the page of a board lies."""
        return self.site / "boards" / f"{board.key}.html"

    def model_page(self, stored: StoredEntry) -> Path:
        """Where the page of a model lies."""
        return self.site / "models" / stored.path.relative_to(self.folder).with_suffix(".html")


def write_site(content: Content) -> Path:
    """Write all pages and what they share, and remove pages of models and boards that are no more.

    Returns:
        The start page.
    """
    pages = dict(_pages(content))
    models = {path: text for path, text in pages.items() if path.is_relative_to(content.site / "models")}
    pieces = Pieces.of(_environment(), ("base.html.j2", "model.html.j2", "macros.html.j2"), models.values())
    pages |= {path: _packed(text, pieces) for path, text in models.items()}
    for name, text in {**assets(), "pieces.js": pieces.script()}.items():
        write_atomic(content.site / "assets" / name, text)
    for path, text in pages.items():
        write_atomic(path, text)
    for kind in ("boards", "models"):
        for old in (content.site / kind).rglob("*.html"):
            if old not in pages:
                old.unlink()
    return content.site / "index.html"


def _packed(page: str, pieces: Pieces) -> str:
    """The page with its body in the form that `board.js` puts together."""
    before, opening, rest = page.partition("<body>\n")
    inside, closing, after = rest.partition("</body>")
    script = f'<script type="application/json" id="packed">{pieces.packed(inside)}</script>'
    return f"{before}{opening}{script}<noscript>This page needs JavaScript.</noscript>\n{closing}{after}"


def _pages(content: Content) -> Iterable[tuple[Path, str]]:
    start = content.site / "index.html"
    yield start, _page(content, start, "start", models=len(content.models()))
    for board in content.boards:
        yield content.board_page(board), render_board(content, board)
    for stored, rows in content.models():
        path = content.model_page(stored)
        yield path, _page(content, path, "model", stored=stored, **_model(content, stored, rows))


def render_board(content: Content, board: Board) -> str:
    """The page of a board; RobustBench's entries stand where their robust accuracy puts them."""
    path = content.board_page(board)
    theirs = of_board(content.published, board)
    links = {str(row.stored.path): link_to(content.model_page(row.stored), path) for row in board.rows}
    ours = [(row.ranked, 100 * row.row.robust_accuracy, row) for row in board.rows]
    both = [*ours, *((True, each.robust, each) for each in theirs)]
    lines = sorted(both, key=lambda line: (not line[0], -line[1]))
    plots = fronts(board, theirs, links)
    return _page(content, path, "board", board=board, lines=lines, theirs=theirs, plots=plots)


def _model(content: Content, stored: StoredEntry, rows: list[tuple[Board, Row]]) -> dict[str, Any]:
    """What the page of a model shows that its template cannot say itself."""
    first, top = rows[0][1], headline_of(stored.entry)
    board, row = next((pair for pair in rows if pair[1].row == top), rows[0])
    test = content.labels_of(row.record)
    shares = class_shares(row.record, test) if test else []
    weights = stored.card_path().with_name(first.card.weights.file) if first.card else None
    recipe = first.card.recipe.model_dump(mode="json", exclude_defaults=True) if first.card else None
    return {
        "rows": rows,
        "board": board,
        "row": row,
        "card": first.card,
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100) if recipe else "",
        "weights": weights if weights and weights.is_file() else None,
        "curves": curves([each for _, each in rows]),
        "shares": shares[-_MOST_CLASSES:],
        "classes": len(shares),
        "classes_plot": classes_plot(shares[-_MOST_CLASSES:]) if shares else None,
        "neighbours": _neighbours(board, row),
    }


def _neighbours(board: Board, row: Row) -> list[tuple[Row, PairedShares]]:
    """The rows above and below on the board, with this row compared to each on the same images."""
    ranked = [each for each in board.rows if each.ranked]
    if not row.ranked:
        return []
    place = next(index for index, each in enumerate(ranked) if each is row)
    around = ranked[max(0, place - 1) : place] + ranked[place + 1 : place + 2]
    return [(other, PairedShares.of(row.robust, other.robust)) for other in around]


def _page(content: Content, path: Path, kind: str, **shown: Any) -> str:
    return (
        _environment()
        .get_template(f"{kind}.html.j2")
        .render(
            content=content,
            link=lambda target: link_to(target, path),
            shown=lambda target: Path(os.path.relpath(target, content.folder)).as_posix(),
            **shown,
        )
    )


def link_to(target: Path, page: Path) -> str:
    """The address of a file, relative to a page."""
    # A leading `./` and quoting keep a path from being read as a scheme, whatever it is called.
    return f"./{quote(Path(os.path.relpath(target, page.parent)).as_posix(), safe='/')}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sam_bench.leaderboard.site"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters.update(
        percent=percent,
        count=count_text,
        examples=examples_text,
        parameters=parameters_text,
        radius=radius_text,
        spelled=spelled,
        carried=carried_text,
        settings=lambda given: ", ".join(f"{name}={value}" for name, value in given.items() if value is not None),
        web=lambda link: link if link.startswith(("https://", "http://")) else "",
    )
    environment.globals.update(version=__version__, ranks_explained=RANKS_EXPLAINED, states=STATES)
    return environment
