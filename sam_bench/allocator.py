"""Memory that tensors on a CPU leave behind is kept for the next ones.

glibc gives large blocks back to the system as soon as they are freed. A network's activations are such
blocks: every pass fetches them anew, page by page. PyTorch's advice for CPUs is to preload another allocator;
telling glibc to keep what it has does the same and asks nothing of the user.

For attacks, which pass images forward most of the time. Training gains little by it and would pay with
memory: blocks of its many sizes leave gaps.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's names for them in `mallopt`
_NEVER = -1
# glibc's own: how many blocks may be mapped one by one, and what its threshold has grown to where such were freed.
_USUAL_MMAP_MAX, _USUAL_TRIM_THRESHOLD = 65536, 64 << 20

_holders = 0


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Keep freed memory in this process for the time of a block; it goes back to the system at the end.

    Does nothing for other devices than the CPU, with another C library than glibc, and where the
    environment says already how memory is to be had (`MALLOC_…_`, `GLIBC_TUNABLES`).

    Args:
        device: Where the tensors are.
    """
    global _holders
    glibc = _glibc()
    if device.type != "cpu" or glibc is None:
        yield
        return
    _holders += 1
    if _holders == 1:
        glibc.mallopt(_MMAP_MAX, 0)
        glibc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        _holders -= 1
        if _holders == 0:
            glibc.mallopt(_MMAP_MAX, _USUAL_MMAP_MAX)
            glibc.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM_THRESHOLD)
            glibc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return None
    return ctypes.CDLL(None)
