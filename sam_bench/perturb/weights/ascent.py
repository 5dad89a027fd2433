"""What the ascent methods share: a first gradient, a move uphill, the gradient that counts, and back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sam_bench.errors import InputError
from sam_bench.modes import batch_norms
from sam_bench.perturb.weights.base import WeightPerturbation, global_norm, restored
from sam_bench.perturb.weights.loss import BatchLoss

Part = Literal["all", "bn", "all-but-bn", "norm", "all-but-norm", "last"]
"""Which parameters are perturbed; all of them learn."""


class Ascent(WeightPerturbation):
    """Base of the methods that take the gradient at weights moved uphill.

    A subclass turns the gradient at `w` into the perturbation (`perturbation`). It may also replace
    `ascent_gradient` (the gradient at `w`), `chosen` (the parameters that move), `descent_gradient` (the
    gradient at the perturbed weights), or a whole step: `perturbed_step` with an ascent, `plain_step` without.
    """

    start_epoch: int = Field(
        default=0,
        ge=0,
        description="epochs of the base optimizer before the first perturbation of the weights",
    )
    interval: int = Field(default=1, ge=1, description="perturb the weights in every so many-th step only")
    perturb_only: Part = Field(
        default="all",
        description="the parameters that are perturbed: BatchNorm's, those of all normalising layers, all but these, "
        "or the last layer's",
    )
    bn_second_pass: Literal["keep", "update"] = Field(
        default="keep", description="BatchNorm's running statistics in the pass at the perturbed weights"
    )

    @property
    def passes(self) -> tuple[float, float]:
        """Two gradients in every step with an ascent."""
        return (1 + 1 / self.interval, 1 + 1 / self.interval)

    def check(self, model: nn.Module, *, epochs: int, steps: int) -> None:
        """Refuse a model without the part that is to be perturbed, and a run without a step to perturb it in."""
        self.perturbed_parameters(model)
        first = -(-self.start_epoch * steps // self.interval) * self.interval
        if first >= epochs * steps:
            raise InputError(
                f"is too large: of {epochs * steps} steps, none from `start_epoch` on is a multiple of it, so that "
                f"{self.method} would never perturb the weights",
                field="interval",
                value=self.interval,
                hint="give a smaller one",
            )

    def perturbed_parameters(self, model: nn.Module) -> list[nn.Parameter] | None:
        """The parameters that may be perturbed; None for all.

        Raises:
            InputError: The model has none of the kind that was asked for.
        """
        return part_of(model, self.perturb_only)

    def backward(self, batch: BatchLoss) -> Tensor:
        """The gradient at the perturbed weights."""
        if batch.begins_run:
            self.forget()
        if self.start_epoch and batch.at.epoch < self.start_epoch:
            return batch.backward().loss
        return self.ascending_step(batch) if self.due(batch) else self.plain_step(batch)

    def ascending_step(self, batch: BatchLoss) -> Tensor:
        """What is done where an ascent is due; the loss at `w`."""
        return self.perturbed_step(batch)

    def perturbed_step(self, batch: BatchLoss) -> Tensor:
        """A step with an ascent; the loss at `w`."""
        loss = self.ascent_gradient(batch, self.chosen(batch))
        parameters, gradients = batch.gradients()
        if not parameters:
            raise InputError(
                "does not fit: the loss does not depend on any parameter that would be perturbed",
                field="perturb_only",
                value=self.perturb_only,
            )
        batch.ascent_norm = global_norm(gradients)
        # The gradients themselves become the perturbation, since the second pass replaces them.
        self.perturbation(batch, parameters, gradients)
        with restored(parameters):
            with torch.no_grad():
                torch._foreach_add_(parameters, gradients)
            del gradients  # makes room for those of the second pass
            self.descent_gradient(batch)
        return loss

    def due(self, batch: BatchLoss) -> bool:
        """Whether this step has an ascent."""
        return self.interval == 1 or batch.at.step % self.interval == 0

    def chosen(self, batch: BatchLoss) -> list[nn.Parameter] | None:
        """The parameters to perturb in this step; None for all."""
        return self.perturbed_parameters(batch.model)

    def ascent_gradient(self, batch: BatchLoss, chosen: Sequence[nn.Parameter] | None) -> Tensor:
        """Fill the gradients that the ascent is made of; the loss at `w`."""
        return batch.backward(sync=batch.runner.sync_ascent, only=chosen).loss

    @abstractmethod
    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """Replace the gradients by the perturbation, in place and without waiting for the device."""

    def descent_gradient(self, batch: BatchLoss) -> None:
        """Fill the gradients that the optimizer uses, at the perturbed weights."""
        batch.backward(update_bn=self.bn_second_pass == "update")

    def plain_step(self, batch: BatchLoss) -> Tensor:
        """A step without an ascent; the loss at `w`."""
        return batch.backward().loss

    def forget(self) -> None:
        """Drop what an earlier run left, because a run begins."""


def part_of(model: nn.Module, part: Part) -> list[nn.Parameter] | None:
    """The trainable parameters of a part of a model; None for all.

    Raises:
        InputError: The model has no such part.
    """
    if part == "all":
        return None
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if part == "last":
        owners = [list(module.parameters(recurse=False)) for module in model.modules()]
        last = next(own for own in owners if any(each is trainable[-1] for each in own))
        return [parameter for parameter in last if parameter.requires_grad]
    layers = batch_norms(model) if part.endswith("bn") else _normalisations(model)
    normalising = {id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)}
    found = [parameter for parameter in trainable if (id(parameter) in normalising) != part.startswith("all-but")]
    if not found:
        whose = "BatchNorm" if part.endswith("bn") else "normalisation layers"
        kind = f"parameters of {whose}" if not part.startswith("all-but") else f"parameters but those of {whose}"
        instead = "norm, all or last" if part == "bn" and any(_normalisations(model)) else "all or last"
        raise InputError(
            f"does not fit: the model has no {kind}", field="perturb_only", value=part, hint=f"choose {instead}"
        )
    return found


def _normalisations(model: nn.Module) -> list[nn.Module]:
    """The layers that normalise, over whatever dimensions; timm's are recognised by their class names.

    One that has layers of its own, such as timm's ConvNorm, is a convolution as well. Those inside it are found.
    """
    known = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    return [
        each
        for each in model.modules()
        if isinstance(each, known) or (type(each).__name__.endswith("Norm") and not any(each.children()))
    ]


def scale_to(tensors: list[Tensor], rho: float) -> None:
    """Give tensors a common L2 norm of rho, in place; zeros stay zeros."""
    torch._foreach_mul_(tensors, rho / (global_norm(tensors) + 1e-12))
