"""A run's folder: what it is (`config.json`), how far it is (`checkpoint.pt`), what happened (`log.csv`)."""

from __future__ import annotations

import csv
import io
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from sam_bench.errors import InputError, SamBenchError
from sam_bench.records import (
    Architecture,
    Name,
    Norm,
    Precision,
    Recipe,
    Record,
    read_record,
    write_atomic,
    write_record,
)
from sam_bench.records.fields import SCHEMA_VERSION, Radius, Sha256
from sam_bench.training.step import Passes


class RunConfig(Record):
    """Everything that decides what a run learns: two runs with equal configs are the same run."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name
    recipe: Recipe
    architecture: Architecture
    dataset: Name
    train_fingerprint: Sha256
    train_examples: int
    validation_examples: int = Field(ge=0)
    validation_norm: Norm
    validation_eps: Radius
    seed: int
    precision: Precision
    compiled: bool = False


LogRow = dict[str, float]
"""One epoch's figures: column name to number."""


@dataclass
class RunState:
    """How far a run is; everything needed to continue it."""

    epoch: int = 0
    """Epochs done."""
    seconds: float = 0.0
    passes: Passes = field(default_factory=Passes)
    log: list[LogRow] = field(default_factory=list)


class RunFolder:
    """The files of one run.

    Args:
        path: The folder; made when the run is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.json"
        self.checkpoint_file = path / "checkpoint.pt"
        self.log_file = path / "log.csv"

    def open(self, config: RunConfig, *, resume: bool) -> bool:
        """Claim the folder for a run.

        Returns:
            True when there is a checkpoint to continue from.

        Raises:
            InputError: A run is here already and `resume` was not asked for; or the run here is
                another one, in which case the first field that differs is named.
        """
        if self.config_file.exists():
            there = read_record(self.config_file, RunConfig)
            if not resume:
                raise InputError(
                    f"{self.path} holds a run already: add --resume to continue it, "
                    "or choose another --name or --run-dir"
                )
            difference = _first_difference(there.model_dump(mode="json"), config.model_dump(mode="json"))
            if difference:
                where, before, now = difference
                raise InputError(
                    f"cannot resume {self.path}: it was started with {where} = {before!r} "
                    f"and this command gives {now!r}"
                )
            return self.checkpoint_file.exists()
        write_record(self.config_file, config)
        return False

    def save(self, state: RunState, tensors: dict[str, Any]) -> None:
        """Write the checkpoint and the log, each whole or not at all."""
        content = io.BytesIO()
        torch.save({"state": asdict(state), **tensors}, content)
        write_atomic(self.checkpoint_file, content.getvalue())
        self._write_log(state.log)

    def load(self) -> tuple[RunState, dict[str, Any]]:
        """The last checkpoint.

        Raises:
            SamBenchError: The file is damaged.
        """
        try:
            tensors = torch.load(self.checkpoint_file, map_location="cpu", weights_only=True)
            fields = tensors.pop("state")
            state = RunState(**(fields | {"passes": Passes(**fields["passes"])}))
        except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise SamBenchError(
                f"{self.checkpoint_file} is not a checkpoint of this program or is damaged "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); delete it to start over"
            ) from error
        return state, tensors

    def _write_log(self, rows: list[LogRow]) -> None:
        text = io.StringIO()
        if rows:
            writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in rows)
        write_atomic(self.log_file, text.getvalue())


def _first_difference(before: Any, now: Any, where: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            inner = _first_difference(before.get(key), now.get(key), f"{where}.{key}" if where else key)
            if inner:
                return inner
        return None
    return None if before == now else (where, before, now)
