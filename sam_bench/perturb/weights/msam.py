"""Momentum-SAM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from sam_bench.errors import InputError
from sam_bench.perturb.weights.ascent import Part, part_of, scale_to
from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS, WeightPerturbation, displaced
from sam_bench.perturb.weights.loss import BatchLoss
from sam_bench.perturb.weights.momentum import has_momentum, has_stepped, momentum_of


@WEIGHT_PERTURBATIONS.register("msam")
class MSAM(WeightPerturbation):
    """Momentum-SAM (Becker, Altrock, Risse 2024, arXiv 2401.12033, algorithm 1): one pass a step.

    The gradient is taken at `w - rho v / ||v||`, `v` the optimizer's momentum before this step. The sign is the
    paper's: the last step went along `-v`, and going on beyond it leads uphill. `v` is read from the optimizer, which
    has it anyway, weight decay included. The first step has none and is plain.

    The paper's algorithm keeps the perturbed weights from step to step and undoes it at the end. Here they are
    moved and put back within the step, so that evaluations and checkpoints see `w`. The gradients are the same.

    There is no pass at `w`: the loss and accuracy reported and BatchNorm's statistics are those at the perturbed
    weights.
    """

    rho: float = Field(default=3.0, ge=0, description="length of the step along the momentum (L2 over all parameters)")
    start_epoch: int = Field(
        default=0,
        ge=0,
        description="epochs of the base optimizer before the first perturbation of the weights",
    )
    perturb_only: Part = Field(
        default="all",
        description="the parameters that are perturbed: BatchNorm's, those of all normalising layers, all but these, "
        "or the last layer's",
    )

    def check(self, model: nn.Module, *, epochs: int, steps: int) -> None:
        """Refuse a model without the part that is to be perturbed."""
        part_of(model, self.perturb_only)

    def check_step(self, optimizer: torch.optim.Optimizer | None, *, sync_ascent: bool) -> None:
        """Refuse an optimizer without momentum.

        Raises:
            InputError: There is no optimizer, or none with a momentum to follow.
        """
        if optimizer is None:
            raise InputError(
                "must be given, because this method follows the optimizer's momentum",
                field="optimizer",
                hint="for example step_gradients(model, loss_fn, x, y, optimizer=optimizer)",
            )
        if not has_momentum(optimizer):
            raise self._lacking(optimizer)

    def backward(self, batch: BatchLoss) -> Tensor:
        """The gradient at `w - rho v / ||v||`; the loss there."""
        optimizer = batch.runner.optimizer
        if optimizer is None:
            raise InputError(f"{self.method} needs the optimizer's momentum, and the batch's `Runner` has no optimizer")
        momentum = momentum_of(optimizer)
        if self.start_epoch and batch.at.epoch < self.start_epoch:
            return batch.backward().loss
        allowed = part_of(batch.model, self.perturb_only)
        found = [(each, momentum(each)) for each in (batch.parameters if allowed is None else allowed)]
        parameters = [parameter for parameter, kept in found if kept is not None]
        if not parameters:
            if has_stepped(optimizer):  # so its setting called momentum means something else
                raise self._lacking(optimizer)
            return batch.backward().loss
        with displaced(parameters, self.perturbation([kept for _, kept in found if kept is not None])):
            return batch.backward().loss

    def _lacking(self, optimizer: torch.optim.Optimizer) -> InputError:
        return InputError(
            f"{self.method} follows the optimizer's momentum, and this {type(optimizer).__name__} has none; "
            "choose one with momentum, such as sgd with momentum 0.9 or adamw"
        )

    def perturbation(self, momentum: Sequence[Tensor]) -> list[Tensor]:
        """`- rho v / ||v||`."""
        moves = [kept.clone() for kept in momentum]
        scale_to(moves, -self.rho)
        return moves
