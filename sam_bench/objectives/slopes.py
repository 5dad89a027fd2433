"""The slope of the loss at an input, as a function of the weights that can itself be differentiated."""

from __future__ import annotations

import torch
from torch import Tensor

from sam_bench.perturb.inputs import at_least_float32, cross_entropy
from sam_bench.perturb.weights import Score


def loss_and_slope(score: Score, x: Tensor, y: Tensor, *, differentiable: bool) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each example, [B], and its gradient by the input, [B, C, H, W], in float32 or better.

    Args:
        score: Runs the network: images to logits.
        x: Inputs, float [B, C, H, W].
        y: Labels, int64 [B].
        differentiable: Whether both can be differentiated with respect to the weights: a second backward pass
            through the first one. Never where gradients are switched off.
    """
    differentiable = differentiable and torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = x.detach().requires_grad_(True)
        losses = cross_entropy(score(inputs), y)
        (slope,) = torch.autograd.grad(losses.sum(), inputs, create_graph=differentiable)
    return (losses, at_least_float32(slope)) if differentiable else (losses.detach(), at_least_float32(slope.detach()))
