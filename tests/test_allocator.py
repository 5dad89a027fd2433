"""Memory that is freed is there for the next tensor, and goes back to the system in the end."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sam_bench.allocator import freed_memory_kept

CPU = torch.device("cpu")
FLOATS = 16 << 20  # of a tensor: 64 MiB

glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def _fetched(floats: int = FLOATS, *, times: int = 8) -> float:
    """The share of its pages that the system gave anew each time while a tensor was made and dropped."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.empty(floats).fill_(1)
    fetched = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return fetched / (times * 4 * floats / resource.getpagesize())


def _resident() -> int:
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def check() -> None:
    """In a process of its own, whose allocator nothing else has used."""
    assert _fetched() > 0.5, "every tensor gets pages of its own where nothing is kept"
    torch.empty(FLOATS).fill_(1)
    before = _resident()
    with freed_memory_kept(CPU):
        _fetched()  # the first ones find their place
        with freed_memory_kept(CPU):
            pass
        # The system itself takes pages away now and then, to move them; not every time. What is given back is
        # fetched anew every time.
        assert min(_fetched() for _ in range(5)) < 0.02, "and none where it is, an inner block's end notwithstanding"
        assert _resident() - before > 48 << 20
    assert _resident() - before < 16 << 20, "what was kept goes back"
    # Larger than any hole that the tensors above may have left in the heap, which glibc would fill first.
    large = 8 * FLOATS
    assert _fetched(large, times=2) > 0.5
    with freed_memory_kept(torch.device("cuda")):
        assert _fetched(large, times=2) > 0.5, "a GPU's tensors are elsewhere"


@glibc_only
def test_pages_are_fetched_once_inside_and_given_back_at_the_end() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    subprocess.run([sys.executable, __file__], check=True, env=environment)


@glibc_only
def test_what_the_environment_says_of_memory_is_left_as_it_is() -> None:
    code = "from sam_bench.allocator import _glibc; assert _glibc() is None"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "MALLOC_MMAP_MAX_": "65536"})


if __name__ == "__main__":
    check()
