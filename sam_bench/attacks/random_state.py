"""Global random generators, seeded for a while and given back as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Give the generators of PyTorch (the CPU's and every GPU's), NumPy and Python back as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # Of every GPU, since other people's attacks call `torch.manual_seed`, which moves them all.
    used = device.type == "cuda" or torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count() if used else 0)):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def seed_generators(seed: int) -> None:
    """Seed those generators."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # takes no larger one
