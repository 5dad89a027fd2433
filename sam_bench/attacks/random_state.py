"""Global generators, borrowed and given back: other people's attacks seed them, random models draw from them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Give torch's generators, the CPU's and this device's, back as they were."""
    devices = []
    if device.type == "cuda":
        devices = [torch.cuda.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's, NumPy's and Python's generators, seeded for a while and given back as they were."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with random_state_kept(device):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # takes no larger one
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
