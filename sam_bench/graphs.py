"""`torch.compile`: graphs for every shape and mode that a run meets, and a word where there are none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import nn

# Whole batches and their parts, with and without gradients and statistics: far fewer than this.
_GRAPHS = 64
_LIMITS = ("recompile_limit", "cache_size_limit")  # the name and, in older versions, the only one

_traced: WeakSet[nn.Module] = WeakSet()


def compiled(model: nn.Module) -> nn.Module:
    """The model through `torch.compile`; compiled when it first runs."""
    # Static shapes: kernels made for the size of a batch. Smaller last batches run uncompiled.
    module: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    return module


@contextmanager
def room_for_graphs(needed: bool, model: nn.Module | None = None) -> Iterator[None]:
    """Let a compiled run have all its graphs, for the time of a block.

    PyTorch keeps eight graphs for each function of a model's source, those of earlier networks in the
    process included, and runs everything after them uncompiled without an error.

    Args:
        needed: Whether the run is compiled; otherwise nothing happens.
        model: Keep its graphs if it was here before, and forget only those of others.
    """
    if not needed:
        yield
        return
    import torch._dynamo  # takes seconds, which runs that are not compiled need not wait for

    if model is None or model not in _traced:
        torch._dynamo.reset()
        _traced.clear()
    config = torch._dynamo.config
    limit = next(name for name in _LIMITS if hasattr(config, name))
    with config.patch({limit: max(_GRAPHS, getattr(config, limit))}):
        yield


@contextmanager
def first_pass(model: nn.Module) -> Iterator[None]:
    """Around the first pass of a compiled model: warn if `torch.compile` left all of it uncompiled."""
    if model in _traced:
        yield
        return
    from torch._dynamo.utils import counters

    before = counters["stats"]["unique_graphs"]
    yield
    _traced.add(model)
    if counters["stats"]["unique_graphs"] == before:
        warnings.warn(
            f"torch.compile made no graph of {type(model).__name__}, which runs uncompiled; a bare nn.Sequential "
            "needs a module around it whose forward calls it",
            stacklevel=2,
        )
