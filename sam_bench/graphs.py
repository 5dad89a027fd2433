"""`torch.compile`: graphs for every shape and mode that a run meets, and a word where there are none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from sam_bench.errors import first_line

# Whole batches and their parts, with and without gradients and statistics: far fewer than this.
_GRAPHS = 64
_LIMITS = ("recompile_limit", "cache_size_limit")  # the name and, in older versions, the only one

_traced: WeakSet[nn.Module] = WeakSet()
_inside: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()  # the network, by what `compiled` made of it
_whole: WeakKeyDictionary[nn.Module, Callable[..., Tensor]] = WeakKeyDictionary()


def compiled(model: nn.Module) -> nn.Module:
    """The model through `torch.compile`; compiled when it first runs."""
    # Static shapes: kernels made for the size of a batch. Smaller last batches run uncompiled.
    module: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    _inside[module] = model
    return module


def in_one_graph(function: Callable[..., Tensor], model: nn.Module, *arguments: Any) -> Tensor | None:
    """What a function of a network computes, all of it in one graph.

    Args:
        function: Takes the network and the arguments, and differentiates with `torch.func` only. A model has one.
        model: What `compiled` made of the network; of any other model nothing is computed.
        arguments: Those after the network.

    Returns:
        None where the model is not one of `compiled`, or where there can be no such graph: that is said once.
    """
    if model not in _inside:
        return None
    if model not in _whole:
        _whole[model] = torch.compile(function, fullgraph=True, dynamic=False)
    from torch._dynamo.exc import TorchDynamoException

    try:
        return _whole[model](_inside[model], *arguments)
    except TorchDynamoException as error:
        name = type(_inside.pop(model)).__name__
        del _whole[model]
        warnings.warn(f"a step of the search through {name} runs as several graphs: {first_line(error)}", stacklevel=2)
        return None


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
