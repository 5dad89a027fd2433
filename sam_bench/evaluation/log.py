"""The log of an evaluation: what is settled of each example, on disk the moment it is known.

A folder of files that only grow, one for each session. A line says what became of one example and ends with a
checksum. A line that a kill cut short, and one that is damaged, is left out when the log is read.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam_bench.attacks.events import AttackWarning, Event, Verdict
from sam_bench.errors import InputError, SamBenchError, shortened
from sam_bench.evaluation.problem import UNASKED, Problem, differences, in_words
from sam_bench.locks import claimed
from sam_bench.records import MISCLASSIFIED, ROBUST, write_atomic

_SYNC_EVERY = 5.0  # seconds between two times that the disk is waited for; a killed process loses nothing anyway


class Log:
    """The folder of one evaluation under way.

    Args:
        path: Where it is; beside the record it will become.
        problem: What is evaluated.

    Attributes:
        verdicts: Place in the data set to the last that is known of the example, without `x_adv`.
        warnings: The attack's warnings as records keep them, each once.
        seconds: Time spent so far.
        damaged: File and line of what was left out because it makes no sense, each with the reason.
    """

    def __init__(self, path: Path, problem: Problem) -> None:
        self.path, self._problem = path, problem
        self._identity_file = path / "identity.json"
        self._allowed = {ROBUST, MISCLASSIFIED, *problem.attack.attacks}
        self._file: int | None = None
        self._part = path
        self._started = self._synced = 0.0
        self._forget()

    def _forget(self) -> None:
        self.verdicts: dict[int, Verdict] = {}
        self.warnings: list[str] = []
        self.seconds = 0.0
        self.damaged: list[str] = []

    def claimed(self) -> AbstractContextManager[None]:
        """Keep other processes out for the time of a block: two would do the same work.

        Raises:
            InputError: Another process has the folder.
        """
        return claimed(self.path, otherwise="choose another `output`")

    def open(self, *, resume: bool) -> None:
        """Take the folder for the evaluation, and read what is known already.

        Args:
            resume: Go on with what is there, if anything is.

        Raises:
            InputError: There is an evaluation here and `resume` is False; or it is another one, in which
                case the first field that differs is named; or nothing says which one it is.
            SamBenchError: The file that says which evaluation this is cannot be read.
        """
        if self._identity_file.exists():
            differing = self._differing()
            if resume and differing:
                raise InputError(
                    f"cannot resume {self.path}: it was begun with {in_words(differing)}; choose another `output`, or "
                    "delete the folder to begin anew"
                )
            if not resume:
                self.check_unused()
        elif not self.is_empty:
            raise InputError(
                f"{self.path} holds verdicts, and nothing says of which evaluation; delete the folder to begin anew"
            )
        write_atomic(self._identity_file, json.dumps(self._problem.identity(), indent=2))
        self.read()

    def check_unused(self) -> None:
        """Refuse a folder with verdicts.

        Raises:
            InputError: There are some.
        """
        if not self.is_empty:
            raise InputError(
                f"{self.path} holds an evaluation that was not finished: add `resume=True` to go on with it, or delete "
                "the folder to begin anew"
            )

    @property
    def is_empty(self) -> bool:
        """Whether no process has ever worked on it."""
        return not self._parts()

    def is_of_problem(self, *, but_for: str = "") -> bool:
        """Whether the folder is there and was begun for this evaluation.

        Args:
            but_for: The start of names that may differ.
        """
        if not self._identity_file.exists():
            return False
        return not [name for name in self._differing() if not (but_for and name.startswith(but_for))]

    def read(self) -> None:
        """Read all files; a damaged line is left out and named."""
        self._forget()
        for part in self._parts():
            took = 0.0
            for number, line in _lines(part):
                try:
                    told, seconds = self._told(line, x_adv=self._problem.save_adversarial)
                except ValueError as error:
                    self.damaged.append(f"{part}, line {number}: {error}")
                    continue
                self._take(told)
                took = max(took, seconds)
            self.seconds += took

    def adversarial(self) -> dict[int, Tensor]:
        """Place in the data set to the adversarial example, float32 [C, H, W], where one was kept."""
        found: dict[int, Tensor] = {}
        for part in self._parts():
            for _, line in _lines(part):
                try:
                    told, _ = self._told(line, x_adv=True)
                except ValueError:  # named when the verdicts were read
                    continue
                if isinstance(told, Verdict) and told.x_adv is not None:
                    found.setdefault(told.example, told.x_adv)
        return found

    def todo(self) -> dict[int, int]:
        """The examples that are not settled, as `Executor.run` takes them."""
        known = self.verdicts
        return {
            place: known[place].attacks_survived if place in known else UNASKED
            for place in range(len(self._problem.test))
            if place not in self._problem.carried and (place not in known or known[place].outcome is None)
        }

    def add(self, event: Event) -> None:
        """Write an event down. Progress, and what is known already, is dropped: it may arrive twice.

        Raises:
            SamBenchError: The disk does not take it.
        """
        if not isinstance(event, (Verdict, AttackWarning)) or not self._take(event):
            return
        entry: dict[str, Any]
        if isinstance(event, AttackWarning):
            entry = {"doubt": str(event)}
        else:
            entry = {"example": event.example, "verdict": event.outcome, "withstood": event.attacks_survived}
            if event.x_adv is not None and self._problem.save_adversarial:
                entry["witness"] = _packed(event.x_adv)
        self._write(entry)

    @contextmanager
    def session(self) -> Iterator[None]:
        """A new file for what is added in the block."""
        taken = [int(part.stem.split("-")[1]) for part in self._parts()]
        self._part = self.path / f"part-{max(taken, default=0) + 1:04d}.jsonl"
        before = self.seconds
        # Without a buffer of our own: a line is with the system when `_write` returns.
        with self._refused():
            self._file = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        self._started = self._synced = time.monotonic()
        try:
            yield
            self._sync()
        finally:
            self.seconds = before + time.monotonic() - self._started
            os.close(self._file)
            self._file = None

    def forget(self) -> None:
        """Delete what is known; the folder still says of which evaluation it is."""
        self._forget()
        for part in self._parts():
            part.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder: the record says all of it. What a kill leaves of it still says what it is of."""
        try:
            self.forget()
        except OSError:
            return
        shutil.rmtree(self.path, ignore_errors=True)

    def _parts(self) -> list[Path]:
        return sorted(self.path.glob("part-*.jsonl"))

    def _differing(self) -> dict[str, tuple[Any, Any]]:
        try:
            there = json.loads(self._identity_file.read_text(encoding="utf-8"))
            if not isinstance(there, dict):
                raise ValueError("it is not an object")
        except (OSError, ValueError) as error:
            raise SamBenchError(f"{self._identity_file} cannot be read ({error}); delete {self.path}") from error
        return differences(there, self._problem.identity())

    def _take(self, told: Verdict | AttackWarning) -> bool:
        """Whether it is new: what is settled stays, and an example never has fewer attacks behind it."""
        if isinstance(told, AttackWarning):
            new = str(told) not in self.warnings
            self.warnings += [str(told)] * new
            return new
        before = self.verdicts.get(told.example)
        if before is not None and (
            before.outcome is not None or (told.outcome is None and told.attacks_survived <= before.attacks_survived)
        ):
            return False
        self.verdicts[told.example] = replace(told, x_adv=None)
        return True

    def _told(self, line: bytes, *, x_adv: bool) -> tuple[Verdict | AttackWarning, float]:
        """What a line says, and after how many seconds of its session.

        Raises:
            ValueError: It is not what was written, or makes no sense.
        """
        entry = _unsealed(line)
        _expect(entry, "seconds", lambda value: type(value) in (int, float) and 0 <= value < float("inf"))
        if "doubt" in entry:
            _expect(entry, "doubt", lambda value: isinstance(value, str))
            return AttackWarning.parse(entry["doubt"]), entry["seconds"]
        _expect(entry, "example", lambda value: type(value) is int and 0 <= value < len(self._problem.test))
        survived = len(self._problem.attack.attacks)
        _expect(entry, "withstood", lambda value: type(value) is int and 0 <= value <= survived)
        _expect(entry, "verdict", lambda value: value is None or (isinstance(value, str) and value in self._allowed))
        image = _unpacked(entry["witness"]) if x_adv and "witness" in entry else None
        return Verdict(entry["example"], entry["verdict"], entry["withstood"], image), entry["seconds"]

    def _write(self, entry: dict[str, Any]) -> None:
        now = time.monotonic()
        line = _sealed(entry | {"seconds": round(now - self._started, 3)})
        assert self._file is not None, "lines are written in a session"
        with self._refused():
            while line:
                line = line[os.write(self._file, line) :]
        if now - self._synced > _SYNC_EVERY:
            self._sync()

    def _sync(self) -> None:
        assert self._file is not None, "lines are written in a session"
        with self._refused():
            os.fsync(self._file)
        self._synced = time.monotonic()

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SamBenchError(f"cannot write {self._part}: {error.strerror}; what was written is whole") from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The whole lines of a file with their numbers: the last one may have been cut short by a kill."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield number, line


_SEAL = ', "crc32": "{:08x}"}}'
"""What ends a line: the checksum of the object without it."""


def _sealed(entry: Mapping[str, Any]) -> bytes:
    text = json.dumps(entry)
    return f"{text[:-1]}{_SEAL.format(zlib.crc32(text.encode()))}\n".encode()


def _unsealed(line: bytes) -> dict[str, Any]:
    seal = len(_SEAL.format(0)) + 1
    text = line[:-seal] + b"}"
    if line[-seal:-1] != _SEAL.format(zlib.crc32(text)).encode():
        raise ValueError("its checksum is another one")
    entry: dict[str, Any] = json.loads(text)
    return entry


def _expect(entry: Mapping[str, Any], key: str, holds: Callable[[Any], bool]) -> None:
    if key not in entry:
        raise ValueError(f"it has no {key}")
    if not holds(entry[key]):
        raise ValueError(f"{key} cannot be {shortened(repr(entry[key]))}")


def _packed(image: Tensor) -> dict[str, Any]:
    content = zlib.compress(image.numpy().tobytes(), level=1)
    return {"shape": list(image.shape), "float32": base64.b64encode(content).decode()}


def _unpacked(entry: Mapping[str, Any]) -> Tensor:
    try:
        values = np.frombuffer(zlib.decompress(base64.b64decode(entry["float32"])), dtype=np.float32)
        return torch.from_numpy(values.copy()).reshape(entry["shape"])
    except (KeyError, TypeError, RuntimeError, zlib.error) as error:
        raise ValueError(f"its adversarial example cannot be read ({error})") from error
