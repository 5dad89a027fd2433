"""Verifying an honest entry: every step passes, and the state follows from what was done."""

from __future__ import annotations

from tiny_board import Planted


def test_an_honest_entry_is_replayed(planted: Planted) -> None:
    found = planted.verify()
    assert found.passed, found.reason
    assert [check.name for check in found.checks] == ["numbers", "manifest", "training", "replay"]
    assert found.state == "replayed"
