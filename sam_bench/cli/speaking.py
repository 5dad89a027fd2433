"""Which of the processes that `torchrun` has started speaks; a module of its own, as it must not load PyTorch."""

import os


def speaks() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"
