"""Borrowed state: modes and flags of a model that are changed for a while and given back exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


@contextmanager
def training_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put every module into train or eval mode; each gets its own mode back, also on an exception."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Switch the parameters' gradients off, and back on for those that had them.

    Attacks differentiate the input alone. Gradients of parameters that nobody reads cost about a
    third of an adversarial step, and what they leave in `.grad` would leak into a weight perturbation.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@dataclass
class InputWatch:
    """Whether a model writes into its input, as `x.sub_(mean)` does.

    Attributes:
        changed: It wrote into the first input that it was given.
    """

    changed: bool = False


_WATCHED: WeakKeyDictionary[nn.Module, InputWatch] = WeakKeyDictionary()


@contextmanager
def inputs_copied(model: nn.Module) -> Iterator[InputWatch]:
    """Hand the model a copy of every input.

    A model that writes into its input would otherwise move the images that an attack starts from and that its
    result is compared with. Gradients pass through the copy, so they are those of the model written out of place.
    """
    if model in _WATCHED:
        yield _WATCHED[model]
        return
    watch = _WATCHED[model] = InputWatch()
    originals: list[Any] = []

    def note(_: nn.Module, args: Any) -> None:
        originals[:] = args

    def compare(_: nn.Module, args: Any, __: Any) -> None:
        watch.changed = any(_differ(*pair) for pair in zip(originals, args, strict=True))
        first.close()  # one look is enough: each waits for the device

    # By the class, since scripted modules refuse the method. Before the model's own hooks, which may write, too.
    register = nn.Module.register_forward_pre_hook
    with ExitStack() as always, ExitStack() as first:
        always.callback(_WATCHED.pop, model)
        always.callback(register(model, _copied, prepend=True).remove)
        first.callback(originals.clear)
        first.callback(register(model, note, prepend=True).remove)
        first.callback(nn.Module.register_forward_hook(model, compare).remove)
        yield watch


def _copied(_: nn.Module, args: Any) -> Any:
    return tuple(each.clone() if isinstance(each, Tensor) else each for each in args)


def _differ(before: Any, after: Any) -> bool:
    if not isinstance(before, Tensor):
        return False
    return not torch.allclose(before.detach(), after.detach(), rtol=0, atol=0, equal_nan=True)


@contextmanager
def attacking(model: nn.Module) -> Iterator[InputWatch]:
    """Eval mode, frozen parameters and a copy of every input, for the time of an evaluation."""
    with training_mode(model, False), frozen(model), inputs_copied(model) as watch:
        yield watch


def batch_norms(model: nn.Module) -> Iterable[nn.modules.batchnorm._BatchNorm]:
    """The model's batch-normalisation layers."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def batch_norm_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Use batch statistics as in training, but leave the running ones alone.

    SAM's second pass would otherwise count every batch twice, the second time at weights that are
    thrown away.
    """
    layers = list(batch_norms(model))
    before = [layer.track_running_stats for layer in layers]
    for layer in layers:
        # In train mode a layer that does not track uses the batch's statistics and updates nothing.
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, tracks in zip(layers, before, strict=True):
            layer.track_running_stats = tracks
