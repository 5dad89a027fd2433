"""How many threads to compute with: no more than other processes leave cores for.

Threads that wait for each other made a run five to ten times slower where another process held one of their cores.
"""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path

import torch

from sam_bench.parallel import usable_cores

_LOOK = 0.25  # seconds that other processes are watched for
_STAT = Path("/proc/stat")


@cache
def take_spare_cores() -> str:
    """Compute with fewer threads if other processes are busy or a quota allows fewer cores.

    Decided once a process, before its first work. Nothing happens where the threads were set already: by
    OMP_NUM_THREADS, by `torch.set_num_threads` or for a worker.

    Returns:
        What was done, as a sentence; empty where nothing was.
    """
    threads, cores = torch.get_num_threads(), usable_cores()
    if threads == 1 or threads < cores or "OMP_NUM_THREADS" in os.environ:
        return ""
    busy = busy_cores()
    spare = spare_threads(threads, cores, busy)
    if spare == threads:
        return ""
    torch.set_num_threads(spare)
    why = f"other processes keep {busy:.1f} of {cores} cores busy" if spare < cores else f"it may use {cores} cores"
    return f"{spare} of {threads} threads, because {why} (OMP_NUM_THREADS={threads} takes all)"


def spare_threads(threads: int, cores: int, busy: float) -> int:
    """How many threads to take: as many as there are cores free, at least one.

    Args:
        threads: What PyTorch would take.
        cores: What this process may use, its container's quota included.
        busy: How many of them others use.
    """
    return max(1, min(threads, round(cores - busy)))


def busy_cores() -> float:
    """How many of the cores that this process may run on are in use while it sleeps; 0 where that cannot be read.

    Processes that made themselves nice do not count: they make way.
    """
    try:
        before = _times()
        time.sleep(_LOOK)
        after = _times()
    except (OSError, ValueError, AttributeError):  # not Linux
        return 0.0
    shares = []
    for core, times in after.items():
        spent = [now - then for now, then in zip(times, before.get(core, times), strict=False)]
        _, nice, _, idle, iowait, *_ = spent
        shares.append((sum(spent) - nice - idle - iowait) / max(1, sum(spent)))
    return float(sum(shares))


def _times() -> dict[int, list[int]]:
    """For each core that this process may run on what it was used for so far, as proc(5) has it."""
    allowed = os.sched_getaffinity(0)
    found = {}
    for line in _STAT.read_text().splitlines():
        name, *times = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in allowed:
            found[int(name[3:])] = [int(each) for each in times[:8]]  # those after are part of user and nice
    return found
