"""MART: more weight on the examples that the network gets wrong without an attack."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sam_bench.objectives.base import OBJECTIVES, Objective
from sam_bench.perturb.inputs import at_least_float32, kl_divergence
from sam_bench.perturb.weights import Score


@OBJECTIVES.register("mart")
class MART(Objective):
    """BCE(x') + beta KL(p(x) || p(x')) (1 - p_y(x)) (Wang et al. 2020, equation 11; their lambda is beta here).

    BCE is their boosted cross-entropy, -log p_y(x') - log(1 - max_{k != y} p_k(x')). Its logarithms are
    taken of sums of exponentials, which needs none of the small constants that keep the authors' code
    finite. Two passes, as in that code; see `TRADES`.
    """

    compares_inputs: ClassVar[bool] = True
    takes_mixed: ClassVar[bool] = False

    beta: float = Field(default=5.0, ge=0, description="weight of the KL term (the paper's lambda)")

    @property
    def passes(self) -> tuple[int, int]:
        """Clean and perturbed inputs."""
        return (2, 2)

    def losses(self, score: Score, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Boosted cross-entropy at the perturbed inputs, weighted divergence between the two."""
        clean, perturbed = at_least_float32(score(x)), at_least_float32(score(x_adv))
        wrong = 1 - clean.softmax(1).gather(1, y[:, None]).squeeze(1)
        return boosted_cross_entropy(perturbed, y) + self.beta * kl_divergence(clean, perturbed) * wrong


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y - log(1 - max_{k != y} p_k) per example (Wang et al. 2020, equation 8), float [B].

    Args:
        logits: float [B, classes], at least two classes.
        y: Labels, int64 [B].
    """
    rival = logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
    others = logits.scatter(1, rival[:, None], -torch.inf)
    everything = logits.logsumexp(1)
    return F.cross_entropy(logits, y, reduction="none") + everything - others.logsumexp(1)
