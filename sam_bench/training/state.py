"""What a run is, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field

from sam_bench.records import Architecture, ExtraData, Name, Norm, Precision, Recipe, Record
from sam_bench.records.fields import SCHEMA_VERSION, Radius, Sha256
from sam_bench.training.differences import Difference, first_difference
from sam_bench.training.metrics import NO_SUMS, Sums
from sam_bench.training.step import Passes


class RunConfig(Record):
    """Everything that decides what a run learns: two runs are the same one if `first_difference` finds nothing."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name
    recipe: Recipe
    architecture: Architecture
    dataset: Name
    seed: int
    train_examples: int
    train_fingerprint: Sha256
    validation_examples: int = Field(ge=0)
    validation_norm: Norm
    validation_eps: Radius
    precision: Precision
    compiled: bool = False
    micro_batch: int | None = Field(default=None, ge=1)
    sync_ascent: bool = False
    sync_bn: bool = False
    init: str | None = None
    init_sha256: Sha256 | None = None
    extra_data: ExtraData | None = None
    additional_data: bool = False
    on_nan: Literal["stop", "rollback"] = "stop"
    select: Literal["last", "best"] = "last"
    identity: dict[str, Any] = Field(default_factory=dict, repr=False)
    """What the user asked for: field to value. It names what differs; older runs do not have it."""

    def first_difference(self, other: RunConfig) -> Difference | None:
        """Where another config differs first, named as the user names it; None where it is of the same run.

        The name is not compared: a run may be registered under another one.
        """
        fields = {"name", "identity"}
        decided = first_difference(*(each.model_dump(mode="json", exclude=fields) for each in (self, other)))
        if decided is None:
            return None
        asked = first_difference(self.identity, other.identity) if self.identity and other.identity else None
        path = decided.field.removeprefix("recipe.").removesuffix(".method")
        return asked or replace(decided, field=path)


LogRow = dict[str, float]
"""One epoch's metrics: column name to number."""


@dataclass
class RunState:
    """How far a run is: with the tensors of a checkpoint, everything needed to continue it.

    Random streams are functions of the seed and the step, so they need no state here.

    Attributes:
        epoch: Epochs done.
        batch: Batches done of the epoch after those.
        sums: What `Metrics` summed over these batches, in all processes.
        epoch_seconds: Time they took.
        epoch_joules: Energy that all devices of the run used for them; None where not all of it was told.
        seconds: Time of the epochs done.
        joules: Energy of the epochs done; None where not all of it was told.
        passes: Passes so far.
        log: A row an epoch done.
        lr_scale: Multiplies the learning rate: halved by every rollback.
        rollbacks: How often the run went back because it diverged.
        best_epoch: The epoch with the best validation so far; 0 when there is none.
        best: Its robust, then its clean accuracy.
        devices: The number of devices the run last had.
    """

    epoch: int = 0
    batch: int = 0
    sums: Sums = NO_SUMS
    epoch_seconds: float = 0.0
    epoch_joules: float | None = 0.0
    seconds: float = 0.0
    joules: float | None = 0.0
    passes: Passes = field(default_factory=Passes)
    log: list[LogRow] = field(default_factory=list)
    lr_scale: float = 1.0
    rollbacks: int = 0
    best_epoch: int = 0
    best: tuple[float, float] = (-1.0, -1.0)
    devices: int = 1
