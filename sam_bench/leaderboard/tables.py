"""Rows grouped into boards, and the tables made of them: plain data, Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sam_bench.leaderboard.checks import check_entries
from sam_bench.leaderboard.entries import StoredEntry
from sam_bench.leaderboard.labels import (
    AUTOATTACK,
    count_text,
    examples_text,
    parameters_text,
    percent,
    radius_key,
    radius_text,
    spelled,
)
from sam_bench.leaderboard.record_checks import our_attacks
from sam_bench.leaderboard.verification import report_of
from sam_bench.proportions import wilson_interval
from sam_bench.records import EntryRow, EvaluationRecord, LeaderboardEntry, ModelCard, State, VerifiedRow

_NORMS = ("Linf", "L2", "L1")

HEADERS = (
    "#",
    "model",
    "clean",
    "robust",
    "95 % interval",
    "state",
    "attack",
    "eps",
    "method",
    "architecture",
    "epochs",
    "training passes",
    "parameters",
)

UNRANKED = "–"
"""The rank of a row that does not compare with the others of its board."""


@dataclass(frozen=True)
class Row:
    """One evaluation of one model: a line of a board.

    Attributes:
        stored: The entry it belongs to.
        row: Its numbers, as the entry holds them.
        record: The evaluation behind them.
        card: The model's card, where it is at hand.
        card_found: Whether the card lies where the entry points.
        notes: What a reader must know: the attack's warnings, fewer examples, a card that is not there.
        verified: What was verified of it; None: nothing, it is a claim.
        ranked: Whether it is over the same test examples as the best-tested rows of its board.
        rank: See `ranks.with_ranks`; 0 where it is not ranked.
        shared: Whether another row has the same rank.
    """

    stored: StoredEntry
    row: EntryRow
    record: EvaluationRecord
    card: ModelCard | None
    card_found: bool
    notes: tuple[str, ...] = ()
    verified: VerifiedRow | None = None
    ranked: bool = True
    rank: int = 0
    shared: bool = False

    @property
    def entry(self) -> LeaderboardEntry:
        """The entry it belongs to."""
        return self.stored.entry

    @property
    def model(self) -> str:
        """The model's name."""
        return self.entry.sam_bench.name

    @property
    def method(self) -> str:
        """The method's label."""
        return self.entry.sam_bench.method

    @property
    def state(self) -> State:
        """How far it is verified."""
        return self.verified.state if self.verified else "claimed"

    @property
    def rank_text(self) -> str:
        """`3`; `3=` where other rows have the same rank; `UNRANKED`."""
        return f"{self.rank}{'=' if self.shared else ''}" if self.ranked else UNRANKED

    def cells(self) -> list[str]:
        """Text of each column of `HEADERS`."""
        evidence = self.entry.sam_bench
        low, high = self.interval()
        return [
            self.rank_text,
            self.model,
            percent(self.row.clean_accuracy),
            percent(self.row.robust_accuracy),
            f"{percent(low)} to {percent(high)}",
            self.state,
            spelled(self.row.attack),
            f"{self.row.norm} {radius_text(self.row.eps)}",
            self.method,
            self.entry.architecture,
            str(evidence.epochs),
            count_text(evidence.passes),
            parameters_text(evidence.parameters),
        ]

    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the robust accuracy, as fractions: what the number of examples leaves open."""
        return wilson_interval(self.row.robust_accuracy, self.row.n_examples)


@dataclass(frozen=True)
class Board:
    """Rows of one data set, norm, radius and attack: ranked by robust accuracy, below them those without a rank."""

    dataset: str
    norm: str
    eps: str
    attack: str
    rows: tuple[Row, ...] = field(repr=False)

    @property
    def key(self) -> str:
        """An identifier without spaces, the same on every build."""
        return "-".join((self.dataset, self.norm, self.eps.replace("/", "over"), self.attack))

    @property
    def examples(self) -> int:
        """Number of test examples behind the board's rows; the largest where they differ."""
        return max(row.row.n_examples for row in self.rows)

    @property
    def title(self) -> str:
        """`cifar10 · AutoAttack · Linf 8/255 · 10,000 test examples`."""
        return f"{self.short_title} · {examples_text(self.examples)}"

    @property
    def short_title(self) -> str:
        """The title without the number of examples."""
        return f"{self.dataset} · {spelled(self.attack)} · {self.norm} {self.eps}"

    @property
    def footnotes(self) -> tuple[str, ...]:
        """Every distinct note of the rows, in order; a row's marks are their numbers, from 1."""
        return tuple(dict.fromkeys(note for row in self.rows for note in row.notes))

    def marks(self, row: Row) -> list[int]:
        """Numbers of the footnotes that belong to a row."""
        return [self.footnotes.index(note) + 1 for note in row.notes]


def make_boards(entries: Iterable[StoredEntry], *, zoo: Path | None = None) -> list[Board]:
    """All rows of all entries, grouped and ranked.

    Boards come by data set, norm (Linf, L2, L1), attack (AutoAttack first) and radius; rows by robust
    accuracy from the highest, as RobustBench ranks, then by clean accuracy, then by name. Rows over
    fewer or other test examples than the others come last, in the same order among themselves.

    Args:
        entries: All entries of a leaderboards folder.
        zoo: Where cards may lie; default `$SAM_BENCH_ZOO`, else `./model_zoo`.

    Raises:
        InputError: An entry says what its records or its card do not.
    """
    groups: dict[tuple[str, str, str, float], list[Row]] = {}
    for each in check_entries(entries, zoo):
        stored, card = each.stored, each.found.card
        report = report_of(stored.path)
        verified = {row.record: row for row in report.rows} if report else {}
        for row, record in each.rows:
            notes = *dict.fromkeys(row.warnings), *each.notes, *each.notes_of_rows.get(row.record, ())
            line = Row(
                stored,
                row,
                record,
                card=card,
                card_found=each.found.readable,
                notes=notes,
                verified=verified.get(row.record),
            )
            groups.setdefault((stored.dataset, row.norm, row.attack, radius_key(row.eps)), []).append(line)
    keys = sorted(groups, key=lambda key: (key[0], _NORMS.index(key[1]), key[2] != AUTOATTACK, key[2], key[3]))
    return [_board(groups[key]) for key in keys]


def _board(rows: list[Row]) -> Board:
    most = max(line.row.n_examples for line in rows)
    said = []
    for line in rows:
        apart = *_fewer(line, most), *_other_images(line, rows)
        notes = *line.notes, *apart, *_other_settings(line, rows), *_carried(line, rows)
        said.append(replace(line, notes=notes, ranked=not apart))
    said.sort(
        key=lambda line: (
            not line.ranked,
            -line.row.robust_accuracy,
            -line.row.clean_accuracy,
            line.model,
            line.entry.sam_bench.threat,
        )
    )
    first = rows[0]
    # However the radius was written, a board shows the shortest spelling: 8/255 before 0.03137254902.
    eps = min((radius_text(line.row.eps) for line in rows), key=lambda text: (len(text), text))
    return Board(first.stored.dataset, first.row.norm, eps, first.row.attack, with_ranks(said))


def _fewer(line: Row, most: int) -> tuple[str, ...]:
    fewer = line.row.n_examples < most
    return (f"on {examples_text(line.row.n_examples)} only: not ranked",) if fewer else ()


def _other_images(line: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """Under one name and in equal number there can be different images: a file of one's own that was changed."""
    as_many = [each.record.dataset_fingerprint for each in rows if each.row.n_examples == line.row.n_examples]
    usual = max(as_many, key=as_many.count)
    own = line.record.dataset_fingerprint
    return () if own == usual else (f"on other test images (fingerprint {own[:12]}…): not ranked",)


def _other_settings(line: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """What the name of another package's attack does not say of its settings, where not all rows have the same.

    All that decides the strength of one of ours is in its name; what is in a name is the same in all rows.
    """
    own = {} if line.record.attack in our_attacks() else line.record.settings
    names = [name for name in own if any(each.record.settings.get(name) != own[name] for each in rows)]
    return (f"attacked with {', '.join(f'{name} {own[name]}' for name in names)}",) if names else ()


def _carried(line: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """That a row is of a curve where others are not: what a smaller ball broke counts as broken here, too."""
    stand_alone = any(each.record.carried == 0 for each in rows)
    return (carried_text(line.record),) if line.record.carried and stand_alone else ()


def carried_text(record: EvaluationRecord) -> str:
    """`1,234 examples carried over from smaller radii`; empty for an evaluation that stands alone."""
    count = record.carried
    return f"{count:,} example{'' if count == 1 else 's'} carried over from smaller radii" if count else ""


@dataclass(frozen=True)
class PlainTable:
    """A board as text, for whatever prints tables.

    Attributes:
        title: The board, with its number of examples.
        headers: `HEADERS`.
        rows: One text a column; a marked model ends in `[1]`.
        footnotes: `[1] …`, one a mark.
    """

    title: str
    headers: list[str]
    rows: list[list[str]]
    footnotes: list[str]


def plain_table(board: Board) -> PlainTable:
    """A board as text without any mark-up."""
    rows = []
    for line in board.rows:
        cells = line.cells()
        cells[1] += "".join(f" [{mark}]" for mark in board.marks(line))
        rows.append(cells)
    notes = [f"[{number}] {note}" for number, note in enumerate(board.footnotes, start=1)]
    return PlainTable(board.title, list(HEADERS), rows, notes)


_RIGHT = {"#", "clean", "robust", "epochs", "training passes", "parameters"}


def markdown(boards: Sequence[Board]) -> str:
    """Every board as a Markdown heading and table."""
    parts = []
    for board in boards:
        table = plain_table(board)
        lines = [f"### {escape_markdown(table.title)}", "", f"| {' | '.join(table.headers)} |"]
        lines.append(f"| {' | '.join('---:' if header in _RIGHT else ':---' for header in table.headers)} |")
        lines += [f"| {' | '.join(escape_markdown(cell) for cell in row)} |" for row in table.rows]
        if table.footnotes:
            lines += ["", "  \n".join(escape_markdown(note) for note in table.footnotes)]
        parts.append("\n".join(lines))
    parts.append(escape_markdown(RANKS_EXPLAINED))
    return "\n\n".join(parts) + "\n"


def escape_markdown(text: str) -> str:
    """Text that shows as it stands in a Markdown table's cell."""
    escaped = re.sub(r"([\\`*_\[\]|~])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def latex(boards: Sequence[Board]) -> str:
    """Every board as a `table` with booktabs' rules; the preamble needs `\\usepackage{booktabs}`."""
    parts = ["% Needs \\usepackage{booktabs}."]
    columns = "".join("r" if header in _RIGHT else "l" for header in HEADERS)
    for board in boards:
        table = plain_table(board)
        headers = " & ".join(escape_latex(header) for header in table.headers)
        body = "\n".join(f"    {' & '.join(escape_latex(cell) for cell in row)} \\\\" for row in table.rows)
        notes = "".join(f"\n  \\par\\footnotesize {escape_latex(note)}" for note in table.footnotes)
        parts.append(
            "\\begin{table}\n"
            "  \\centering\n"
            f"  \\caption{{{escape_latex(table.title)}. Accuracies in \\%. {escape_latex(RANKS_EXPLAINED)}}}\n"
            f"  \\begin{{tabular}}{{{columns}}}\n"
            "    \\toprule\n"
            f"    {headers} \\\\\n"
            "    \\midrule\n"
            f"{body}\n"
            "    \\bottomrule\n"
            f"  \\end{{tabular}}{notes}\n"
            "\\end{table}"
        )
    return "\n\n".join(parts) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "·": r"\textperiodcentered{}",
    "–": "--",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    # A bracket that opens a line would be read as an option of the `\\` before it.
    "[": "{[}",
    "]": "{]}",
}


def escape_latex(text: str) -> str:
    """Text that shows as it stands in LaTeX."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


CSV_COLUMNS = (
    "rank",
    "model",
    "dataset",
    "attack",
    "norm",
    "eps",
    "eps_float",
    "n_examples",
    "carried",
    "clean_percent",
    "robust_percent",
    "robust_low_percent",
    "robust_high_percent",
    "state",
    "method",
    "architecture",
    "epochs",
    "training_passes",
    "parameters",
    "threat",
    "authors",
    "engine",
    "notes",
    "card",
    "record",
    "record_sha256",
    "checkpoint_sha256",
)


def csv_text(boards: Sequence[Board]) -> str:
    """Every row of every board as CSV with the columns of `CSV_COLUMNS`; numbers are not rounded, no rank is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for board in boards:
        for line in board.rows:
            row, evidence = line.row, line.entry.sam_bench
            values: list[str | int | float] = [
                line.rank if line.ranked else "",
                line.model,
                board.dataset,
                row.attack,
                row.norm,
            ]
            values += [radius_text(row.eps), f"{float(row.eps):.12g}", row.n_examples, line.record.carried]
            shares = (row.clean_accuracy, row.robust_accuracy, *line.interval())
            values += [f"{100 * share:.10g}" for share in shares]
            values += [line.state, line.method]
            values += [line.entry.architecture, evidence.epochs, f"{evidence.passes:.10g}", evidence.parameters]
            values += [evidence.threat, line.entry.authors, line.record.engine, "; ".join(line.notes)]
            values += [evidence.card, row.record, row.record_sha256, evidence.checkpoint_sha256]
            writer.writerow([_no_formula(value) for value in values])
    return out.getvalue()


# The start of a cell, also of one that a spreadsheet makes by splitting at a line's end, a tab or a semicolon; then
# what it passes over; then a sign that starts a formula, in any width.
_FORMULA = re.compile(r"(?:^|(?<=[\n\r\t;]))(?=[\s\"\u00ad\u200b-\u200f\u2060\ufeff]*[=+\-@＝＋－＠﹢﹣﹦﹫])")


def _no_formula(value: str | int | float) -> str | int | float:
    """Text that a spreadsheet would run as a formula gets an apostrophe before it, as spreadsheets mark text."""
    return _FORMULA.sub("'", value) if isinstance(value, str) else value
