"""The evidence of an entry: its manifest, and the adversarial examples beside its records."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from sam_bench.errors import InputError
from sam_bench.leaderboard.entries import StoredEntry
from sam_bench.leaderboard.files import read_bytes, read_checked, shown, shown_path
from sam_bench.leaderboard.verification import manifest_path
from sam_bench.records import FileDigest, Manifest, ModelCard, adversarial_path, write_record

LARGEST_FILE = 4 * 2**30
"""Bytes that weights or adversarial examples may have."""


def evidence_files(stored: StoredEntry, card: ModelCard) -> dict[str, Path]:
    """Every file that an entry rests on, by the name that its manifest gives it; those that exist.

    Args:
        stored: The entry.
        card: Its card.
    """
    card_file = stored.card_path()
    files = {"card": card_file, "weights": card_file.with_name(card.weights.file)}
    for row in stored.entry.sam_bench.rows:
        record = stored.record_path(row)
        bundle = adversarial_path(record)
        files |= {row.record: record, f"records/{bundle.name}": bundle}
    return {name: path for name, path in files.items() if path.exists()}


def digests_of(files: Mapping[str, Path]) -> dict[str, FileDigest]:
    """Size and SHA-256 of files."""
    digests = {}
    for name, path in files.items():
        content = read_bytes(path, LARGEST_FILE)
        digests[name] = FileDigest(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    return digests


def write_manifest(stored: StoredEntry, card: ModelCard) -> None:
    """Write the manifest of an entry as its files are now."""
    evidence = stored.entry.sam_bench
    files = digests_of(evidence_files(stored, card))
    manifest = Manifest(name=evidence.name, dataset=stored.dataset, threat=evidence.threat, files=files)
    write_record(manifest_path(stored.path), manifest)


def check_manifest(stored: StoredEntry, card: ModelCard) -> str:
    """Refuse an entry whose files are not those of its manifest.

    No path is taken from the manifest: the files are those that the entry and its card name.

    Returns:
        SHA-256 of the manifest's file.

    Raises:
        InputError: There is no manifest, it is another entry's, or a file is missing, altered or too many.
    """
    path = manifest_path(stored.path)
    if not path.exists():
        raise InputError(f"{path} does not exist: submit the entry's records again, which writes it")
    manifest, digest = read_checked(path, Manifest)
    evidence = stored.entry.sam_bench
    own = (evidence.name, stored.dataset, evidence.threat)
    if (manifest.name, manifest.dataset, manifest.threat) != own:
        raise InputError(f"{path} is of {manifest.dataset}/{manifest.threat}/{manifest.name}, not of {stored.path}")
    found = digests_of(evidence_files(stored, card))
    for name in ("card", "weights", *sorted(found.keys() | manifest.files.keys())):
        stated, there = manifest.files.get(name), found.get(name)
        if there is None:
            raise InputError(f"{shown(name)}, which the entry rests on, is not there")
        if stated is None:
            raise InputError(f"{path} does not name {shown(name)}: submit the entry's records again")
        if stated != there:
            raise InputError(
                f"{shown(name)} is not the file that {path} names (SHA-256 expected {stated.sha256}, found "
                f"{there.sha256})"
            )
    return digest


def check_places(stored: StoredEntry) -> None:
    """Refuse links: what belongs to an entry lies in its folder, and nothing outside is read.

    Raises:
        InputError: The entry, its folder of records or a file in that is a link.
    """
    records = [stored.record_path(row) for row in stored.entry.sam_bench.rows]
    bundles = [adversarial_path(path) for path in records]
    for path in (stored.path, stored.path.parent / "records", manifest_path(stored.path), *records, *bundles):
        if os.path.islink(path):  # noqa: PTH114  # Path.is_symlink fails where a name is too long
            raise InputError(f"{shown_path(path)} is a link: put the file itself there")


def read_bundle(path: Path) -> bytes:
    """The bytes of a file of adversarial examples; empty where there is none."""
    return read_bytes(path, LARGEST_FILE) if path.exists() else b""
