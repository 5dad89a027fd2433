"""Perturbations of the weights: SAM's axis.

A weight perturbation decides which gradient the optimizer gets. It is handed the batch's loss as a
function of the weights and may evaluate it as often as it needs, at the weights or beside them. A
new one is a class here and nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from pydantic import Field
from torch import Tensor, nn

from sam_bench.modes import batch_norm_statistics_kept
from sam_bench.registry import Component, Registry


class BatchLoss:
    """The loss of one batch as a function of the weights, with the passes it took counted.

    Args:
        model: The network being trained.
        loss: Runs the network on the batch and returns the mean loss, a scalar with a graph.

    Attributes:
        parameters: The trainable parameters.
        forward: Forward passes per example so far.
        backward: Backward passes per example so far.
    """

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor]) -> None:
        self.model = model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.forward = 0.0
        self.backward = 0.0
        self._loss = loss

    def differentiate(self, *, keep_statistics: bool = False) -> Tensor:
        """Put the gradient at the present weights into `.grad`, replacing what was there.

        Args:
            keep_statistics: Leave BatchNorm's running statistics as they are.

        Returns:
            The mean loss, a detached scalar.
        """
        for parameter in self.parameters:
            parameter.grad = None
        with batch_norm_statistics_kept(self.model) if keep_statistics else nullcontext():
            loss = self._loss()
        loss.backward()
        self.forward += 1
        self.backward += 1
        return loss.detach()

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters that received a gradient, and their gradients."""
        pairs = [(parameter, parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        return [parameter for parameter, _ in pairs], [gradient for _, gradient in pairs]


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm over all elements of all tensors, a scalar on their device."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
    return norm


@contextmanager
def displaced(parameters: Sequence[Tensor], by: Sequence[Tensor]) -> Iterator[None]:
    """Move parameters by a perturbation and put them back bit for bit.

    The weights are copied and copied back: adding and subtracting the perturbation would leave
    rounding behind at every step.
    """
    with torch.no_grad():
        before = [parameter.clone(memory_format=torch.preserve_format) for parameter in parameters]
        torch._foreach_add_(list(parameters), list(by))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), before)


class WeightPerturbation(Component):
    """Base of what decides the gradient that the optimizer uses."""

    @property
    def passes(self) -> tuple[float, float]:
        """Forward and backward passes per example and step, on average."""
        return (1, 1)

    @abstractmethod
    def differentiate(self, batch: BatchLoss) -> Tensor:
        """Fill `.grad` with the gradient to descend along; the weights are bitwise as before.

        Args:
            batch: The loss as a function of the weights.

        Returns:
            The loss at the unperturbed weights, a detached scalar.
        """


WEIGHT_PERTURBATIONS: Registry[WeightPerturbation] = Registry(
    kind="weight perturbation", field="weights", group="sam_bench.weight_perturbations"
)


@WEIGHT_PERTURBATIONS.register("none")
class NoWeightPerturbation(WeightPerturbation):
    """The plain gradient."""

    def differentiate(self, batch: BatchLoss) -> Tensor:
        """The gradient at the weights."""
        return batch.differentiate()


@WEIGHT_PERTURBATIONS.register("sam")
class SAM(WeightPerturbation):
    """Sharpness-aware minimization (Foret et al. 2021, equations 2 and 3).

    The gradient is taken at `w + rho g / ||g||`, the norm running over all parameters together.
    BatchNorm's running statistics see the batch once, at `w`.
    """

    rho: float = Field(default=0.05, ge=0, description="radius of the ascent in weight space (L2 over all parameters)")

    @property
    def passes(self) -> tuple[float, float]:
        """Two gradients a step."""
        return (2, 2)

    def differentiate(self, batch: BatchLoss) -> Tensor:
        """The gradient at the perturbed weights."""
        loss = batch.differentiate()
        parameters, ascent = batch.gradients()
        # The scale stays on the device: no synchronisation. The gradients themselves become the
        # perturbation, since the second pass replaces them.
        torch._foreach_mul_(ascent, self.rho / (global_norm(ascent) + 1e-12))
        with displaced(parameters, ascent):
            batch.differentiate(keep_statistics=True)
        return loss
