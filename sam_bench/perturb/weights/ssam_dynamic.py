"""Sparse SAM with a mask that moves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS, views_like
from sam_bench.perturb.weights.loss import BatchLoss
from sam_bench.perturb.weights.ssam import MaskedSAM, mask_of_largest
from sam_bench.seeds import generator


@WEIGHT_PERTURBATIONS.register("ssam-dynamic")
class DynamicSSAM(MaskedSAM):
    """Sparse SAM, dynamic mask (Mi et al. 2022, arXiv 2210.05177, SSAM-D).

    The mask begins at random. Every `refresh_epochs` epochs the share `exchange` of it, the weights of
    the smallest gradient, is dropped, and as many are drawn from those outside; the share falls along a
    cosine to 0 at the end of the run. With sparsity 0 it is SAM.
    """

    exchange: float = Field(
        default=0.5, ge=0, le=1, description="share of the mask that is exchanged at a renewal, at first"
    )

    def renewed(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """The mask without its flattest weights, and others drawn in their place."""
        slopes = torch.zeros(sum(each.numel() for each in gradients), dtype=gradients[0].dtype, device=batch.y.device)
        views = views_like(slopes, gradients)
        draws = generator(batch.at.seed, "weights", batch.at.step, device=slopes.device)
        # Draws are in (0, 1]: above 0, which is what a weight that stays inside has among the candidates.
        chance = 1 - torch.rand(len(slopes), generator=draws, device=slopes.device, dtype=slopes.dtype)
        kept = self.kept(len(slopes))
        if not self._mask:
            return mask_of_largest(chance, kept, gradients)
        inside = torch.zeros_like(slopes)
        torch._foreach_copy_(views_like(inside, gradients), self._mask)
        torch._foreach_copy_(views, torch._foreach_abs(gradients))
        batch.runner.average(views)
        share = self.exchange * (1 + math.cos(math.pi * batch.at.progress)) / 2
        exchanged = min(round(share * kept), len(slopes) - kept)
        # Outside the mask a slope counts as -1, below every slope inside.
        stays = torch.zeros_like(inside)
        stays[torch.where(inside > 0, slopes, -1.0).topk(kept - exchanged, sorted=False).indices] = 1
        stays[(chance * (1 - inside)).topk(exchanged, sorted=False).indices] = 1
        return views_like(stays, gradients)
