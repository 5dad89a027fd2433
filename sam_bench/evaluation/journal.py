"""The journal of an evaluation: what is known of each example, on disk the moment it is known.

A folder of files that only grow, one for each process that ever worked on the evaluation. A line says
what became of one example and ends with a checksum; a line that a kill cut short, and one that is
damaged, is left out when the journal is read.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from sam_bench.attacks import Verdict
from sam_bench.errors import InputError, SamBenchError, shortened
from sam_bench.locks import claimed
from sam_bench.records import MISCLASSIFIED, ROBUST, atomic_file, write_atomic

_SYNC_EVERY = 5.0  # seconds between two times that the disk is waited for; a killed process loses nothing anyway


@dataclass(frozen=True)
class Known:
    """What a journal holds.

    Attributes:
        verdicts: Place in the data set to the last that was said of the example.
        doubts: The attack's doubts, each once.
        sessions: Session to the time it took: of processes side by side, the longest counts.
        damaged: File and line of what was left out because it makes no sense, each with the reason.
    """

    verdicts: dict[int, Verdict]
    doubts: list[str]
    sessions: dict[str, float]
    damaged: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Time spent so far."""
        return sum(self.sessions.values())

    @staticmethod
    def together(parts: Iterable[Known]) -> Known:
        """What several journals hold, or several readings of one: what is settled stays, the first witness too."""
        verdicts: dict[int, Verdict] = {}
        doubts: list[str] = []
        sessions: dict[str, float] = {}
        damaged: list[str] = []
        for part in parts:
            for verdict in part.verdicts.values():
                _take(verdicts, verdict)
            doubts += part.doubts
            damaged += part.damaged
            for session, seconds in part.sessions.items():
                sessions[session] = max(sessions.get(session, 0.0), seconds)
        return Known(verdicts, list(dict.fromkeys(doubts)), sessions, list(dict.fromkeys(damaged)))


class Journal:
    """The folder of one evaluation under way.

    Args:
        path: Where it is; beside the record it will become.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity_file = path / "identity.json"
        self._examples: int | None = None
        self._attacks: list[str] | None = None

    def claimed(self) -> AbstractContextManager[None]:
        """Keep other processes out for the time of a block: two would do the same work.

        Raises:
            InputError: Another process has the folder.
        """
        return claimed(self.path, otherwise="choose another --output")

    def open(self, identity: Mapping[str, Any], *, resume: bool, attacks: list[str] | None = None) -> Known:
        """Claim the folder for an evaluation, and read what is known already, without the witnesses.

        Args:
            identity: What decides its verdicts.
            resume: Go on with what is there, if anything is.
            attacks: Names that a verdict may have; None: any.

        Raises:
            InputError: There is an evaluation here and `resume` is False; or it is another one, in which
                case the first field that differs is named; or nothing says which one it is.
            SamBenchError: The file that says which evaluation this is cannot be read.
        """
        identity = json.loads(json.dumps(identity))
        self._examples, self._attacks = identity.get("n_examples"), attacks
        if self._identity_file.exists():
            there = self._read_identity()
            differing = [key for key in [*there, *identity] if there.get(key) != identity.get(key)]
            if resume and differing:
                key = differing[0]
                raise InputError(
                    f"cannot resume {self.path}: it was begun with {key} = {there.get(key)!r} and this command gives "
                    f"{identity.get(key)!r}; choose another --output, or delete the folder to begin anew"
                )
            if not resume:
                self.check_unused()
        elif not self.is_empty:
            raise InputError(
                f"{self.path} holds verdicts, and nothing says of which evaluation; delete the folder to begin anew"
            )
        write_atomic(self._identity_file, json.dumps(identity, indent=2))
        return self.read(witnesses=False)

    def check_unused(self) -> None:
        """Refuse a folder with verdicts.

        Raises:
            InputError: There are some.
        """
        if not self.is_empty:
            raise InputError(
                f"{self.path} holds an evaluation that was not finished: add --resume to go on with it, or delete the "
                "folder to begin anew"
            )

    @property
    def is_empty(self) -> bool:
        """Whether no process has ever worked on it."""
        return not any(self._parts())

    def is_of(self, identity: Mapping[str, Any], *, but_for: str = "") -> bool:
        """Whether the folder is there and was begun for this evaluation.

        Args:
            identity: What decides its verdicts.
            but_for: The name of what may differ.
        """
        if not self._identity_file.exists():
            return False
        there = self._read_identity()
        here = json.loads(json.dumps(identity))
        return all(there.get(key) == here.get(key) for key in there.keys() | here.keys() if key != but_for)

    def read(self, *, witnesses: bool = True, share: tuple[int, int] = (0, 1)) -> Known:
        """What is known now; a damaged line is left out and named.

        Args:
            witnesses: Take the adversarial examples, too, where they were kept.
            share: (k, n): only the files of shards k, k + n, k + 2n, …
        """
        verdicts: dict[int, Verdict] = {}
        doubts: list[str] = []
        seconds: dict[str, float] = {}
        damaged: list[str] = []
        for part in self._parts():
            _, session, shard = part.stem.split("-")
            if int(shard) % share[1] != share[0]:
                continue
            for number, line in _lines(part):
                try:
                    entry = self._entry(line)
                    told = entry["doubt"] if "doubt" in entry else _from_entry(entry, witness=witnesses)
                except ValueError as error:
                    damaged.append(f"{part}, line {number}: {error}")
                    continue
                if isinstance(told, Verdict):
                    _take(verdicts, told)
                    seconds[session] = max(seconds.get(session, 0.0), entry["seconds"])
                else:
                    doubts.append(told)
        return Known(verdicts, list(dict.fromkeys(doubts)), seconds, damaged)

    def _entry(self, line: bytes) -> dict[str, Any]:
        """What a line says.

        Raises:
            ValueError: It is not what was written, or makes no sense.
        """
        entry = _unsealed(line)
        if "doubt" in entry:
            _expect(entry, "doubt", lambda value: isinstance(value, str))
            return entry
        attacks, last = self._attacks, None if self._examples is None else self._examples - 1
        _expect(entry, "example", lambda value: _is_count(value, last))
        _expect(entry, "withstood", lambda value: _is_count(value, None if attacks is None else len(attacks)))
        _expect(
            entry,
            "verdict",
            lambda value: (
                value is None
                or (isinstance(value, str) and (attacks is None or value in (ROBUST, MISCLASSIFIED, *attacks)))
            ),
        )
        _expect(entry, "seconds", lambda value: type(value) in (int, float) and 0 <= value < float("inf"))
        return entry

    @contextmanager
    def writer(self, session: str, shard: int = 0) -> Iterator[Writer]:
        """A new file of the journal.

        Args:
            session: What the processes that work side by side have in common.
            shard: Which of them this is.
        """
        path = self.path / f"part-{session}-{shard:04d}.jsonl"
        writer = Writer(path)
        try:
            yield writer
            writer.sync()
        finally:
            writer.close()

    def new_session(self) -> str:
        """A name no process of an earlier session has."""
        taken = [int(part.stem.split("-")[1]) for part in self._parts()]
        return f"{max(taken, default=0) + 1:04d}"

    def forget(self) -> None:
        """Delete what is known; the folder still says of which evaluation it is."""
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

    def _read_identity(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self._identity_file.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it is not an object")
        except (OSError, ValueError) as error:
            raise SamBenchError(f"{self._identity_file} cannot be read ({error}); delete {self.path}") from error
        return content


class Writer:
    """Adds lines to one file of a journal; what is written survives the end of the process.

    Args:
        path: The file, which must not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Without a buffer of our own: a line is with the system when `_add` returns.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        self._started = self._synced = time.monotonic()

    def verdict(self, verdict: Verdict, *, witness: bool = False) -> None:
        """What became of an example.

        Args:
            verdict: As the judge told it.
            witness: Keep the adversarial example, too.
        """
        entry: dict[str, Any] = {"example": verdict.example, "verdict": verdict.verdict, "withstood": verdict.withstood}
        if witness and verdict.witness is not None:
            entry["witness"] = _packed(verdict.witness)
        self._add(entry)

    def doubt(self, text: str) -> None:
        """A doubt of the attack's."""
        self._add({"doubt": text})

    def sync(self) -> None:
        """Wait for the disk."""
        with self._told():
            os.fsync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        """No more lines."""
        os.close(self._file)

    def _add(self, entry: dict[str, Any]) -> None:
        now = time.monotonic()
        entry["seconds"] = round(now - self._started, 3)
        line = _sealed(entry)
        with self._told():
            while line:
                line = line[os.write(self._file, line) :]
        if now - self._synced > _SYNC_EVERY:
            self.sync()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SamBenchError(f"cannot write {self._path}: {error.strerror}; what was written is whole") from error


def write_witnesses(path: Path, known: Known, about: Mapping[str, str]) -> None:
    """Write the adversarial examples: `index` int64 [K], places in the data set, and `x_adv` float32 [K, C, H, W].

    Examples whose witness was carried over from a smaller ball are in that ball's file.

    Args:
        path: The file, a NumPy archive.
        known: What was found.
        about: What they are of, written along as strings.
    """
    found = {place: verdict.witness for place, verdict in sorted(known.verdicts.items()) if verdict.witness is not None}
    said: dict[str, Any] = {name: np.array(value) for name, value in about.items()}
    said["index"] = np.array(list(found), dtype=np.int64)
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in said.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, value, allow_pickle=False)
        with archive.open("x_adv.npy", "w", force_zip64=True) as member:
            _write_stack(member, list(found.values()))


def _write_stack(file: IO[bytes], images: Sequence[Tensor]) -> None:
    """Images as one array in NumPy's format, one by one: together they may take half of the memory."""
    shape = (len(images), *images[0].shape) if images else (0,)
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    for image in images:
        file.write(image.numpy().astype("<f4").tobytes())


def read_about(path: Path) -> dict[str, str] | None:
    """What `write_witnesses` wrote along; None where there is no such file."""
    try:
        with np.load(path) as bundle:
            return {name: str(bundle[name]) for name in bundle.files if name not in ("index", "x_adv")}
    except (OSError, ValueError, zipfile.BadZipFile):
        return None


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


def _is_count(value: Any, largest: int | None) -> bool:
    return type(value) is int and value >= 0 and (largest is None or value <= largest)


def _take(verdicts: dict[int, Verdict], verdict: Verdict) -> None:
    """Two processes may have had the same example: what is settled stays, and gets the witness it lacks."""
    before = verdicts.get(verdict.example)
    if before is None or before.verdict is None:
        verdicts[verdict.example] = verdict
    elif before.witness is None and before.verdict == verdict.verdict:
        verdicts[verdict.example] = replace(before, x_adv=verdict.x_adv)


def _from_entry(entry: Mapping[str, Any], *, witness: bool) -> Verdict:
    image = _unpacked(entry["witness"]) if witness and "witness" in entry else None
    return Verdict(entry["example"], entry["verdict"], entry["withstood"], image)


def _packed(image: Tensor) -> dict[str, Any]:
    content = zlib.compress(image.numpy().tobytes(), level=1)
    return {"shape": list(image.shape), "float32": base64.b64encode(content).decode()}


def _unpacked(entry: Mapping[str, Any]) -> Tensor:
    try:
        values = np.frombuffer(zlib.decompress(base64.b64decode(entry["float32"])), dtype=np.float32)
        return torch.from_numpy(values.copy()).reshape(entry["shape"])
    except (KeyError, TypeError, RuntimeError, zlib.error) as error:
        raise ValueError(f"its adversarial example cannot be read ({error})") from error
