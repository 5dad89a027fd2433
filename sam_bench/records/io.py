"""Reading and writing records and files so that no crash leaves a half-written one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import ValidationError

from sam_bench.errors import InputError, SamBenchError, shortened
from sam_bench.records.card import ModelCard
from sam_bench.records.entry import LeaderboardEntry
from sam_bench.records.evaluation import EvaluationRecord
from sam_bench.records.fields import Record
from sam_bench.records.verification import Manifest, VerificationReport

R = TypeVar("R", bound=Record)
_FILES: dict[type[Record], tuple[str, str]] = {
    ModelCard: ("a model's card", "model_zoo/DATASET/THREAT/NAME.json"),
    EvaluationRecord: ("an evaluation record", "evaluations/NAME/*.json"),
    LeaderboardEntry: ("a leaderboard entry", "leaderboards/DATASET/THREAT/NAME.json"),
    Manifest: ("an entry's manifest", "records/NAME.manifest.json"),
    VerificationReport: ("a verification report", "records/NAME.verification.json"),
}
"""What users call each kind of file, and where it usually lies."""
_PARSING = re.compile(r", unable to parse string as an? \w+$")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all.

    Raises:
        SamBenchError: The file cannot be written (disk full, no permission); what stood there stays.
    """
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears whole or not at all: a temporary name in the same folder, synced, then renamed.

    Raises:
        SamBenchError: The file cannot be written (disk full, no permission); what stood there stays.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; published records and weights are as readable as any other file.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise SamBenchError(f"cannot write {path}: {error.strerror or error}; what stood there is untouched") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there; absolute."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def write_record(path: Path, record: Record) -> None:
    """Write a record as indented JSON, atomically; fields that are None are left out."""
    fields = record.model_dump(mode="json", exclude_none=True)
    write_atomic(path, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def read_record(path: Path, kind: type[R]) -> R:
    """Read and check a record.

    Values must have the field's own type: `"7"` and `true` are no whole numbers.

    Raises:
        InputError: No such file, no regular file, not JSON, or a field that is wrong; names the file and the field.
    """
    try:
        # A pipe would make us wait for ever, and a device may never end.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"cannot read {path}: it is no regular file")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a NUL
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        return kind.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise invalid(path, text, kind, first_problem(error)) from error


def invalid(path: Path, content: str | bytes, kind: type[Record], problem: str) -> InputError:
    """The error for a file that is no record of a kind: what it is, if it is a record of another kind."""
    for other in _FILES.keys() - {kind} if kind in _FILES else ():
        with suppress(ValidationError):
            other.model_validate_json(content)
            return InputError(f"{path} is {_FILES[other][0]}, not {' ('.join(_FILES[kind])})")
    return InputError(f"{path} is not a valid {kind.__name__}: {problem}")


def first_problem(error: ValidationError) -> str:
    """The first of a validation's complaints as `field.inner: what is wrong`, with a count of the others."""
    problem = error.errors(include_url=False)[0]
    where = shortened(".".join(str(part) for part in problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    message = _PARSING.sub("", message)  # 'must be a valid integer' says it
    given = problem.get("input")
    shown = "" if not isinstance(given, str | int | float) or repr(given) in message else repr(given)
    message = shortened(message, 400) + (f" (given: {shortened(shown)})" if shown else "")
    more = error.error_count() - 1
    suffix = f" (and {more} more)" if more else ""
    return f"{where}: {message}{suffix}" if where else f"{message}{suffix}"
