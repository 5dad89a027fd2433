"""The tables made of boards: plain data, Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sam_bench.leaderboard.boards import RANKS_EXPLAINED, Board, Row
from sam_bench.leaderboard.labels import count_text, parameters_text, percent, radius_text, spelled


def cells(line: Row) -> dict[str, str]:
    """Text of each column, by its header."""
    evidence = line.entry.sam_bench
    low, high = line.interval()
    return {
        "#": line.rank_text,
        "model": line.model,
        "clean": percent(line.row.clean_accuracy),
        "robust": percent(line.row.robust_accuracy),
        "95 % interval": f"{percent(low)} to {percent(high)}",
        "state": line.state,
        "attack": spelled(line.row.attack),
        "eps": f"{line.row.norm} {radius_text(line.row.eps)}",
        "method": line.method,
        "architecture": line.entry.architecture,
        "epochs": count_text(None if evidence.passes is None else evidence.epochs),
        "training passes": count_text(evidence.passes),
        "parameters": parameters_text(evidence.parameters),
    }


@dataclass(frozen=True)
class PlainTable:
    """A board as text, for whatever prints tables.

    Attributes:
        title: The board, with its number of examples.
        headers: One text a column.
        rows: One text a column; a marked model ends in `[1]`.
        footnotes: `[1] …`, one a mark.
    """

    title: str
    headers: list[str]
    rows: list[list[str]]
    footnotes: list[str]


def plain_table(board: Board) -> PlainTable:
    """A board as text without any mark-up."""
    rows = [cells(line) for line in board.rows]
    for texts, line in zip(rows, board.rows, strict=True):
        texts["model"] += "".join(f" [{mark}]" for mark in board.marks(line))
    notes = [f"[{number}] {note}" for number, note in enumerate(board.footnotes, start=1)]
    return PlainTable(board.title, list(rows[0]), [list(texts.values()) for texts in rows], notes)


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
    for board in boards:
        table = plain_table(board)
        columns = "".join("r" if header in _RIGHT else "l" for header in table.headers)
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


def csv_text(boards: Sequence[Board]) -> str:
    """Every row of every board as CSV; numbers are not rounded, no rank is empty."""
    out = io.StringIO()
    lines = [_csv_line(board, row) for board in boards for row in board.rows]
    writer = csv.DictWriter(out, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _csv_line(board: Board, line: Row) -> dict[str, str | int | float]:
    row, evidence = line.row, line.entry.sam_bench
    low, high = line.interval()
    values: dict[str, str | int | float] = {
        "rank": line.rank if line.ranked else "",
        "model": line.model,
        "dataset": board.dataset,
        "attack": row.attack,
        "norm": row.norm,
        "eps": radius_text(row.eps),
        "eps_float": f"{float(row.eps):.12g}",
        "n_examples": row.n_examples,
        "carried": line.record.carried,
        "clean_percent": f"{100 * row.clean_accuracy:.10g}",
        "robust_percent": f"{100 * row.robust_accuracy:.10g}",
        "robust_low_percent": f"{100 * low:.10g}",
        "robust_high_percent": f"{100 * high:.10g}",
        "state": line.state,
        "method": line.method,
        "architecture": line.entry.architecture,
        "epochs": "" if evidence.passes is None else evidence.epochs,
        "training_passes": "" if evidence.passes is None else f"{evidence.passes:.10g}",
        "parameters": evidence.parameters,
        "threat": evidence.threat,
        "authors": line.entry.authors,
        "engine": line.record.engine,
        "notes": "; ".join(line.notes),
        "card": evidence.card,
        "record": row.record,
        "record_sha256": row.record_sha256,
        "checkpoint_sha256": evidence.checkpoint_sha256,
    }
    return {name: _no_formula(value) for name, value in values.items()}


# The start of a cell, also of one that a spreadsheet makes by splitting at a line's end, a tab or a semicolon; then
# what it passes over; then a sign that starts a formula, in any width.
_FORMULA = re.compile(r"(?:^|(?<=[\n\r\t;]))(?=[\s\"\u00ad\u200b-\u200f\u2060\ufeff]*[=+\-@＝＋－＠﹢﹣﹦﹫])")


def _no_formula(value: str | int | float) -> str | int | float:
    """Text that a spreadsheet would run as a formula gets an apostrophe before it, as spreadsheets mark text."""
    return _FORMULA.sub("'", value) if isinstance(value, str) else value
