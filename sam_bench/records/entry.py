"""LeaderboardEntry: RobustBench's `model_info`, plus one block that points at the evidence."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sam_bench.records.fields import SCHEMA_VERSION, Fraction01, Name, Norm, Radius, Record, Sha256, Threat


class EntryRow(Record):
    """One evaluation of the entry's model: a line of the table. Computed from the record it names."""

    record: str = Field(description="path of the EvaluationRecord, relative to the entry's folder")
    record_sha256: Sha256
    attack: str
    norm: Norm
    eps: Radius
    n_examples: int
    clean_accuracy: Fraction01
    robust_accuracy: Fraction01
    warnings: list[str] = Field(default_factory=list)
    second_accuracy: Fraction01 | None = Field(
        default=None, description="robust accuracy under this and a second attack; null if there was none"
    )


class EntryEvidence(Record):
    """Ours in an otherwise plain RobustBench file; its tools pass over it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name
    threat: Threat
    method: str = Field(description="the recipe's name, with the settings that tell it apart")
    card: str = Field(description="path of the ModelCard, relative to the entry's folder")
    checkpoint_sha256: Sha256
    epochs: int
    passes: float | None = Field(
        default=None, description="forward-backward passes per training example over the run; null if not known"
    )
    parameters: int
    rows: list[EntryRow] = Field(min_length=1)


class LeaderboardEntry(Record):
    """`leaderboards/<dataset>/<threat>/<name>.json`.

    The fields up to `autoattack_acc` are RobustBench's, with its names, types and per-cent strings:
    its own `list_available_models` and `get_leaderboard_latex` read the file as it stands.
    """

    link: str
    name: str = Field(description="the paper's title")
    authors: str
    additional_data: bool
    number_forward_passes: int
    dataset: str
    venue: str
    architecture: str
    eps: str
    clean_acc: str
    reported: str
    autoattack_acc: str
    external: str | None = Field(default=None, description="best-known robust accuracy, if AutoAttack's is higher")
    footnote: str | None = None
    unreliable: bool | None = None
    sam_bench: EntryEvidence
