"""How much memory is free: of the computer, of the container it may be confined to, of a GPU."""

from __future__ import annotations

from pathlib import Path

import torch


def free_memory(device: torch.device | str = "cpu", *, root: Path = Path("/")) -> int | None:
    """Bytes that can still be had on a device; None where that cannot be found out.

    Args:
        device: The CPU: what Linux calls available, within the control group's limit. CUDA: what the
            driver says is free.
        root: Where `proc` and `sys` are.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    found = [free for free in (_available(root), _left_to_group(root)) if free is not None]
    return min(found, default=None)


def _available(root: Path) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _left_to_group(root: Path) -> int | None:
    """Of the limit that a container or batch system sets (control groups, version 2, then 1)."""
    for folder, limit, used, cached in (
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        group = root / folder
        try:
            # Cached files count as used, but are dropped when memory is needed.
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            kept = int((group / used).read_text()) - int(statistics.get(cached, 0))
            return max(int((group / limit).read_text()) - kept, 0)
        except (OSError, ValueError):  # 'max': no limit
            continue
    return None
