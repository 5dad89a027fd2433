"""What an entry says is held against its records and its card; what they do not bear out is refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from sam_bench.attacks import ATTACKS
from sam_bench.errors import InputError
from sam_bench.leaderboard.entries import StoredEntry, fields_of_headline, headline, make_entry, row_from_record
from sam_bench.records import (
    ComponentSpec,
    EntryRow,
    EvaluationRecord,
    LeaderboardEntry,
    ModelCard,
    read_record,
    sha256_file,
)

FREE_FIELDS = frozenset({"link", "name", "authors", "venue"})
"""What may be said better by hand than the card says it: the paper, who wrote it, and where it is."""
_LONGEST_FILE_NAME = 249


@cache
def our_attacks() -> frozenset[str]:
    """Names of the attacks that come with sam-bench, not with another package."""
    return frozenset(attack.method for attack in ATTACKS if attack.__module__.startswith("sam_bench."))


def check_attack(record: EvaluationRecord, path: Path) -> None:
    """Refuse a record that names one of our attacks, but has not run what that attack runs.

    AutoAttack's standard version is APGD-CE, APGD-T, FAB-T and Square: less of it does not bear its name. What
    another package's attack runs is not known here.

    Args:
        record: The evaluation.
        path: Its file, for the message.

    Raises:
        InputError: The attack has no such version or setting, or `accuracy_after` names other attacks than it runs.
    """
    if record.attack not in our_attacks():
        return
    version = {"version": record.version} if record.version else {}
    try:
        spec = ComponentSpec.model_validate({**record.settings, **version, "method": record.attack})
        attack = ATTACKS.build(spec)
    except InputError as error:
        problem = str(error).removeprefix("attack.")
        raise InputError(f"{path} is not of {record.attack} as sam-bench has it: {problem}") from error
    meant = str(attack.model_dump().get("version", ""))
    if record.version != meant:
        raise InputError(f"{path} does not say which version of {record.attack} it is of: evaluate again")
    ran = list(record.accuracy_after)
    if ran != attack.attacks:
        called = f"{record.attack}, version {meant}," if meant else record.attack
        raise InputError(
            f"{path} says that it is of {called} which runs {', '.join(attack.attacks)}, but accuracy_after names "
            f"{', '.join(ran) or 'none'}: evaluate with the whole attack"
        )


def checked_records(stored: StoredEntry) -> Iterator[tuple[EntryRow, EvaluationRecord]]:
    """Each row of an entry with the record behind it, after checking that the row follows from it.

    Raises:
        InputError: A record is missing or not the one the row was computed from, it is not of the
            attack that it names, or a number in the row does not follow from it.
    """
    evidence = stored.entry.sam_bench
    for row in evidence.rows:
        # Checked before anything is opened: a path in a file that others wrote leads nowhere else.
        if not re.fullmatch(rf"records/[A-Za-z0-9][A-Za-z0-9._-]{{0,{_LONGEST_FILE_NAME}}}\.json", row.record):
            raise InputError(f"{stored.path}: record {row.record!r} is not of the form records/NAME.json")
        path = stored.record_path(row)
        record = read_record(path, EvaluationRecord)
        found = sha256_file(path)
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
        check_attack(record, path)
        expected = row_from_record(record, sha256=row.record_sha256, model=evidence.name)
        _same_numbers(stored.path, row, expected)
        yield row, record


def _same_numbers(path: Path, row: EntryRow, expected: EntryRow) -> None:
    stated, computed = row.model_dump(mode="json"), expected.model_dump(mode="json")
    for field in ("attack", "norm", "eps", "n_examples", "clean_accuracy", "robust_accuracy", "warnings"):
        if stated[field] != computed[field]:
            raise InputError(
                f"{path}: {field} of the row {row.record} is {json.dumps(stated[field])}, "
                f"but its record gives {json.dumps(computed[field])}: submit the record again"
            )


def check_fields(stored: StoredEntry, card: ModelCard | None) -> None:
    """Refuse an entry with a field that its rows and its card do not give; `FREE_FIELDS` may be anything.

    Args:
        stored: The entry, its rows checked by `checked_records`.
        card: The card of the weights that were evaluated; without it, only what follows from the rows is checked.

    Raises:
        InputError: Names the first such field, what it says and what it should be.
    """
    entry, evidence = stored.entry, stored.entry.sam_bench
    top = headline(evidence.rows, dataset=entry.dataset, threat=evidence.threat)
    if top is None:
        raise InputError(f"{stored.path} has no row of AutoAttack (standard) in {evidence.threat}: submit its record")
    if card is None:
        fields = fields_of_headline(top, dataset=stored.dataset, listed=entry.dataset, threat=evidence.threat)
        expected, given_by = entry.model_copy(update=fields), "its records give"
    else:
        _is_listed_as(stored, card)
        expected = make_entry(card, evidence.rows, card_link=evidence.card)
        given_by = f"its card {_card_file(stored)} and its records give"
    right = _stated(expected)
    for field, value in _stated(entry).items():
        if field not in FREE_FIELDS and value != right[field]:
            raise InputError(
                f"{stored.path}: {field} is {json.dumps(value)}, but {given_by} {json.dumps(right[field])}: "
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
