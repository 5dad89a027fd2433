"""Adversarial logit pairing."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from sam_bench.objectives import Objective
from sam_bench.perturb.inputs import cross_entropy
from sam_bench.perturb.weights import Score


class LogitPairing(Objective):
    """CE(x') + pairing mean((z(x) - z(x'))^2) over the classes (Kannan, Kurakin, Goodfellow 2018).

    An example of an objective that runs the network twice, not a recommendation: its robustness did
    not hold under stronger attacks (Engstrom, Ilyas, Athalye 2018).
    """

    # Without an input perturbation both inputs are one: such a recipe is refused before it runs.
    compares_inputs = True

    pairing: float = Field(default=0.5, ge=0, description="weight of the distance between the logits")

    @property
    def passes(self) -> tuple[int, int]:
        """Clean and perturbed inputs; the card's cost is computed from this."""
        return (2, 2)

    def losses(self, score: Score, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """A loss for every example, [B]."""
        clean, perturbed = score(x).float(), score(x_adv).float()
        return cross_entropy(perturbed, y) + self.pairing * (clean - perturbed).square().mean(1)
