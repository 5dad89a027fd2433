"""What methods share that descend along a mixture of two gradients: at the weights and at the perturbed ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from sam_bench.perturb.weights.ascent import scale_to
from sam_bench.perturb.weights.base import displaced, global_norm
from sam_bench.perturb.weights.groups import GroupedAscent
from sam_bench.perturb.weights.loss import BatchLoss


class MixedGradients(GroupedAscent):
    """Base of the methods with SAM's ascent whose gradient is made of `g` at `w` and `g'` at `w + e`.

    On several devices each mixes its own two gradients, and the mixtures are averaged. With `sync_ascent` both are
    the whole batch's. All parameters learn from the mixture, also where `perturb_only` moves a part of them.
    """

    rho: float = Field(default=0.05, ge=0, description="radius of the ascent in weight space (L2 over all parameters)")

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`rho g / ||g||`."""
        scale_to(gradients, self.rho)

    @abstractmethod
    def mix(self, sharp: list[Tensor], plain: list[Tensor]) -> None:
        """Replace `g'`, in place, by what is descended along.

        Args:
            sharp: `g'`.
            plain: `g`, which may be used up.
        """

    def perturbed_step(self, batch: BatchLoss) -> Tensor:
        """A gradient at `w`, one at `w + e`, and their mixture; the loss at `w`."""
        together = batch.runner.sync_ascent
        loss = batch.backward(sync=together).loss
        parameters, plain = batch.gradients()
        allowed = self.chosen(batch)
        among = set(map(id, parameters if allowed is None else allowed))
        pairs = [pair for pair in zip(parameters, plain, strict=True) if id(pair[0]) in among]
        ascent = [gradient.clone() for _, gradient in pairs]
        batch.ascent_norm = global_norm(ascent)
        self.perturbation(batch, [parameter for parameter, _ in pairs], ascent)
        with displaced([parameter for parameter, _ in pairs], ascent):
            batch.backward(update_bn=self.bn_second_pass == "update", sync=together)
        _, sharp = batch.gradients()
        self.mix(sharp, plain)
        if not together:
            batch.runner.average(sharp)
        return loss
