"""Fixtures of the leaderboard's tests; the samples themselves are in `leaderboard_samples`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from leaderboard_samples import Bench, fill
from tiny_board import Planted, class_means


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty zoo, folder of evaluations and leaderboards folder."""
    return Bench(tmp_path)


@pytest.fixture
def filled(bench: Bench) -> Bench:
    """Six models on three boards of cifar10 and two on one of own-digits."""
    fill(bench)
    return bench


@pytest.fixture(scope="session")
def honest_board(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A board with one entry of a real model; tests copy it."""
    return Planted(tmp_path_factory.mktemp("honest")).make(class_means())


@pytest.fixture
def planted(honest_board: Planted, tmp_path: Path) -> Planted:
    """A copy of it, to be forged."""
    return honest_board.copy(tmp_path / "board")
