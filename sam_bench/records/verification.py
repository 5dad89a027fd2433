"""What makes an entry checkable, and what checking it found: the manifest and the verification report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sam_bench.records.fields import SCHEMA_VERSION, Fraction01, Name, Record, Sha256, Threat
from sam_bench.records.sampling import LEVEL

State = Literal["claimed", "replayed", "audited"]
"""How far a row is verified. Claimed: its numbers follow from its verdicts. Replayed: every broken example was shown
to be broken, so the robust accuracy is an upper bound. Audited: AutoAttack was run again on random examples of those
claimed robust, which gives a lower bound."""


class FileDigest(Record):
    """A file as it was when the manifest was made."""

    sha256: Sha256
    size: int = Field(ge=0, description="bytes")


class Manifest(Record):
    """`leaderboards/<dataset>/<threat>/records/<name>.manifest.json`: every file that an entry rests on."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name
    dataset: Name
    threat: Threat
    files: dict[str, FileDigest] = Field(
        description="'card', 'weights', each row's 'records/NAME.json' and, where there is one, its "
        "'records/NAME.adversarial.npz'"
    )


class Audit(Record):
    """AutoAttack (standard), run again on random examples of those that a row claims to be robust."""

    beacon: str = Field(description="the public text that decided the draw, made after the entry")
    seed: int = Field(description="decides the attack's random numbers")
    drawn: list[int] = Field(description="the examples, as indices of `verdicts`, ascending")
    broken: list[int] = Field(description="those of them that were broken: false claims")
    level: float = Field(default=LEVEL, gt=0, lt=1, description="how sure the bounds are")
    may_be_false: Fraction01 = Field(description="Clopper-Pearson upper bound on the share of claims that are false")
    at_least: Fraction01 = Field(description="lower bound on the robust accuracy that follows, at `level`")

    @model_validator(mode="after")
    def _broken_were_drawn(self) -> Audit:
        for indices in (self.drawn, self.broken):
            if indices != sorted(set(indices)):
                raise ValueError("drawn and broken must be ascending")
        if not set(self.broken) <= set(self.drawn):
            raise ValueError("broken names an example that was not drawn")
        return self


class VerifiedRow(Record):
    """What was verified of one row of an entry."""

    record: str = Field(description="path of the EvaluationRecord, as the row has it")
    at_most: Fraction01 | None = Field(
        default=None, description="upper bound on the robust accuracy that replay proved; null if it was not replayed"
    )
    audit: Audit | None = None

    @property
    def state(self) -> State:
        """Claimed, replayed or audited; an audit without a replay does not count."""
        if self.at_most is None:
            return "claimed"
        return "replayed" if self.audit is None else "audited"


class VerificationReport(Record):
    """`leaderboards/<dataset>/<threat>/records/<name>.verification.json`, made by a verification that passed.

    It counts for the entry and the manifest with these digests alone.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    entry_sha256: Sha256
    manifest_sha256: Sha256
    rows: list[VerifiedRow]
    packages: dict[str, str] = Field(description="versions of Python and the packages that decide the numbers")
    created: str = Field(description="UTC, ISO 8601")
