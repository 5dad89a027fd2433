"""Borrowed state: modes and flags of a model that are changed for a while and given back exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


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


@contextmanager
def attacking(model: nn.Module) -> Iterator[None]:
    """Eval mode and frozen parameters, for the time of an evaluation."""
    with training_mode(model, False), frozen(model):
        yield


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
