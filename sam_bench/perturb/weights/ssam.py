"""Sparse SAM: the ascent in a part of the weights, masked by the Fisher information."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from sam_bench.modes import training_mode
from sam_bench.perturb.inputs import cross_entropy
from sam_bench.perturb.weights.ascent import Ascent, scale_to
from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS, views_like
from sam_bench.perturb.weights.loss import BatchLoss


class MaskedSAM(Ascent):
    """Base of SAM with a mask: `e = rho g / ||g|| * m`, `m` 0 or 1 for each weight.

    A subclass says how the mask is renewed. A sparse mask saves no time: dense hardware multiplies by its zeros.
    """

    rho: float = Field(default=0.1, ge=0, description="radius of the ascent before the mask (L2 over all parameters)")
    sparsity: float = Field(default=0.5, ge=0, lt=1, description="share of the weights that are not perturbed")
    refresh_epochs: int = Field(default=1, ge=1, description="epochs after which the mask is renewed")

    _mask: list[Tensor] = PrivateAttr(default_factory=list)
    _made: int = PrivateAttr(default=0)  # the epoch the mask is of

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`rho g / ||g|| * m`."""
        self._mask = [mask.to(each) for mask, each in zip(self._mask, gradients, strict=False)]
        if not self._mask or batch.at.epoch >= self._made + self.refresh_epochs:
            self._mask, self._made = self.renewed(batch, parameters, gradients), batch.at.epoch
        scale_to(gradients, self.rho)
        torch._foreach_mul_(gradients, self._mask)

    @abstractmethod
    def renewed(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """A mask for each parameter, 0 and 1 in its dtype; the same on every device."""

    def kept(self, count: int) -> int:
        """How many of `count` weights are perturbed, at least one."""
        return max(1, round((1 - self.sparsity) * count))

    def forget(self) -> None:
        """No mask yet."""
        self._mask, self._made = [], 0

    def state_dict(self) -> dict[str, Any]:
        """The mask and the epoch it was made in."""
        return {"mask": [mask.bool() for mask in self._mask], "made": self._made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved mask."""
        self._mask, self._made = list(state["mask"]), state["made"]


def mask_of_largest(score: Tensor, count: int, like: Sequence[Tensor]) -> list[Tensor]:
    """1 where `score`, [N] in the memory order of `views_like`, is among its `count` largest; 0 elsewhere."""
    mask = torch.zeros_like(score)
    mask[score.topk(count, sorted=False).indices] = 1
    return views_like(mask, like)


@WEIGHT_PERTURBATIONS.register("ssam")
class SSAM(MaskedSAM):
    """Sparse SAM, Fisher mask (Mi et al. 2022, arXiv 2210.05177, SSAM-F).

    The ascent moves the weights with the largest empirical Fisher information: the sum of squared
    gradients of `log p_y` over single examples, of which `fisher_examples` are taken from the first
    batch of every `refresh_epochs` epochs. Each is scored in eval mode, so that its gradient does not
    depend on the others, and leaves BatchNorm alone. With sparsity 0 it is SAM.
    """

    fisher_examples: int = Field(default=16, ge=1, description="examples that decide the mask (at most a batch)")

    def renewed(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """The weights of the largest Fisher information."""
        total = torch.zeros(sum(each.numel() for each in gradients), dtype=gradients[0].dtype, device=batch.y.device)
        fisher = views_like(total, gradients)
        only = None if self.perturb_only == "all" else self.chosen(batch)
        with training_mode(batch.model, False):
            for row in range(min(self.fisher_examples, len(batch))):
                rows = torch.arange(row, row + 1, device=batch.y.device)
                batch.backward(rows=rows, only=only, loss=cross_entropy, update_bn=False, sync=False)
                _, found = batch.gradients()
                torch._foreach_addcmul_(fisher, found, found)
        batch.runner.average(fisher)
        return mask_of_largest(total, self.kept(len(total)), gradients)
