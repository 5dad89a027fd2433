"""`submit_entry`: from a card and its records to an entry, and to what RobustBench wants to be sent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sam_bench.errors import InputError, shortened
from sam_bench.leaderboard.checks import checked_records
from sam_bench.leaderboard.entries import (
    RowKey,
    StoredEntry,
    headline_of,
    make_entry,
    read_entry,
    row_from_record,
    row_key,
)
from sam_bench.leaderboard.evidence import read_bundle, write_manifest
from sam_bench.leaderboard.files import LARGEST_RECORD, parse_checked, read_bytes, read_checked
from sam_bench.leaderboard.labels import examples_text, radius_text
from sam_bench.leaderboard.record_checks import (
    Evidence,
    check_against_card,
    check_heads,
    check_published,
    check_record,
    check_test_set,
    check_together,
    our_attacks,
    whole_test_set,
)
from sam_bench.leaderboard.robustbench_issue import Condition, conditions, issue_text, issue_title, model_info
from sam_bench.leaderboard.verification import report_path
from sam_bench.locks import claimed
from sam_bench.records import (
    EntryRow,
    EvaluationRecord,
    LeaderboardEntry,
    ModelCard,
    adversarial_path,
    write_atomic,
    write_record,
)


@dataclass(frozen=True)
class Submission:
    """What submitting wrote, and what to send to RobustBench.

    Attributes:
        entry: The entry as written.
        path: Its file, `<folder>/<dataset>/<threat>/<name>.json`.
        records: The copies of its records, beside it.
        model_info: RobustBench's `model_info` file (the entry without our block), JSON text.
        issue_title: Title of RobustBench's "New Model" issue.
        issue: The issue's text.
        conditions: RobustBench's conditions, each met, not met, or for a person to confirm.
        notes: What the submitter should know: rows replaced or dropped, checks that could not be made.
    """

    entry: LeaderboardEntry
    path: Path
    records: list[Path]
    model_info: str
    issue_title: str
    issue: str
    conditions: list[Condition]
    notes: list[str]


@dataclass(frozen=True)
class _Source:
    """A row, the record it comes from, and its file; `data` is empty for a record that lies in place already.

    `adversarial` is the content of the file of adversarial examples beside it, empty where there is none.
    """

    row: EntryRow
    record: EvaluationRecord
    path: Path
    data: bytes
    adversarial: bytes = b""

    def write(self, copy: Path) -> None:
        if not self.data:
            return
        if self.adversarial:
            write_atomic(adversarial_path(copy), self.adversarial)
        else:
            adversarial_path(copy).unlink(missing_ok=True)  # that of an earlier record
        write_atomic(copy, self.data)


@dataclass(frozen=True)
class _Replaced:
    """A row that a given record replaces, and the record behind it, None where that cannot be read."""

    row: EntryRow
    record: EvaluationRecord | None


def submit_entry(
    card: ModelCard,
    card_path: Path,
    record_paths: Sequence[Path],
    *,
    folder: Path,
    fingerprint_of_first: Callable[[int], str] | None = None,
    replace: bool = False,
    compact: Callable[[EvaluationRecord, bytes], bytes] | None = None,
) -> Submission:
    """Write a model's entry, or add records to the entry it has; every number comes from a record.

    The adversarial examples beside a record (`RECORD.adversarial.npz`) go with it, and a manifest names all files
    that the entry rests on.

    A record for an attack, norm and radius that the entry already has replaces that row, but for one
    over fewer or other test examples, or of another package's attack with other settings. Other rows stay, checked
    against their own records again. Rows of other weights under the same name go.

    A record over the whole test set has the card's test fingerprint. One over its first n examples
    has a fingerprint of its own, which card and record alone cannot check: it is compared with other
    records of n examples, and with `fingerprint_of_first(n)` where that is given.

    Args:
        card: The model's card.
        card_path: Where that card lies; the entry points at it.
        record_paths: One or more EvaluationRecords of the card's checkpoint.
        folder: The leaderboards folder.
        fingerprint_of_first: Fingerprint of the first n test examples of the card's data set.
        replace: Let a record replace a row over more or other test examples, or with other settings, too.
        compact: Makes the file of a record's adversarial examples smaller; default they are copied as they are.

    Returns:
        The submission; its files are written (records first, then the entry).

    Raises:
        InputError: A record is of another checkpoint, data set or test set, or not of the attack that
            it names, two records are for the same row, one would replace a row over more or other
            test examples or with other settings, or the model has no AutoAttack record. Nothing is written then.
    """
    if read_checked(card_path, ModelCard)[0] != card:
        raise InputError(f"{card_path} is not the card of {card.name} that is being submitted: read it again")
    check_published(card)
    path = folder / card.dataset / card.threat / f"{card.name}.json"
    given = _read_sources(card, record_paths, compact)

    def together() -> tuple[list[_Source], list[str], list[Path], LeaderboardEntry]:
        kept, going, notes, stale = _existing(card, path, {row_key(source.row) for source in given})
        sources = [*kept, *given]
        notes += _check_images(card, sources, fingerprint_of_first)
        if not replace:
            _check_replaced(path, going, given)
        link = Path(os.path.relpath(card_path.resolve(), path.parent.resolve())).as_posix()
        return sources, notes, stale, make_entry(card, [source.row for source in sources], card_link=link)

    together()  # refuses before anything is written
    with claimed(path.parent):  # another process may be adding a row to the same entry
        sources, notes, stale, entry = together()
        records = [path.parent / source.row.record for source in sources]
        for copy, source in zip(records, sources, strict=True):
            source.write(copy)
        write_record(path, entry)
        for old in stale:
            if old not in records:
                old.unlink(missing_ok=True)
                adversarial_path(old).unlink(missing_ok=True)
        write_manifest(StoredEntry(path, entry), card)
        report_path(path).unlink(missing_ok=True)  # it was about the entry as it was

    record = next(source.record for source in sources if source.row == headline_of(entry))
    return Submission(
        entry=entry,
        path=path,
        records=records,
        model_info=model_info(entry),
        issue_title=issue_title(card),
        issue=issue_text(card, entry, record),
        conditions=conditions(card, record),
        notes=notes,
    )


def _read_sources(
    card: ModelCard, record_paths: Sequence[Path], compact: Callable[[EvaluationRecord, bytes], bytes] | None
) -> list[_Source]:
    if not record_paths:
        raise InputError(f"{card.name}: an entry needs at least one evaluation record")
    sources: dict[RowKey, _Source] = {}
    for path in record_paths:
        data = read_bytes(path, LARGEST_RECORD)
        record = parse_checked(data, path, EvaluationRecord)
        check_record(Evidence(path, record))
        check_against_card(Evidence(path, record), card)
        row = row_from_record(record, sha256=hashlib.sha256(data).hexdigest(), model=card.name)
        twin = sources.get(row_key(row))
        if twin is not None and twin.data != data:
            raise InputError(
                f"{twin.path} and {path} are both {row.attack} at {row.norm} {radius_text(row.eps)}: "
                "give the one that counts"
            )
        adversarial = read_bundle(adversarial_path(path))
        if adversarial and compact is not None:
            adversarial = compact(record, adversarial)
        sources[row_key(row)] = _Source(row, record, path, data, adversarial)
    return list(sources.values())


def _existing(
    card: ModelCard, path: Path, replaced: set[RowKey]
) -> tuple[list[_Source], list[_Replaced], list[str], list[Path]]:
    """Of the entry at `path`: what stays, what is replaced, what to tell, and copies that nothing will point at."""
    if not path.exists():
        return [], [], [], []
    stored = read_entry(path)
    evidence = stored.entry.sam_bench
    if evidence.checkpoint_sha256 != card.weights.sha256:
        count = len(evidence.rows)
        note = (
            f"{card.name} has other weights than its entry had ({evidence.checkpoint_sha256[:12]}…): "
            f"{'its row' if count == 1 else f'its {count} rows'} went with them"
        )
        return [], [], [note], _copies(stored, evidence.rows)
    going = [row for row in evidence.rows if row_key(row) in replaced]
    staying = [row for row in evidence.rows if row_key(row) not in replaced]
    # The rows that go need no evidence any more, so that submitting again mends an entry cut short.
    kept = [
        _Source(row, record, stored.record_path(row), b"")
        for row, record in checked_records(_with_rows(stored, staying), card)
    ]
    notes = [
        f"replaced the row {row.attack} at {row.norm} {radius_text(row.eps)} ({examples_text(row.n_examples)}, "
        f"robust {100 * row.robust_accuracy:.2f} %)"
        for row in going
    ]
    return kept, [_Replaced(row, _record_behind(stored, row)) for row in going], notes, _copies(stored, going)


def _with_rows(stored: StoredEntry, rows: Sequence[EntryRow]) -> StoredEntry:
    evidence = stored.entry.sam_bench.model_copy(update={"rows": list(rows)})
    return StoredEntry(stored.path, stored.entry.model_copy(update={"sam_bench": evidence}))


def _record_behind(stored: StoredEntry, row: EntryRow) -> EvaluationRecord | None:
    """The record of a row; None where it is missing or is not the one that the row was computed from."""
    try:
        return next(record for _, record in checked_records(_with_rows(stored, [row])))
    except InputError:
        return None


def _check_replaced(path: Path, going: Sequence[_Replaced], given: Sequence[_Source]) -> None:
    """Refuse a record that would replace a row over more or other test examples, or of other settings.

    All that decides the strength of one of our attacks is in its row's name. Of another package's it is not: a weaker
    run would take the place of a stronger one.
    """
    by_key = {row_key(source.row): source for source in given}
    for old in going:
        new = by_key[row_key(old.row)]
        count, before, record = new.row.n_examples, old.row.n_examples, old.record
        if count < before:
            new_over, old_over = f"only {examples_text(count)}", f"{before:,}"
        elif record and count == before and record.dataset_fingerprint != new.record.dataset_fingerprint:
            new_over = f"images with fingerprint {new.record.dataset_fingerprint}"
            old_over = f"others ({record.dataset_fingerprint})"
        elif record and record.attack not in our_attacks() and record.settings != new.record.settings:
            new_over = f"{examples_text(count)} with {shortened(str(new.record.settings))}"
            old_over = f"{before:,} with {shortened(str(record.settings))}"
        else:
            continue
        raise InputError(
            f"{new.path} is over {new_over}, but the row {old.row.attack} at {old.row.norm} "
            f"{radius_text(old.row.eps)} of {path} over {old_over}: add `replace=True` to put it in that row's place"
        )


def _copies(stored: StoredEntry, rows: Sequence[EntryRow]) -> list[Path]:
    """The records of these rows that lie where `submit_entry` puts them; nothing elsewhere is ever deleted."""
    paths = [stored.record_path(row) for row in rows]
    home = stored.path.parent / "records"
    return [path for path in paths if path.parent == home and path.name.startswith(f"{stored.path.stem}-")]


def _check_images(
    card: ModelCard, sources: Sequence[_Source], fingerprint_of_first: Callable[[int], str] | None
) -> list[str]:
    """Refuse what cannot be the card's test set or the first of it; return what could not be checked."""
    records = [Evidence(source.path, source.record) for source in sources]
    wholes = (each.record.n_examples for each in records if each.record.dataset_fingerprint == card.test_fingerprint)
    whole = whole_test_set(card.dataset) or next(wholes, None)
    unchecked = set()
    for each in records:
        check_test_set(each, card.test_fingerprint, whole)
        count, found = each.record.n_examples, each.record.dataset_fingerprint
        if found == card.test_fingerprint:
            continue
        if fingerprint_of_first is None:
            unchecked.add(count)
        elif (expected := fingerprint_of_first(count)) != found:
            raise InputError(
                f"{each.path} has fingerprint {found}, but the first {examples_text(count)} of {card.dataset} have "
                f"{expected}: evaluate it on {card.dataset}"
            )
    check_together(records)
    check_heads(records, card.test_fingerprint)
    return [
        f"that a record's {examples_text(count)} are the first of {card.dataset} could not be checked from card and "
        "record alone: have the data at hand"
        for count in sorted(unchecked)
    ]
