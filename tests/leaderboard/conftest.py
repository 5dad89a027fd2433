"""Fixtures of the leaderboard's tests; the samples themselves are in `leaderboard_samples`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from leaderboard_samples import Bench, fill


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty zoo, folder of evaluations and leaderboards folder."""
    return Bench(tmp_path)


@pytest.fixture
def filled(bench: Bench) -> Bench:
    """Six models on three boards of cifar10 and two on one of own-digits."""
    fill(bench)
    return bench
