"""The optimizer's momentum, for methods that follow it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Momentum = Callable[[Tensor], Tensor | None]
"""Maps a parameter to the running mean of its gradients, of its shape; None before the optimizer's first step."""

_KEYS = ("momentum_buffer", "exp_avg", "momentum")  # of SGD and its kin; of Adam and its kin; of timm's SGDP


def momentum_of(optimizer: torch.optim.Optimizer) -> Momentum:
    """A look into an optimizer's state: its momentum as it is at the time of the call."""

    def momentum(parameter: Tensor) -> Tensor | None:
        state = _keeper(optimizer).state.get(parameter, {})
        return next((state[key] for key in _KEYS if isinstance(state.get(key), Tensor)), None)

    return momentum


def has_momentum(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer keeps a running mean of the gradients, by its settings."""
    return all(bool(group.get("momentum") or group.get("betas", (0,))[0]) for group in optimizer.param_groups)


def has_stepped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer keeps anything yet of the steps that it took."""
    return bool(_keeper(optimizer).state)


def _keeper(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that has the state: of timm's Lookahead the one inside."""
    inside: torch.optim.Optimizer = getattr(optimizer, "_base_optimizer", optimizer)
    return inside
