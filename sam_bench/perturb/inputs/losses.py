"""What a search of inputs climbs, and its slope."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LossPerExample = Callable[[Tensor, Tensor], Tensor]
"""Maps logits [B, classes] and labels [B] to losses [B]."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per example, [B]; in float32 where the logits have less."""
    return F.cross_entropy(at_least_float32(logits), y, reduction="none")


def kl_divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """KL(p || q) per example, [B], p and q the softmax of `clean` and of `logits`; in float32 where they have less.

    Differentiable in both: TRADES and MART need either side's gradient.

    Args:
        clean: Logits of p, [B, classes].
        logits: Logits of q, [B, classes].
    """
    p, q = (at_least_float32(each).log_softmax(1) for each in (clean, logits))
    return (p.exp() * (p - q)).sum(1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, in float32 if it is in half precision: sums of exponentials need the digits."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, loss: LossPerExample = cross_entropy
) -> tuple[Tensor, Tensor]:
    """Logits at `x` and the gradient of each example's loss with respect to it.

    Only the input is differentiated: call it with the parameters frozen (`modes.frozen`).

    Args:
        model: Maps float [B, C, H, W] in [0, 1] to logits.
        x: Inputs, float [B, C, H, W].
        y: Labels, int64 [B].
        loss: What is differentiated.

    Returns:
        Logits [B, classes] and gradient [B, C, H, W], both detached.
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(x)
        (gradient,) = torch.autograd.grad(loss(logits, y).sum(), x)
    return logits.detach(), gradient


def not_finite(gradient: Tensor) -> Tensor:
    """Which rows of a gradient [B, ...] have NaN or infinity in them, bool [B]."""
    return ~gradient.flatten(1).isfinite().all(1)
