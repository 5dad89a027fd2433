"""`build_leaderboard`: from a folder of entries to tables, page and figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_bench.errors import InputError
from sam_bench.leaderboard.entries import read_entries
from sam_bench.leaderboard.page import render_page
from sam_bench.leaderboard.tables import Board, Row, csv_text, latex, make_boards, markdown
from sam_bench.records import write_atomic


@dataclass(frozen=True)
class BuiltLeaderboard:
    """What building found and wrote.

    Attributes:
        boards: Rows that compare, ranked; `tables.plain_table` makes text of one.
        paths: The written file of each form: "md", "tex", "csv", "html", "svg", "png".
    """

    boards: list[Board]
    paths: dict[str, Path]

    @property
    def rows(self) -> list[Row]:
        """Every row of every board."""
        return [row for board in self.boards for row in board.rows]


def build_leaderboard(
    folder: Path | str, *, zoo: Path | str | None = None, title: str = "sam-bench leaderboard"
) -> BuiltLeaderboard:
    """Read every entry of a leaderboards folder and write `leaderboard.md|.tex|.csv|.html|.svg|.png` into it.

    Every entry is held against its records and, where it is at hand, its card first. All forms are
    made before the first is written, and each is written whole or not at all.

    Args:
        folder: The leaderboards folder, `<dataset>/<threat>/<name>.json` inside.
        zoo: Folder of the zoo with the cards; default `$SAM_BENCH_ZOO`, else `./model_zoo`. Cards beside the
            leaderboards folder are found, too.
        title: Heading of the page.

    Raises:
        InputError: No such folder, no entries, or an entry that its records or its card do not support.
        SamBenchError: A file cannot be written.
    """
    folder = Path(folder)
    entries = read_entries(folder)
    if not entries:
        where = "holds no entries" if folder.is_dir() else "does not exist"
        raise InputError(f"{folder} {where}: `sam-bench leaderboard submit MODEL RECORD` makes the first entry")
    from sam_bench.leaderboard.figure import render, render_panels  # loads Matplotlib, which takes a second

    boards = make_boards(entries, zoo=None if zoo is None else Path(zoo))
    svg, png = render(boards)
    forms: dict[str, str | bytes] = {
        "md": markdown(boards),
        "tex": latex(boards),
        "csv": csv_text(boards),
        "html": render_page(boards, folder=folder, figures=render_panels(boards), title=title),
        "svg": svg,
        "png": png,
    }
    paths = {form: folder / f"leaderboard.{form}" for form in forms}
    for form, content in forms.items():
        write_atomic(paths[form], content)
    return BuiltLeaderboard(boards=boards, paths=paths)
