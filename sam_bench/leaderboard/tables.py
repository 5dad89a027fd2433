"""The tables made of boards: plain data, Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sam_bench.leaderboard.boards import RANKS_EXPLAINED, Board, Row
from sam_bench.leaderboard.labels import count_text, parameters_text, percent, radius_text, spelled

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


def cells(line: Row) -> list[str]:
    """Text of each column of `HEADERS`."""
    evidence = line.entry.sam_bench
    low, high = line.interval()
    return [
        line.rank_text,
        line.model,
        percent(line.row.clean_accuracy),
        percent(line.row.robust_accuracy),
        f"{percent(low)} to {percent(high)}",
        line.state,
        spelled(line.row.attack),
        f"{line.row.norm} {radius_text(line.row.eps)}",
        line.method,
        line.entry.architecture,
        count_text(None if evidence.passes is None else evidence.epochs),
        count_text(evidence.passes),
        parameters_text(evidence.parameters),
    ]


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
        texts = cells(line)
        texts[1] += "".join(f" [{mark}]" for mark in board.marks(line))
        rows.append(texts)
    notes = [f"[{number}] {note}" for number, note in enumerate(board.footnotes, start=1)]
    return PlainTable(board.title, list(HEADERS), rows, notes)


_RIGHT = {"#", "clean", "robust", "95 % interval", "epochs", "training passes", "parameters"}


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
            training = ("", "") if evidence.passes is None else (evidence.epochs, f"{evidence.passes:.10g}")
            values += [line.entry.architecture, *training, evidence.parameters]
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
