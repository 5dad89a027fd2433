"""A run's folder: what it is (`config.json`), how far it is (`checkpoint.pt`), what happened (`log.csv`)."""

from __future__ import annotations

import csv
import io
import pickle
import zipfile
import zlib
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
                    f"or choose another --name or --run-dir{self._hint()}"
                )
            difference = _first_difference(there.model_dump(mode="json"), config.model_dump(mode="json"))
            if difference:
                where, before, now = difference
                raise InputError(
                    f"cannot resume {self.path}: it was started with {where} = {before!r} "
                    f"and this command gives {now!r}{self._hint()}"
                )
            return self.checkpoint_file.exists()
        write_record(self.config_file, config)
        return False

    def _hint(self) -> str:
        if self.checkpoint_file.exists():
            return ""
        return "; it has not finished an epoch, so if it does not run any more its folder can be deleted"

    def save(self, state: RunState, tensors: dict[str, Any]) -> None:
        """Write the log and the checkpoint, each whole or not at all.

        The checkpoint comes last: whatever it says is done is in the log, wherever a run is killed.
        """
        self._write_log(state.log)
        content = io.BytesIO()
        torch.save({"state": asdict(state), **tensors}, content)
        write_atomic(self.checkpoint_file, content.getvalue())

    def load(self) -> tuple[RunState, dict[str, Any]]:
        """The last checkpoint.

        Raises:
            SamBenchError: The file is damaged.
        """
        try:
            damage = _damage(self.checkpoint_file)
            if damage is None:
                tensors = torch.load(self.checkpoint_file, map_location="cpu", weights_only=True)
                fields = tensors.pop("state")
                return RunState(**(fields | {"passes": Passes(**fields["passes"])})), tensors
        except pickle.UnpicklingError:
            damage = "it holds more than tensors, which is never loaded: nothing of it was run"
        except (OSError, EOFError, RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
            damage = (str(error) or type(error).__name__).splitlines()[0]
        raise SamBenchError(
            f"{self.checkpoint_file} is not a checkpoint of this program or is damaged ({damage}); "
            "delete it to start this run over"
        )

    def _write_log(self, rows: list[LogRow]) -> None:
        text = io.StringIO()
        if rows:
            writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in rows)
        write_atomic(self.log_file, text.getvalue())


def _damage(path: Path) -> str | None:
    """Why a checkpoint's bytes are not those that were written, as a clause; None when they are."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            pickled = file.read(1) == b"\x80"
        return (
            "it is a pickle, which is never loaded: nothing of it was run" if pickled else "it is cut short or foreign"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            altered = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        return str(error)
    return None if altered is None else f"altered: the CRC-32 of {altered} is not the one stored with it"


def _first_difference(before: Any, now: Any, where: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            inner = _first_difference(before.get(key), now.get(key), f"{where}.{key}" if where else key)
            if inner:
                return inner
        return None
    return None if before == now else (where, before, now)
