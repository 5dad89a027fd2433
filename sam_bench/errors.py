"""The errors a user can cause or meet, each one sentence that says what would be right.

The command line prints the message alone, without a traceback, and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SamBenchError(Exception):
    """The thing asked for failed: training diverged, a checksum differs, a file cannot be written."""

    exit_code = 1


class InputError(SamBenchError, ValueError):
    """An option, file or field is wrong; the message names it and says what would be right."""

    exit_code = 2


class StoppedError(SamBenchError):
    """A run was told to stop by a signal and has written a checkpoint to continue from.

    Args:
        message: What was stopped, and where.
        number: The signal's number; the exit code is the one a shell reports for it.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number

    def __reduce__(self) -> tuple[type[StoppedError], tuple[str, int]]:
        """It comes through to another process with its signal."""
        return type(self), (str(self), self.exit_code - 128)


class CutShortError(KeyboardInterrupt):
    """Ctrl-C, with a message that says what was kept and how to go on."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for a misspelt name: the nearest names first, then all there are.

    Args:
        kind: What the name should have been, as the user calls it ("recipe", "attack").
        name: What was given.
        known: Every name that would have been right.
    """
    names = sorted(known)
    lowered = {candidate.lower(): candidate for candidate in names}
    near = [lowered[match] for match in difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
    listing = f" Available: {', '.join(names)}." if names else " There is none yet."
    return InputError(f"unknown {kind} {name!r}.{hint}{listing}")
