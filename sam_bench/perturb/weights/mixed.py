"""What methods share that descend along two gradients: at the weights and at the perturbed ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sam_bench.perturb.weights.ascent import Ascent
from sam_bench.perturb.weights.base import displaced, global_norm
from sam_bench.perturb.weights.loss import BatchLoss


@dataclass(frozen=True)
class TwoGradients:
    """What `two_gradients` found, for each parameter that learns.

    Attributes:
        loss: At `w`, a detached scalar.
        parameters: Those that learn.
        plain: `g`, the gradients at `w`.
        sharp: `g'`, those at `w + e`; they are in `.grad`.
    """

    loss: Tensor
    parameters: list[Tensor]
    plain: list[Tensor]
    sharp: list[Tensor]


def two_gradients(method: Ascent, batch: BatchLoss) -> TwoGradients:
    """The gradient at `w`, and the one at `w + e` with the perturbation that the method makes of the first.

    On several devices both are each device's own: what is made of them is to be averaged. With `sync_ascent` they
    are the whole batch's. All parameters have both, also where `perturb_only` moves a part of them.
    """
    together = batch.runner.sync_ascent
    loss = batch.backward(sync=together).loss
    parameters, plain = batch.gradients()
    allowed = method.chosen(batch)
    among = set(map(id, parameters if allowed is None else allowed))
    pairs = [pair for pair in zip(parameters, plain, strict=True) if id(pair[0]) in among]
    moved, ascent = [parameter for parameter, _ in pairs], [gradient.clone() for _, gradient in pairs]
    batch.ascent_norm = global_norm(ascent)
    method.perturbation(batch, moved, ascent)
    with displaced(moved, ascent):
        batch.backward(update_bn=method.bn_second_pass == "update", sync=together)
    return TwoGradients(loss, parameters, plain, batch.gradients()[1])
