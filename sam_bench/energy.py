"""Energy a device has used, where the machine tells: NVML for NVIDIA's GPUs, RAPL for Intel's and AMD's CPUs."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
_BOOT = Path("/proc/sys/kernel/random/boot_id")

Counter = Callable[[], "int | None"]
"""Reads a counter of energy; None when the machine no longer tells."""


class EnergyMeter:
    """Joules used since the meter was made: by the whole GPU, or by all CPU packages of the machine.

    The counters are the hardware's: what other programs use meanwhile is counted, too. RAPL's counters
    are short (a package under load fills one in some minutes to an hour) and start again from zero;
    look at the meter more often than that, once an epoch say.

    Args:
        device: The device that computes.
        powercap: Where Linux shows RAPL's counters.
    """

    def __init__(self, device: torch.device | str, *, powercap: Path = POWERCAP) -> None:
        device = torch.device(device)
        if device.type == "cuda":
            self._counters = _gpu_counters(device)
        elif device.type == "cpu":
            self._counters = _cpu_counters(powercap)
        else:
            self._counters = []
        self._last = [read() for read, _, _ in self._counters]
        self._joules = 0.0

    def joules(self) -> float | None:
        """Energy since the start, at least 0; None where the machine does not tell, or has stopped telling."""
        for index, (read, joules_per_unit, wraps_at) in enumerate(self._counters):
            before, now = self._last[index], read()
            if before is None or now is None:
                self._counters = []
                break
            used = now - before
            if used < 0:
                used += wraps_at
            self._last[index] = now
            self._joules += max(used, 0) * joules_per_unit
        return self._joules if self._counters else None


def counted_by(device: torch.device | str) -> str:
    """What a meter of the device counts the energy of, equal in every process whose meter counts the same.

    A GPU by its number on the chip; for a CPU the machine, by what Linux names it since it was started: containers on
    one machine have names of their own and the same counters.
    """
    device = torch.device(device)
    if device.type == "cuda":
        with suppress(AttributeError, RuntimeError, AssertionError):
            return f"GPU {torch.cuda.get_device_properties(device).uuid}"
    return f"{device} of {_text(_BOOT) or platform.node()}"


_Source = tuple[Counter, float, int]
"""A counter, what its unit is in joules, and the value after which it starts again from 0."""


def _cpu_counters(powercap: Path) -> list[_Source]:
    """One counter for each package; the domains inside one (`intel-rapl:0:1`) are part of it."""
    found: list[_Source] = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        name = _text(zone / "name")
        if zone.name.count(":") != 1 or name is None or not name.startswith("package"):
            continue
        most = _number(zone / "max_energy_range_uj")
        # Readable by root alone on many machines; a sum that lacks a package would be wrong.
        if most is None or _number(zone / "energy_uj") is None:
            return []
        found.append((_reader(zone / "energy_uj"), 1e-6, most))
    return found


def _reader(file: Path) -> Counter:
    return lambda: _number(file)


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text is not None and text.isdigit() else None


def _gpu_counters(device: torch.device) -> list[_Source]:
    """NVML's total energy in millijoules, from Volta on; through `pynvml` where it is installed."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
        # By UUID: NVML numbers all GPUs, PyTorch those that CUDA_VISIBLE_DEVICES leaves.
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # NVML's errors, an old GPU, no driver: the machine does not tell
        return []

    def read() -> int | None:
        try:
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except nvml.NVMLError:
            return None

    return [(read, 1e-3, 0)]
