"""No more threads than the machine has cores to spare."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam_bench import cores
from sam_bench.cores import busy_cores, spare_threads, take_spare_cores


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Every test decides anew, and the threads are put back."""
    before = torch.get_num_threads()
    take_spare_cores.cache_clear()
    yield
    take_spare_cores.cache_clear()
    torch.set_num_threads(before)


@given(threads=st.integers(1, 64), cores=st.integers(1, 64), busy=st.floats(0, 80))
def test_it_takes_the_cores_that_are_free_and_at_least_one(threads: int, cores: int, busy: float) -> None:
    spare = spare_threads(threads, cores, busy)
    assert 1 <= spare <= threads and (spare == 1 or spare <= cores - busy + 0.5)
    assert spare == threads or spare >= cores - busy - 0.5


@pytest.mark.parametrize(
    ("usable", "busy", "taken", "why"),
    [
        (8, 0.1, 8, ""),
        (8, 2.8, 5, "5 of 8 threads, because other processes keep 2.8 of 8 cores busy"),
        (8, 20.0, 1, "1 of 8 threads, because other processes keep 20.0 of 8 cores busy"),
        (3, 0.0, 3, "3 of 8 threads, because it may use 3 cores"),  # a container's quota
    ],
)
def test_a_busy_machine_or_a_quota_gives_fewer_threads_and_it_is_said(
    usable: int, busy: float, taken: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "usable_cores", lambda: usable)
    monkeypatch.setattr(cores, "busy_cores", lambda: busy)
    torch.set_num_threads(8)
    said = take_spare_cores()
    assert torch.get_num_threads() == taken and said.startswith(why) and bool(said) == bool(why)
    monkeypatch.setattr(cores, "busy_cores", lambda: 0.0)
    assert take_spare_cores() == said, "once a process: what it does itself is no reason"


def test_threads_that_somebody_chose_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    monkeypatch.setattr(cores, "busy_cores", lambda: 8.0)
    torch.set_num_threads(8)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert take_spare_cores() == "" and torch.get_num_threads() == 8
    take_spare_cores.cache_clear()
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(4)
    assert take_spare_cores() == "" and torch.get_num_threads() == 4


def test_what_others_use_is_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 100 ticks since then: core 0 idles, core 1 computes, core 2 waits for a disk, core 3 does nice work.
    before = "cpu 0 0 0 0\n" + "".join(f"cpu{core} 5 0 0 9 0 0 0 0 0 0\n" for core in range(4))
    after = ["cpu0 5 0 0 109 0 0 0 0 7 7", "cpu1 85 0 15 9 5 0 0 0", "cpu2 5 0 0 9 100 0 0 0", "cpu3 5 99 0 10 0 0 0 0"]
    texts = iter([before, "\n".join(after)])

    class Stat:
        def read_text(self) -> str:
            return next(texts)

    monkeypatch.setattr(cores, "_STAT", Stat())
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert busy_cores() == pytest.approx(95 / 100)
    monkeypatch.setattr(cores, "_STAT", tmp_path / "no such file")
    assert busy_cores() == 0.0


@pytest.mark.skipif(not Path("/proc/stat").exists() or os.nice(0) > 0, reason="only Linux tells, and not of nice ones")
def test_a_process_that_computes_is_noticed() -> None:
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert busy_cores() > 0.4
    finally:
        spinning.kill()
        spinning.wait()
