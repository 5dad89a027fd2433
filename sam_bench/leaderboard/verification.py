"""How far an entry is verified: read from the report of a verification, if that report is about this very entry."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sam_bench.errors import InputError
from sam_bench.leaderboard.entries import headline_of, read_entry
from sam_bench.leaderboard.files import LARGEST_RECORD, read_bytes, read_checked
from sam_bench.locks import claimed
from sam_bench.records import State, VerificationReport


def manifest_path(entry_file: Path) -> Path:
    """Where the manifest of an entry lies: `records/<name>.manifest.json` beside it."""
    return _beside(entry_file, "manifest")


def report_path(entry_file: Path) -> Path:
    """Where the verification report of an entry lies: `records/<name>.verification.json` beside it."""
    return _beside(entry_file, "verification")


def _beside(entry_file: Path, kind: str) -> Path:
    return entry_file.parent / "records" / f"{entry_file.name.removesuffix('.json')}.{kind}.json"


def report_of(entry_file: Path) -> VerificationReport | None:
    """The verification report of an entry; None where there is none that counts.

    A report counts for the exact bytes of entry and manifest that were verified. A stale one, one that was copied
    from another entry and one that cannot be read count for nothing.

    Args:
        entry_file: `<folder>/<dataset>/<threat>/<name>.json`.
    """
    try:
        report, _ = read_checked(report_path(entry_file), VerificationReport)
        digests = tuple(digest_of(path) for path in (entry_file, manifest_path(entry_file)))
    except InputError:
        return None
    return report if digests == (report.entry_sha256, report.manifest_sha256) else None


def withdraw_report(entry_file: Path, entry_sha256: str) -> None:
    """Delete the report of an entry that was refuted, unless the entry has changed since."""
    with claimed(entry_file.parent):
        if digest_of(entry_file) == entry_sha256:
            report_path(entry_file).unlink(missing_ok=True)


def digest_of(file: Path) -> str:
    """SHA-256 of an entry's or a manifest's file.

    Raises:
        InputError: It is no plain file of a size that such files have.
    """
    return hashlib.sha256(read_bytes(file, LARGEST_RECORD)).hexdigest()


def state_of(entry_file: Path, record: str | None = None) -> State:
    """How far a row of an entry is verified: claimed where no report counts.

    Args:
        entry_file: `<folder>/<dataset>/<threat>/<name>.json`.
        record: The row, by the path of its record (`EntryRow.record`); default the row that the board ranks by.

    Raises:
        InputError: The entry itself cannot be read.
    """
    report = report_of(entry_file)
    if record is None:
        top = headline_of(read_entry(entry_file).entry)
        record = top.record if top else None
    rows = report.rows if report else []
    return next((row.state for row in rows if row.record == record), "claimed")
