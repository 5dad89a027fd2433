"""What an entry says is held against its records and its card; what they do not support is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sam_bench.errors import InputError, shortened
from sam_bench.leaderboard.cards import FoundCard, check_weights, find_card
from sam_bench.leaderboard.entries import (
    RowKey,
    StoredEntry,
    fields_of_headline,
    headline_of,
    make_entry,
    row_from_record,
    row_key,
)
from sam_bench.leaderboard.files import read_checked, shown
from sam_bench.leaderboard.labels import radius_text
from sam_bench.leaderboard.record_checks import (
    Evidence,
    check_against_card,
    check_heads,
    check_published,
    check_record,
    check_test_set,
    check_together,
    odd_curves,
    sampled_text,
    whole_test_set,
)
from sam_bench.records import EntryRow, EvaluationRecord, LeaderboardEntry, ModelCard

FREE_FIELDS = frozenset({"link", "name", "authors", "venue"})
"""What may be said better by hand than the card says it: the paper, who wrote it, and where it is."""
_LONGEST_FILE_NAME = 249


@dataclass(frozen=True, eq=False)
class CheckedEntry:
    """An entry that its records and its card support.

    Attributes:
        stored: The entry.
        found: Its card, or why there is none.
        rows: Each row with the record behind it.
        notes: What a reader must know of the model.
        notes_of_rows: What a reader must know of single rows, by the path of their record.
    """

    stored: StoredEntry
    found: FoundCard
    rows: tuple[tuple[EntryRow, EvaluationRecord], ...]
    notes: tuple[str, ...] = ()
    notes_of_rows: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def evidence(self) -> list[Evidence]:
        """Its records, with their files."""
        return [Evidence(self.stored.record_path(row), record) for row, record in self.rows]


def check_entries(entries: Iterable[StoredEntry], zoo: Path | None) -> list[CheckedEntry]:
    """Hold every entry against its records, its card, its weights where they are at hand, and the other entries.

    Args:
        entries: All entries of a leaderboards folder.
        zoo: See `find_card`.

    Raises:
        InputError: An entry says what they do not support.
    """
    checked = [_check_entry(stored, zoo) for stored in entries]
    wholes: dict[str | tuple[str, str], int] = {}
    for each in checked:
        for row, record in each.rows:
            if each.found.card and record.dataset_fingerprint == each.found.card.test_fingerprint:
                wholes[each.stored.dataset, record.dataset_fingerprint] = row.n_examples
    digests: dict[str, list[CheckedEntry]] = {}
    for each in checked:
        card, dataset = each.found.card, each.stored.dataset
        whole = whole_test_set(dataset)
        if whole is None and card is not None:
            whole = wholes.get((dataset, card.test_fingerprint))
        for evidence in each.evidence:
            check_test_set(evidence, card.test_fingerprint if card else None, whole)
        check_together(each.evidence)
        if card is not None:
            check_heads(each.evidence, card.test_fingerprint)
        for digest in _digests(each):
            digests.setdefault(digest, []).append(each)
    return [replace(each, notes=(*each.notes, *_namesakes(each, digests))) for each in checked]


def _check_entry(stored: StoredEntry, zoo: Path | None) -> CheckedEntry:
    found = find_card(stored, zoo)
    if found.card is not None:
        check_published(found.card)
    rows = tuple(checked_records(stored, found.card))
    check_fields(stored, found.card)
    notes = (f"{found.missing}: method, network and cost as the entry states them",) if found.missing else ()
    odd: dict[str, tuple[str, ...]] = {}
    for row, record in rows:
        if record.sampled is not None:
            odd[row.record] = (sampled_text(record.sampled),)
    for key, note in odd_curves({row.record: record for row, record in rows}):
        odd[key] = (*odd.get(key, ()), note)
    return CheckedEntry(stored, found, rows, notes, odd)


def _digests(checked: CheckedEntry) -> set[str]:
    """What tells a model's weights apart: their file's digest, and that of the tensors where they are at hand."""
    digests = {checked.stored.entry.sam_bench.checkpoint_sha256}
    if checked.found.card is not None:
        digests.add(check_weights(checked.found.card, checked.stored.card_path()))
    return digests - {""}


def _namesakes(checked: CheckedEntry, digests: Mapping[str, Sequence[CheckedEntry]]) -> tuple[str, ...]:
    """A note where models of another name have the same weights."""
    own = checked.stored.entry.sam_bench.name
    others = {each.stored.entry.sam_bench.name for group in digests.values() if checked in group for each in group}
    others.discard(own)
    return (f"the same weights as {', '.join(sorted(others))}",) if others else ()


def checked_records(stored: StoredEntry, card: ModelCard | None = None) -> Iterator[tuple[EntryRow, EvaluationRecord]]:
    """Each row of an entry with the record behind it, after checking that the row follows from it.

    Args:
        stored: The entry.
        card: The card of the weights that were evaluated, where it is at hand.

    Raises:
        InputError: A record is missing or not the one the row was computed from, it is not of the
            attack that it names, not of the card's model, or a number in the row does not follow from it; or two
            rows are for one attack, norm and radius.
    """
    evidence = stored.entry.sam_bench
    keys: set[RowKey] = set()
    for row in evidence.rows:
        if row_key(row) in keys:
            raise InputError(
                f"{stored.path} has two rows of {shown(row.attack)} at {row.norm} {radius_text(row.eps)}: keep the one "
                "that counts"
            )
        keys.add(row_key(row))
        # Checked before anything is opened: a path in a file that others wrote leads nowhere else.
        if not re.fullmatch(rf"records/[A-Za-z0-9][A-Za-z0-9._-]{{0,{_LONGEST_FILE_NAME}}}\.json", row.record):
            raise InputError(f"{stored.path}: record {shown(row.record)!r} is not of the form records/NAME.json")
        path = stored.record_path(row)
        record, found = read_checked(path, EvaluationRecord)
        if found != row.record_sha256:
            raise InputError(
                f"{path} is not the record that {stored.path} was computed from "
                f"(SHA-256 expected {row.record_sha256}, found {found}): submit the record again"
            )
        if record.checkpoint_sha256 != evidence.checkpoint_sha256:
            raise InputError(
                f"{path} is about checkpoint {record.checkpoint_sha256}, "
                f"but {stored.path} about {evidence.checkpoint_sha256}: submit the model's own record"
            )
        if record.dataset != stored.dataset:
            raise InputError(
                f"{path} is about {record.dataset}, but {stored.path} lies among the entries of {stored.dataset}: an "
                "entry belongs into the folder of its data set"
            )
        check_record(Evidence(path, record))
        if card is not None:
            check_against_card(Evidence(path, record), card)
        expected = row_from_record(record, sha256=row.record_sha256, model=evidence.name)
        _same_numbers(stored.path, row, expected)
        yield row, record


def _same_numbers(path: Path, row: EntryRow, expected: EntryRow) -> None:
    stated, computed = row.model_dump(mode="json"), expected.model_dump(mode="json")
    fields = ["attack", "norm", "eps", "n_examples", "clean_accuracy", "robust_accuracy", "warnings"]
    if row.second_accuracy is not None:  # older rows do not have it
        fields.append("second_accuracy")
    for field in fields:
        if stated[field] != computed[field]:
            raise InputError(
                f"{path}: {field} of the row {row.record} is {_value(stated[field])}, "
                f"but its record gives {_value(computed[field])}: submit the record again"
            )


def _value(value: Any) -> str:
    """A field's value for a message."""
    return shortened(json.dumps(value))


def check_fields(stored: StoredEntry, card: ModelCard | None) -> None:
    """Refuse an entry with a field that its rows and its card do not give; `FREE_FIELDS` may be anything.

    Args:
        stored: The entry, its rows checked by `checked_records`.
        card: The card of the weights that were evaluated; without it, only what follows from the rows is checked.

    Raises:
        InputError: Names the first such field, what it says and what it should be.
    """
    entry, evidence = stored.entry, stored.entry.sam_bench
    top = headline_of(entry)
    if top is None:
        raise InputError(f"{stored.path} has no row of AutoAttack (standard) in {evidence.threat}: submit its record")
    if card is None:
        fields = fields_of_headline(
            top, evidence.rows, dataset=stored.dataset, listed=entry.dataset, threat=evidence.threat
        )
        expected, given_by = entry.model_copy(update=fields), "its records give"
    else:
        _is_listed_as(stored, card)
        expected = make_entry(card, evidence.rows, card_link=evidence.card)
        given_by = f"its card {_card_file(stored)} and its records give"
    right = _stated(expected)
    for field, value in _stated(entry).items():
        if field not in FREE_FIELDS and value != right[field]:
            raise InputError(
                f"{stored.path}: {field} is {_value(value)}, but {given_by} {_value(right[field])}: "
                "submit its records again"
            )


def _is_listed_as(stored: StoredEntry, card: ModelCard) -> None:
    """Refuse a card that is listed in another place than the entry."""
    own = Path(stored.dataset, stored.entry.sam_bench.threat, stored.entry.sam_bench.name).as_posix()
    cards = Path(card.dataset, card.threat, card.name).as_posix()
    if own != cards:
        raise InputError(f"{stored.path} is of {own}, but its card {_card_file(stored)} of {cards}: submit it again")


def _card_file(stored: StoredEntry) -> str:
    return os.path.normpath(stored.card_path())


def _stated(entry: LeaderboardEntry) -> dict[str, Any]:
    """Every field but the rows, by the name that a message calls it."""
    fields = entry.model_dump(mode="json", exclude={"sam_bench": {"rows"}})
    ours = fields.pop("sam_bench")
    return fields | {f"sam_bench.{field}": value for field, value in ours.items()}
