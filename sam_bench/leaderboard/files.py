"""Files that others wrote are read with care: a regular file, of bounded size, without terminal escapes."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sam_bench.errors import InputError, shortened
from sam_bench.records import Record, first_problem
from sam_bench.records.io import invalid

R = TypeVar("R", bound=Record)

LARGEST_RECORD = 64 * 2**20
"""Bytes that an entry, a card or a record may have: a record over 50,000 test examples has 1 MB."""

# Control characters but tab and line feed; and the signs that reverse the direction of the text after them.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file.

    Args:
        path: May be anything: a pipe or a device is refused before a byte is read.
        limit: The most bytes the file may have.

    Raises:
        InputError: It cannot be read, is no regular file, or is larger.
    """
    try:
        # A pipe without a writer would otherwise hold us here.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"cannot read {path}: it is not a regular file")
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, InputError):
            raise
        problem = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {shown_path(path)}: {problem}") from error
    if len(content) > limit:
        raise InputError(f"cannot read {path}: it is larger than {limit:,} bytes")
    return content


def read_checked(path: Path, kind: type[R]) -> tuple[R, str]:
    """A record that others may have written, and the SHA-256 of its file, from one reading.

    Raises:
        InputError: Not such a file, or not such a record; names the file and the field.
    """
    content = read_bytes(path, LARGEST_RECORD)
    return parse_checked(content, path, kind), hashlib.sha256(content).hexdigest()


def parse_checked(content: bytes, path: Path, kind: type[R]) -> R:
    """The record in the bytes of `path`, without control characters in any of its texts.

    Raises:
        InputError: Not a valid record; names the file and the field.
    """
    try:
        record = kind.model_validate_json(content)
    except ValidationError as error:
        raise invalid(path, content, kind, shortened(first_problem(error), 400)) from error
    for field, text in _texts(record.model_dump(mode="json", exclude={"verdicts"})):
        found = _UNPRINTABLE.search(text)
        if found:
            raise InputError(
                f"{path}: {shown(field)} holds the control character {found[0]!r}, which a terminal may act on: "
                "write plain text"
            )
    return record


def shown(text: str) -> str:
    """Text of a file for a message: control characters as escapes, long text cut."""
    return shortened(_UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text))


def shown_path(path: Path) -> str:
    """A path for a message."""
    return shown(str(path))


def _texts(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Every text in plain data, keys of mappings included, with the name of its field."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            name = f"{field}.{key}".removeprefix(".")
            yield name, str(key)
            yield from _texts(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, field)
