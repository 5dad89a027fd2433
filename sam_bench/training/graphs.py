"""`torch.compile` for training: one graph for every shape and mode that a run meets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Full and last batches and their parts, with and without gradients and statistics: far fewer than this.
_GRAPHS = 64
_LIMITS = ("recompile_limit", "cache_size_limit")  # the name and, in older versions, the only one


def compiled(model: nn.Module) -> nn.Module:
    """The model through `torch.compile`; compiled when it first runs."""
    # Static shapes: the smaller last batch of an epoch gets a graph of its own, and the others keep
    # kernels made for their size.
    module: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    return module


@contextmanager
def room_for_graphs(needed: bool) -> Iterator[None]:
    """Let a compiled run have all its graphs, for the time of a block.

    PyTorch keeps eight graphs for each function of a model's source, those of earlier networks in the
    process included, and runs everything after them uncompiled without an error.

    Args:
        needed: Whether the run is compiled; otherwise nothing happens.
    """
    if not needed:
        yield
        return
    import torch._dynamo  # takes seconds, which runs that are not compiled need not wait for

    torch._dynamo.reset()
    config = torch._dynamo.config
    limit = next(name for name in _LIMITS if hasattr(config, name))
    with config.patch({limit: max(_GRAPHS, getattr(config, limit))}):
        yield
