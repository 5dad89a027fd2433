"""Optimizers a recipe can name; the field's defaults for training from scratch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from pydantic import Field
from torch import nn

from sam_bench.registry import Component, Registry


class Optimizer(Component):
    """Base of optimizer settings."""

    lr: float = Field(default=0.1, gt=0, description="learning rate at the schedule's peak")
    weight_decay: float = Field(default=5e-4, ge=0, description="weight decay, on all parameters")

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over `parameters`."""


OPTIMIZERS: Registry[Optimizer] = Registry(kind="optimizer", field="optimizer", group="sam_bench.optimizers")


@OPTIMIZERS.register("sgd")
class SGD(Optimizer):
    """Stochastic gradient descent with momentum; decay enters through the gradient."""

    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum")
    nesterov: bool = Field(default=False, description="Nesterov's momentum")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """`torch.optim.SGD`, several tensors at a time."""
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            foreach=True,
        )


@OPTIMIZERS.register("adamw")
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019): the choice for transformers and mixers."""

    lr: float = Field(default=1e-3, gt=0, description="learning rate at the schedule's peak")
    weight_decay: float = Field(default=0.05, ge=0, description="decoupled weight decay, on all parameters")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the gradient's running mean")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="decay of the squared gradient's running mean")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """`torch.optim.AdamW`, several tensors at a time."""
        return torch.optim.AdamW(
            parameters, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay, foreach=True
        )
