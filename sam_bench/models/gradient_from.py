"""Gradients from a stand-in, where a model hides its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GradientFrom(nn.Module):
    """A model that is searched through a stand-in.

    Quantised inputs, saturated logits and random layers hide the gradient: attacks then find little, and the model
    looks robust. Attacked through this module, they follow the stand-in. What counts as broken is decided by the model
    itself (Athalye, Carlini, Wagner 2018, arXiv 1802.00420, section 4).

        record = sam_bench.evaluate(GradientFrom(model, stand_in), dataset="cifar10", attack="autoattack", eps="8/255")

    Args:
        model: What is attacked; takes float32 [B, C, H, W] in [0, 1], gives logits [B, K].
        stand_in: Nearly the same function, and differentiable: the model without the layer that hides its gradient.
    """

    def __init__(self, model: nn.Module, stand_in: nn.Module) -> None:
        super().__init__()
        self.model, self.stand_in = model, stand_in

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K]: the stand-in's where a gradient is asked for, else the model's."""
        searching = torch.is_grad_enabled() and x.requires_grad
        return self.stand_in(x) if searching else self.model(x)  # type: ignore[no-any-return]
