"""What a GPU demands, on a machine without one: no operand left on the CPU, and hardly ever a wait for the device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent


def reports(script: str) -> list[dict[str, Any]]:
    """What a script prints, a dictionary a line. It has a process of its own, because it registers a device."""
    process = subprocess.run(
        [sys.executable, str(FOLDER / script)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return [json.loads(line) for line in process.stdout.splitlines()]


def test_the_second_device_notices_what_it_is_there_for() -> None:
    noticed = {report["does"]: report["noticed"] for report in reports("is_a_device.py")}
    assert len(noticed) >= 8 and all(noticed.values()), noticed


@pytest.mark.slow
def test_every_method_learns_elsewhere_what_it_learns_here_and_no_step_waits() -> None:
    """A GPU works ahead of the program only as long as nothing is asked of it: a step may not, an epoch's end may."""
    found = reports("learn_there.py")
    assert len(found) >= 25
    for report in found:
        # Adam moves what differs by rounding around a gradient of zero by a whole learning rate, here 1e-5.
        assert report["apart"] <= (1e-4 if report["case"] == "adamw" else 1e-6), report
        assert report["steps"] == 6, report
        assert sum(report["waits"].values()) <= 2, report  # once an epoch


@pytest.mark.slow
def test_every_attack_has_the_same_verdicts_elsewhere_and_waits_about_once_a_call() -> None:
    found = reports("attack_there.py")
    assert len(found) >= 14
    for report in found:
        assert report["here"] == report["there"], report
        # APGD in L1 and FAB ask how far their projections are, every few rounds of these; 60 are for batches and ends.
        often = 5 if "L1" in report["case"] or "fab" in report["case"] else 1
        assert sum(report["waits"].values()) <= often * report["calls"] + 60, report
