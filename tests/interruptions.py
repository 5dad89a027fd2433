"""Ctrl-C at a chosen moment of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sam_bench.evaluation.journal import Writer


@contextmanager
def interrupted_after(lines: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, Ctrl-C is pressed when so many lines of a journal have been written."""
    written = 0
    add = Writer._add

    def counted(self: Writer, entry: dict[str, Any]) -> None:
        nonlocal written
        if written == lines:
            raise KeyboardInterrupt
        written += 1
        add(self, entry)

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "_add", counted)
        yield
