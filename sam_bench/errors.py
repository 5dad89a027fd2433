"""The errors a user can cause or meet, each one sentence that says what would be right.

The command line prints the message alone, without a traceback, and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
import enum
import re
import signal
from collections.abc import Callable, Iterable
from typing import Any


class _Unsaid(enum.Enum):
    """A single value that survives pickling as itself."""

    UNSAID = enum.auto()


UNSAID = _Unsaid.UNSAID
"""Stands for a value that was not given, where None would be one."""

_FIELD = re.compile(r"`([a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*)(?:=([^`]*))?`")


Spell = Callable[[str, "str | None"], str]
"""How a field is written: its name in Python, and its value as Python source, or None where only its name is meant.

A setting of a part has a dot: `weights.rho`."""


def in_python(name: str, value: str | None) -> str:
    """A field as Python writes it."""
    return name if value is None else f"{name}={value}"


class _Told:
    """An error whose message names fields in backticks: "give a smaller `batch_size`", "add `resume=True`".

    Python prints `add resume=True`, the command line `add --resume`.
    """

    def __str__(self) -> str:
        """As Python callers read it."""
        return self.render(in_python)

    def render(self, spell: Spell) -> str:
        """The message with every field spelled by `spell`."""
        return _FIELD.sub(lambda found: spell(found[1], found[2]), super().__str__())


class SamBenchError(_Told, Exception):
    """The thing asked for failed: training diverged, a checksum differs, a file cannot be written."""

    exit_code = 1


class InputError(SamBenchError, ValueError):
    """A field, file or argument is wrong. The error is a value: Python and the command line each spell the field.

    `InputError("must be below 1", field="eps", value=8, hint="add `allow_large_eps=True`")` reads `eps=8 must be below
    1; add allow_large_eps=True` in Python and `--eps 8 must be below 1; add --allow-large-eps` on the command line.

    Args:
        problem: What is wrong. With a `field` it continues the sentence that the field starts, after a colon where
            `problem` begins with one.
        field: The field's name in Python, such as `limit_train`; None where the problem says it all.
        value: What was given; left out where showing it would not help.
        hint: What to do, as a clause without a full stop.
    """

    exit_code = 2

    def __init__(self, problem: str, *, field: str | None = None, value: Any = UNSAID, hint: str = "") -> None:
        super().__init__(f"{problem}; {hint}" if hint else problem)
        self.field, self.value, self.problem, self.hint = field, value, problem, hint

    def render(self, spell: Spell) -> str:
        text = super().render(spell)
        if self.field is None:
            return text
        field = spell(self.field, None if self.value is UNSAID else shortened(repr(self.value)))
        return f"{field}{text}" if text.startswith(":") else f"{field} {text}"

    def __reduce__(self) -> tuple[Callable[..., InputError], tuple[Any, ...]]:
        """Keep the fields when the error crosses to another process."""
        return _rebuilt, (type(self), self.problem, self.field, self.value, self.hint)


def _rebuilt(kind: type[InputError], problem: str, field: str | None, value: Any, hint: str) -> InputError:
    return kind(problem, field=field, value=value, hint=hint)


def shortened(text: str, limit: int = 200) -> str:
    """The text, cut to `limit` characters where it is longer: a message never prints a whole file."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def first_line(error: BaseException) -> str:
    """The first line of what an error says; the name of its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class StoppedError(_Told, KeyboardInterrupt):
    """Ctrl-C or another signal ended the work. The message says what was kept and how to go on.

    As every `KeyboardInterrupt`, it passes `except Exception`: a loop over recipes ends, too.

    Args:
        message: What was stopped, and where.
        number: The signal's number; the exit code is the one a shell reports for it.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number

    def __reduce__(self) -> tuple[type[StoppedError], tuple[str, int]]:
        """It comes through to another process with its signal."""
        return type(self), (str(self.args[0]), self.exit_code - 128)


def unknown_name(kind: str, name: str, known: Iterable[str], *, field: str | None = None) -> InputError:
    """An `InputError` for a misspelt name: the nearest names first, then all there are.

    Args:
        kind: What the name should have been, as the user calls it ("recipe", "attack").
        name: What was given.
        known: Every name that would have been right.
        field: The field it was given for, where a caller asks for it.
    """
    names = sorted(known)
    lowered = {candidate.lower(): candidate for candidate in names}
    near = [lowered[match] for match in difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.5)]
    meant = f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
    listing = f" Available: {', '.join(names)}." if names else " There is none yet."
    problem = f"unknown {kind} {shortened(name)!r}" if field is None else f"is no {kind} that is known"
    return InputError(f"{problem}.{meant}{listing}", field=field, value=UNSAID if field is None else name)


def with_field(text: str, part: str = "") -> str:
    """`rho: must be positive` with the field in backticks, so that each surface spells it; below `part` if given."""
    where, colon, what = text.partition(": ")
    if not colon or not re.fullmatch(r"[a-z][a-z0-9_.]*", where):
        return f"{part}.{text}" if part else text
    return f"`{part}.{where}`: {what}" if part else f"`{where}`: {what}"
