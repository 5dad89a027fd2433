"""Random streams that are a function of where they are used, not of what was drawn before.

Every draw comes from a generator seeded by the run's seed and the place of the draw (epoch, batch,
step). A resumed run draws what the uninterrupted one would have, with no generator state to save.
"""

from __future__ import annotations

import hashlib

import torch

from sam_bench.errors import InputError


def derive_seed(*parts: int | str) -> int:
    """A 64-bit seed from a seed and what it is for, the same on every machine: `derive_seed(0, "order", 3)`."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded by `derive_seed(*parts)`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def check_seed(seed: int) -> None:
    """Refuse a seed that a random generator cannot take."""
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed} must be between 0 and {2**63 - 1}")
