"""Boards: rows that compare, ranked, with ranks that say how far the test images tell two models apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam_bench.leaderboard.checks import check_entries
from sam_bench.leaderboard.entries import StoredEntry
from sam_bench.leaderboard.labels import AUTOATTACK, examples_text, radius_key, radius_text, spelled
from sam_bench.leaderboard.record_checks import our_attacks
from sam_bench.leaderboard.verification import report_of
from sam_bench.proportions import PairedShares, wilson_interval
from sam_bench.records import (
    ROBUST,
    EntryRow,
    EvaluationRecord,
    LeaderboardEntry,
    ModelCard,
    State,
    VerifiedRow,
)

_NORMS = ("Linf", "L2", "L1")

UNRANKED = "–"
"""The rank of a row that does not compare with the others of its board."""

SIGNIFICANT = 0.05
"""Two rows are told apart where the p-value of McNemar's exact test is below this."""

RANKS_EXPLAINED = (
    "Rows with the same rank (=) cannot be told apart from the first of them: McNemar's exact test on the same "
    f"images gives a p-value of {SIGNIFICANT} or more. Intervals are Wilson's, at 95 %."
)


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
        rank: See `with_ranks`; 0 where it is not ranked.
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

    @cached_property
    def robust(self) -> NDArray[np.bool_]:
        """Which examples stayed robust, bool [examples]."""
        return np.array([verdict == ROBUST for verdict in self.record.verdicts])

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

    @cached_property
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
    usual, alone = _usual_images(rows), any(line.record.carried == 0 for line in rows)
    said = []
    for line in rows:
        apart = *_fewer(line, most), *_other_images(line, usual)
        notes = *line.notes, *apart, *_other_settings(line, rows), *_carried(line, alone)
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


def with_ranks(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows from the best to the last, each with a rank that the images support.

    From the top, a row has the rank of the row above unless it can be told apart from the first row of that rank.
    Then it has its own place as its rank. Rows without a rank come last.
    """
    ranked = [row for row in rows if row.ranked]
    ranks: list[int] = []
    for index, row in enumerate(ranked):
        first = ranked[ranks[-1] - 1] if ranks else row
        same = ranks and PairedShares.of(first.robust, row.robust).p_value >= SIGNIFICANT
        ranks.append(ranks[-1] if same else index + 1)
    sharing = Counter(ranks)
    placed = [replace(row, rank=rank, shared=sharing[rank] > 1) for row, rank in zip(ranked, ranks, strict=True)]
    return (*placed, *(row for row in rows if not row.ranked))


def _fewer(line: Row, most: int) -> tuple[str, ...]:
    fewer = line.row.n_examples < most
    return (f"on {examples_text(line.row.n_examples)} only: not ranked",) if fewer else ()


def _usual_images(rows: Sequence[Row]) -> dict[int, str]:
    """For each number of examples the fingerprint that most rows have."""
    seen: dict[int, Counter[str]] = {}
    for line in rows:
        seen.setdefault(line.row.n_examples, Counter())[line.record.dataset_fingerprint] += 1
    return {count: prints.most_common(1)[0][0] for count, prints in seen.items()}


def _other_images(line: Row, usual: dict[int, str]) -> tuple[str, ...]:
    """Under one name and in equal number there can be different images: a file of one's own that was changed."""
    own = line.record.dataset_fingerprint
    if own == usual[line.row.n_examples]:
        return ()
    return (f"on other test images (fingerprint {own[:12]}…): not ranked",)


def _other_settings(line: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """What the name of another package's attack does not say of its settings, where not all rows have the same.

    All that decides the strength of one of ours is in its name; what is in a name is the same in all rows.
    """
    own = {} if line.record.attack in our_attacks() else line.record.settings
    names = [name for name in own if any(each.record.settings.get(name) != own[name] for each in rows)]
    return (f"attacked with {', '.join(f'{name} {own[name]}' for name in names)}",) if names else ()


def _carried(line: Row, alone: bool) -> tuple[str, ...]:
    """That a row is of a curve where others are not: what a smaller ball broke counts as broken here, too."""
    return (carried_text(line.record),) if line.record.carried and alone else ()


def carried_text(record: EvaluationRecord) -> str:
    """`1,234 examples carried over from smaller radii`; empty for an evaluation that stands alone."""
    count = record.carried
    return f"{count:,} example{'' if count == 1 else 's'} carried over from smaller radii" if count else ""
