"""Entries: made from a card and its records alone, and read back; `checks` holds them against both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_bench.errors import InputError
from sam_bench.leaderboard.files import read_checked
from sam_bench.leaderboard.labels import (
    AUTOATTACK,
    architecture_label,
    attack_name,
    examples_text,
    method_label,
    percent,
    radius_key,
    radius_text,
    split_warnings,
)
from sam_bench.perturb.ball import USUAL_EPS
from sam_bench.records import (
    NAME_PATTERN,
    EntryEvidence,
    EntryRow,
    EvaluationRecord,
    LeaderboardEntry,
    ModelCard,
    Norm,
    Radius,
)

RowKey = tuple[str, str, float]

# RobustBench's boards: data set, threat model -> radius. Its ImageNet list is 5,000 validation images.
OFFICIAL_EPS: dict[tuple[str, str], Radius] = {
    ("cifar10", "Linf"): Radius("8/255"),
    ("cifar10", "L2"): Radius("0.5"),
    ("cifar100", "Linf"): Radius("8/255"),
    ("imagenet", "Linf"): Radius("4/255"),
}
OFFICIAL_EXAMPLES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}


@dataclass(frozen=True)
class StoredEntry:
    """An entry and where it lies: `<folder>/<dataset>/<threat>/<name>.json`."""

    path: Path
    entry: LeaderboardEntry

    @property
    def dataset(self) -> str:
        """Our name of the data set (the folder's); the entry's own field is RobustBench's name."""
        return self.path.parent.parent.name

    def record_path(self, row: EntryRow) -> Path:
        """The record that a row was computed from."""
        return self.path.parent / row.record

    def card_path(self) -> Path:
        """The card of the entry's model; it may be missing where the zoo is not shipped along."""
        return self.path.parent / self.entry.sam_bench.card


def row_key(row: EntryRow) -> RowKey:
    """What an entry holds one row of: attack, norm and radius."""
    return (row.attack, row.norm, radius_key(row.eps))


def record_file_name(model: str, row: EntryRow) -> str:
    """Name of a row's record: `<model>-<attack>-<norm>-8over255.json`."""
    eps = radius_text(row.eps).replace("/", "over")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", eps):
        # The number, so that `1e+1` and `1e-1` do not get one name.
        eps = f"{float(row.eps):.12g}".replace("+", "")
    return f"{model}-{row.attack}-{row.norm}-{eps}.json"


def row_from_record(record: EvaluationRecord, *, sha256: str, model: str) -> EntryRow:
    """The line of a table that a record gives.

    Args:
        record: The evaluation.
        sha256: SHA-256 of the record's file.
        model: The entry's name; decides the name of the record's copy.
    """
    row = EntryRow(
        record="",
        record_sha256=sha256,
        attack=attack_name(record),
        norm=record.norm,
        eps=Radius(radius_text(record.eps)),
        n_examples=record.n_examples,
        clean_accuracy=record.clean_accuracy,
        robust_accuracy=record.robust_accuracy,
        warnings=record.warnings,
        second_accuracy=record.second_opinion.robust_accuracy if record.second_opinion else None,
    )
    return row.model_copy(update={"record": f"records/{record_file_name(model, row)}"})


def official_eps(dataset: str, threat: Norm) -> Radius:
    """RobustBench's radius for a board; for data sets it does not know, the usual one of the norm."""
    return OFFICIAL_EPS.get((dataset, threat), USUAL_EPS[threat])


def headline(rows: Sequence[EntryRow], *, dataset: str, threat: Norm) -> EntryRow | None:
    """The row that RobustBench's fields are filled from.

    AutoAttack (standard) in the entry's own norm: at RobustBench's radius where there is one, else
    at the largest radius. None without such a row: another attack's number never takes its place.

    Args:
        rows: All rows of the entry.
        dataset: RobustBench's name of the data set, or ours.
        threat: The threat model the entry is listed under.
    """
    candidates = [row for row in rows if row.attack == AUTOATTACK and row.norm == threat]
    wanted = radius_key(official_eps(dataset, threat))
    for row in candidates:
        if radius_key(row.eps) == wanted:
            return row
    return max(candidates, key=lambda row: float(row.eps), default=None)


def headline_of(entry: LeaderboardEntry) -> EntryRow | None:
    """The row that an entry's RobustBench fields are filled from; the board ranks by it."""
    return headline(entry.sam_bench.rows, dataset=entry.dataset, threat=entry.sam_bench.threat)


def listed_dataset(card: ModelCard) -> str:
    """The data set that RobustBench's field names."""
    return card.robustbench_dataset or card.dataset


def make_entry(card: ModelCard, rows: Sequence[EntryRow], *, card_link: str) -> LeaderboardEntry:
    """The entry that a card and rows computed from records give; every RobustBench field is filled.

    Args:
        card: The model's card.
        rows: At least one of them AutoAttack (standard) in the card's threat model.
        card_link: Path of the card, relative to the entry's folder.

    Raises:
        InputError: There is no AutoAttack row; names the command that makes one.
    """
    dataset = listed_dataset(card)
    top = headline(rows, dataset=dataset, threat=card.threat)
    if top is None:
        eps = radius_text(official_eps(dataset, card.threat))
        raise InputError(
            f"{card.name} has no AutoAttack (standard) record in {card.threat}, which every entry needs: "
            f"evaluate it with autoattack in {card.threat} at eps {eps}"
        )
    order = sorted(
        rows, key=lambda row: (row.norm != card.threat, row.attack != AUTOATTACK, row.attack, float(row.eps))
    )
    return LeaderboardEntry(
        link=card.paper_link.strip() or "N/A",
        name=card.paper_title.strip() or f"sam-bench: {card.recipe.name}",
        authors=card.authors.strip() or "Anonymous",
        dataset=dataset,
        # RobustBench's BibTeX takes the last word as the year and fails on an empty text.
        venue=card.venue.strip() or "Unpublished",
        architecture=architecture_label(card.architecture),
        additional_data=card.additional_data,
        **fields_of_headline(top, rows, dataset=card.dataset, listed=dataset, threat=card.threat),
        sam_bench=EntryEvidence(
            name=card.name,
            threat=card.threat,
            method=method_label(card.recipe),
            card=card_link,
            checkpoint_sha256=card.weights.sha256,
            epochs=card.epochs,
            passes=card.passes,
            parameters=card.parameters,
            rows=order,
        ),
    )


def fields_of_headline(
    top: EntryRow, rows: Sequence[EntryRow], *, dataset: str, listed: str, threat: Norm
) -> dict[str, Any]:
    """The RobustBench fields that follow from the rows, without the card.

    Args:
        top: See `headline`.
        rows: All rows of the entry.
        dataset: Our name of the data set.
        listed: The data set that RobustBench's field names.
        threat: The threat model the entry is listed under.
    """
    return {
        "number_forward_passes": 1,
        "eps": radius_text(top.eps),
        "clean_acc": percent(top.clean_accuracy),
        "reported": percent(top.robust_accuracy),
        "autoattack_acc": percent(top.robust_accuracy),
        "external": _best_known(top, rows),
        "footnote": _footnote(top, dataset=dataset, listed=listed, threat=threat),
        "unreliable": True if top.warnings else None,
    }


def _best_known(top: EntryRow, rows: Sequence[EntryRow]) -> str | None:
    """The lowest robust accuracy that any attack left at the headline's radius; None where AutoAttack's is lowest."""
    same = [
        row
        for row in rows
        if (row.norm, radius_key(row.eps), row.n_examples) == (top.norm, radius_key(top.eps), top.n_examples)
    ]
    found = [value for row in same for value in (row.robust_accuracy, row.second_accuracy) if value is not None]
    lowest = min(found, default=top.robust_accuracy)
    return percent(lowest) if lowest < top.robust_accuracy else None


def _footnote(top: EntryRow, *, dataset: str, listed: str, threat: Norm) -> str | None:
    """What a reader of the RobustBench fields alone must be told; None when its conditions are met."""
    said = []
    if dataset != listed:
        said.append(f"evaluated on {dataset}, not on {listed}")
    if top.n_examples != OFFICIAL_EXAMPLES.get(listed):
        said.append(f"on {examples_text(top.n_examples)}")
    official = OFFICIAL_EPS.get((listed, threat))
    if official is not None and radius_key(official) != radius_key(top.eps):
        said.append(f"at eps {radius_text(top.eps)}, not {official}")
    own, others = split_warnings(top.warnings)
    said.extend(f"AutoAttack warns: {warning}" for warning in own)
    said.extend(f"a second attack: {warning}" for warning in others)
    return "; ".join(said) or None


def read_entry(path: Path) -> StoredEntry:
    """Read one entry and check that it lies where its own fields say.

    Raises:
        InputError: Not an entry, or in a folder or under a name that is not its own.
    """
    stored = StoredEntry(path, read_checked(path, LeaderboardEntry)[0])
    evidence = stored.entry.sam_bench
    expected = Path(evidence.threat) / f"{evidence.name}.json"
    if Path(path.parent.name) / path.name != expected:
        raise InputError(f"{path} is the entry of {evidence.name} under {evidence.threat}: it belongs at {expected}")
    return stored


def read_entries(folder: Path | str) -> list[StoredEntry]:
    """Every entry of a leaderboards folder (`<dataset>/<threat>/<name>.json`), in the order of their paths.

    Raises:
        InputError: A file there is not a valid entry; names it and the field.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.glob("*/*/*.json") if not path.name.startswith("."))
    for path in paths:
        for name in path.relative_to(folder).parts:
            if not re.fullmatch(rf"{NAME_PATTERN}(\.json)?", name):
                raise InputError(f"{name!r} in {folder} is not the name of a data set, a threat model or an entry")
    return [read_entry(path) for path in paths]
