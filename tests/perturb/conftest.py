"""Lets the tests of this folder import `weights_samples`; says at the end how far from their oracles they were."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    samples = sys.modules.get("weights_samples")
    for oracle, largest in sorted(samples.DEVIATIONS.items() if samples else []):
        terminalreporter.write_line(f"largest deviation, {oracle}: {largest:.1e}")
