"""A run's folder: what it is (`config.json`), how far it is (`checkpoint.pt`), what happened (`log.csv`)."""

from __future__ import annotations

import csv
import io
import os
import pickle
import shutil
import zipfile
import zlib
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam_bench.errors import InputError, SamBenchError, first_line
from sam_bench.locks import claimed
from sam_bench.records import read_record, write_atomic, write_record
from sam_bench.training.state import LogRow, RunConfig, RunState
from sam_bench.training.step import Passes

_FORMAT = 4
"""What a checkpoint's `state` and tensors mean; raised with every change of either, so that no version of this
program goes on from what it would misread. Checkpoints before the second had no number."""


class RunFolder:
    """The files of one run.

    Args:
        path: The folder; made when the run is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.json"
        self.checkpoint_file = path / "checkpoint.pt"
        self.best_file = path / "best.pt"
        self.log_file = path / "log.csv"

    def config(self) -> RunConfig | None:
        """What the run here is; None where there is none."""
        return read_record(self.config_file, RunConfig) if self.config_file.exists() else None

    def claimed(self) -> AbstractContextManager[None]:
        """Keep other processes out of the folder for the time of a block: two would write one checkpoint.

        Raises:
            InputError: Another process has it.
        """
        return claimed(self.path, otherwise="choose another `name` or `run_dir`")

    def open(self, config: RunConfig, *, resume: bool) -> bool:
        """Claim the folder for a run, where `check` has nothing against it.

        Returns:
            True when there is a checkpoint to continue from.
        """
        self.check(config, resume=resume)
        if self.config_file.exists():
            return self.checkpoint_file.exists()
        write_record(self.config_file, config)
        return False

    def check(self, config: RunConfig, *, resume: bool) -> None:
        """Refuse a folder that is not this run's.

        Raises:
            InputError: A run is here already and `resume` was not asked for; or the run here is
                another one, in which case the first option that differs is named.
        """
        there = self.config()
        if there is not None:
            difference = there.first_difference(config)
            if difference and resume:
                raise InputError(f"cannot resume {self.path}: {difference}{self._hint()}")
            if difference:
                raise InputError(
                    f"{self.path} holds another run already: {difference}; "
                    f"choose another `name` or `run_dir`{self._hint()}"
                )
            if not resume:
                raise InputError(
                    f"{self.path} holds a run already: add `resume=True` to continue it, "
                    f"or choose another `name` or `run_dir`{self._hint()}"
                )

    def _hint(self) -> str:
        if self.checkpoint_file.exists():
            return ""
        return "; it has not finished an epoch, so if it does not run any more its folder can be deleted"

    def save(self, state: RunState, tensors: dict[str, Any], *, keep: int = 1) -> None:
        """Write the log and the checkpoint, each whole or not at all.

        The checkpoint comes last: whatever it says is done is in the log, wherever a run is killed.

        Args:
            state: Where the run is.
            tensors: What it has learned, as state dicts.
            keep: How many epochs' checkpoints stay, this one among them.
        """
        self._write_log(state.log)
        _write(self.checkpoint_file, {"format": _FORMAT, "state": asdict(state), **tensors})
        if keep > 1 and state.batch == 0:
            self._keep(state.epoch, keep)

    def save_best(self, epoch: int, model: dict[str, Tensor]) -> None:
        """Write the weights of the best epoch so far."""
        _write(self.best_file, {"epoch": epoch, "model": model})

    def load_best(self) -> dict[str, Tensor]:
        """The weights of the best epoch.

        Raises:
            SamBenchError: The file is damaged or missing.
        """
        weights: dict[str, Tensor] = self._read(self.best_file, needs=("model",))["model"]
        return weights

    def kept(self, *, until: int | None = None) -> list[Path]:
        """The checkpoints of whole epochs that were asked to stay, oldest first.

        Args:
            until: Leave out those of later epochs, but for the oldest.
        """
        paths = sorted(self.path.glob("checkpoint-epoch*.pt"))
        return paths[:1] + [path for path in paths[1:] if until is None or int(path.stem[-5:]) <= until]

    def _keep(self, epoch: int, keep: int) -> None:
        copy = self.path / f"checkpoint-epoch{epoch:05d}.pt"
        copy.unlink(missing_ok=True)
        try:
            os.link(self.checkpoint_file, copy)
        except OSError:  # not every file system has hard links
            shutil.copyfile(self.checkpoint_file, copy)
        for old in self.kept()[:-keep]:
            old.unlink()

    def load(self, path: Path | None = None) -> tuple[RunState, dict[str, Any]]:
        """A checkpoint, the last one unless another is given.

        Raises:
            SamBenchError: The file is damaged, or of another version of this program.
        """
        path = path or self.checkpoint_file
        tensors = self._read(path, needs=("state", "model", "optimizer"))
        written = tensors.pop("format", 1)
        if written != _FORMAT:
            raise SamBenchError(
                f"{path} was written by another version of sam-bench (its format is {written}, here it is {_FORMAT}): "
                f"continue this run with the version that began it, or delete {path.parent} to start it over"
            )
        fields = tensors.pop("state")
        return RunState(**(fields | {"passes": Passes(**fields["passes"])})), tensors

    def _read(self, path: Path, *, needs: tuple[str, ...]) -> dict[str, Any]:
        try:
            damage = _damage(path)
            if damage is None:
                content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                missing = [key for key in needs if not isinstance(content[key], dict)]
                if not missing:
                    return content
                damage = f"its {missing[0]} is not what it should be"
        except pickle.UnpicklingError:
            damage = "it holds more than tensors, which is never loaded: nothing of it was run"
        except (OSError, EOFError, RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
            damage = first_line(error)
        kept = self.kept()
        way = f"copy {kept[-1].name} over it to go on from there" if kept else "delete it to start this run over"
        raise SamBenchError(f"{path} is not a checkpoint of this program or is damaged ({damage}); {way}")

    def _write_log(self, rows: list[LogRow]) -> None:
        text = io.StringIO()
        if rows:
            columns = list(dict.fromkeys(key for row in rows for key in row))  # some begin in a later epoch
            writer = csv.DictWriter(text, fieldnames=columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in rows)
        write_atomic(self.log_file, text.getvalue())


def _write(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


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
