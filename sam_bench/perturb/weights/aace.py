"""Adaptive adversarial cross-entropy for the ascent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sam_bench.perturb.inputs import at_least_float32, cross_entropy
from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS
from sam_bench.perturb.weights.groups import GroupedAscent
from sam_bench.perturb.weights.loss import BatchLoss


def adversarial_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """`-log(1 - p_y)` of each example, [B]: the Kullback-Leibler divergence of AACE.

    The target is `p` without the true class, renormalised, held fixed; the divergence from it to `p` is
    `-log(1 - p_y)`, in its value and in its gradient.

    Args:
        logits: [B, classes], two classes or more.
        y: int64 [B].
    """
    logits = at_least_float32(logits)
    others = logits.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf)
    return logits.logsumexp(1) - others.logsumexp(1)


@WEIGHT_PERTURBATIONS.register("aace")
class AACE(GroupedAscent):
    """SAM whose ascent leads away from the label (Ratchatorn, Tanaka 2024, arXiv 2406.14329).

    `e = rho grad log(1 - p_y)`, not normalised: unlike the gradient of the cross-entropy it does not
    vanish where an example is learned. The gradient used is that of the objective, at `w + e`. The loss
    reported is the cross-entropy at `w`, whatever the objective. The ascent sees the perturbed inputs
    alone. If the objective runs the clean ones, too, BatchNorm's statistics are those of its passes, at `w + e`.
    """

    takes_mixed: ClassVar[bool] = False

    rho: float = Field(default=0.2, ge=0, description="step of the ascent along the gradient of log(1 - p_y)")

    def ascent_gradient(self, batch: BatchLoss, chosen: Sequence[nn.Parameter] | None) -> Tensor:
        """The gradient of `log(1 - p_y)`."""
        seen: list[Tensor] = []

        def ascent(logits: Tensor, y: Tensor) -> Tensor:
            seen.append(cross_entropy(logits.detach(), y))
            return -adversarial_cross_entropy(logits, y)

        sync, update_bn = batch.runner.sync_ascent, not batch.several_passes
        batch.backward(loss=ascent, only=chosen, sync=sync, update_bn=update_bn)
        return torch.cat(seen).mean()

    def descent_gradient(self, batch: BatchLoss) -> None:
        """The objective's gradient, with the statistics that the ascent could not give."""
        batch.backward(update_bn=self.bn_second_pass == "update" or batch.several_passes)

    def passes_with(self, objective: tuple[float, float]) -> tuple[float, float]:
        """The ascent is a pass of its own whatever the objective."""
        return (objective[0] + 1 / self.interval, objective[1] + 1 / self.interval)

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`rho g`."""
        torch._foreach_mul_(gradients, self.rho)
