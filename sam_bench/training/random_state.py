"""PyTorch's global random streams, borrowed for a run and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Give the global generators of CPU and GPUs back as they were, also after an error.

    Works as a decorator, too. A run seeds the global generators at every step: without this, everything that its
    caller draws afterwards would be the same after every run.
    """
    cpu, seed = torch.get_rng_state(), torch.initial_seed()
    # Not asked for where CUDA was not used yet: that would begin to use it.
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)
        elif torch.cuda.is_available():
            torch.cuda.manual_seed_all(seed)  # what they would have begun with
