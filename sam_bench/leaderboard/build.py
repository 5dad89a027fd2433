"""`build_leaderboard`: from a folder of entries to tables, figure and pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_bench.errors import InputError
from sam_bench.leaderboard import site
from sam_bench.leaderboard.boards import Board, Row, make_boards
from sam_bench.leaderboard.entries import read_entries
from sam_bench.leaderboard.published import read_published
from sam_bench.leaderboard.site.classes import LabelsOf
from sam_bench.leaderboard.tables import csv_text, latex, markdown
from sam_bench.records import write_atomic


@dataclass(frozen=True)
class BuiltLeaderboard:
    """What building found and wrote.

    Attributes:
        boards: Rows that compare, ranked; `tables.plain_table` makes text of one.
        paths: The written file of each form: "md", "tex", "csv", "svg", "png", and "html", the start page.
        missing: Why there are no pages; "" if there are.
    """

    boards: list[Board]
    paths: dict[str, Path]
    missing: str = ""

    @property
    def rows(self) -> list[Row]:
        """Every row of every board."""
        return [row for board in self.boards for row in board.rows]


def build_leaderboard(
    folder: Path | str,
    *,
    zoo: Path | str | None = None,
    robustbench: Path | str | None = None,
    labels_of: LabelsOf = lambda record: None,
) -> BuiltLeaderboard:
    """Read every entry of a leaderboards folder and write `leaderboard.md|.tex|.csv|.svg|.png` and `site/` into it.

    Every entry is held against its records and, where it is at hand, its card first. All tables are
    made before the first is written, and each file is written whole or not at all.

    Args:
        folder: The leaderboards folder, `<dataset>/<threat>/<name>.json` inside.
        zoo: Folder of the zoo with the cards; default `$SAM_BENCH_ZOO`, else `./model_zoo`. Cards beside the
            leaderboards folder are found, too.
        robustbench: See `read_published`: published entries that the pages show beside ours.
        labels_of: Labels of a record's test images, for the accuracy of each class.

    Raises:
        InputError: No such folder, no entries, or an entry that its records or its card do not support.
        SamBenchError: A file cannot be written.
    """
    folder = Path(folder)
    entries = read_entries(folder)
    if not entries:
        where = "holds no entries" if folder.is_dir() else "does not exist"
        raise InputError(f"{folder} {where}: `sam-bench leaderboard submit MODEL RECORD` makes the first entry")
    from sam_bench.leaderboard.figure import render  # loads Matplotlib, which takes a second

    boards = make_boards(entries, zoo=None if zoo is None else Path(zoo))
    published = read_published(None if robustbench is None else Path(robustbench))
    svg, png = render(boards)
    forms: dict[str, str | bytes] = {
        "md": markdown(boards),
        "tex": latex(boards),
        "csv": csv_text(boards),
        "svg": svg,
        "png": png,
    }
    paths = {form: folder / f"leaderboard.{form}" for form in forms}
    for form, text in forms.items():
        write_atomic(paths[form], text)
    if not site.available():
        return BuiltLeaderboard(boards=boards, paths=paths, missing=site.MISSING)
    paths["html"] = site.write_site(site.Content(boards, folder, published, labels_of))
    return BuiltLeaderboard(boards=boards, paths=paths)
