"""An empty working directory for tests that train, and what they share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `digit_runs`


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory whose zoo is the one everybody looks in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAM_BENCH_ZOO", str(tmp_path / "zoo"))
    return tmp_path
