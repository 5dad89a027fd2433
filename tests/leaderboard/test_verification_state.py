"""The state of a row comes from a report about this very entry and manifest, and from nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from leaderboard_samples import Bench, make_card, make_record
from pydantic import ValidationError

from sam_bench.leaderboard.verification import manifest_path, report_of, report_path, state_of
from sam_bench.records import Audit, Manifest, VerificationReport, VerifiedRow, sha256_file, write_record


@pytest.fixture
def entry(bench: Bench) -> Path:
    """An entry of two rows with a manifest."""
    card = make_card("m")
    records = [make_record(card, clean=90, robust=50), make_record(card, clean=90, robust=60, attack="pgd")]
    path: Path = bench.submit(card, *records).path
    write_record(manifest_path(path), Manifest(name="m", dataset="cifar10", threat="Linf", files={}))
    return path


def write_report(entry: Path) -> None:
    audit = Audit(beacon="a commit", seed=0, drawn=[1, 5], broken=[], may_be_false=0.78, at_least=0.11)
    records = sorted(f"records/{path.name}" for path in (entry.parent / "records").glob("*Linf-8over255.json"))
    assert ["autoattack" in records[0], "pgd" in records[1]] == [True, True]
    rows = [VerifiedRow(record=records[0], at_most=0.5, audit=audit), VerifiedRow(record=records[1], at_most=0.6)]
    report = VerificationReport(
        entry_sha256=sha256_file(entry),
        manifest_sha256=sha256_file(manifest_path(entry)),
        rows=rows,
        packages={},
        created="2026-01-01T00:00:00Z",
    )
    write_record(report_path(entry), report)


def test_without_a_report_an_entry_is_claimed(entry: Path) -> None:
    assert state_of(entry) == "claimed" and report_of(entry) is None


def test_each_row_has_its_state_and_the_entry_that_of_its_headline(entry: Path) -> None:
    write_report(entry)
    assert state_of(entry) == "audited"
    assert state_of(entry, "records/m-pgd-20-Linf-8over255.json") == "replayed"
    assert state_of(entry, "records/other.json") == "claimed"


@pytest.mark.parametrize("which", ["entry", "manifest", "report", "no manifest"])
def test_a_report_counts_for_the_very_bytes_that_were_verified(entry: Path, which: str) -> None:
    write_report(entry)
    path = {"entry": entry, "report": report_path(entry)}.get(which, manifest_path(entry))
    if which == "no manifest":
        path.unlink()
    else:
        path.write_text(path.read_text() + (" x" if which == "report" else " "))
    assert state_of(entry) == "claimed"


def test_a_report_copied_from_another_entry_counts_for_nothing(entry: Path, bench: Bench) -> None:
    write_report(entry)
    card = make_card("n")
    other: Path = bench.submit(card, make_record(card, clean=90, robust=50)).path
    manifest_path(other).write_bytes(manifest_path(entry).read_bytes())
    report_path(other).write_bytes(report_path(entry).read_bytes())
    assert state_of(other) == "claimed"


def test_an_audit_without_a_replay_does_not_count() -> None:
    audit = Audit(beacon="b", seed=0, drawn=[0], broken=[], may_be_false=0.95, at_least=0.05)
    assert VerifiedRow(record="records/r.json", audit=audit).state == "claimed"
    with pytest.raises(ValidationError, match="was not drawn"):
        Audit(**audit.model_dump() | {"broken": [3]})
