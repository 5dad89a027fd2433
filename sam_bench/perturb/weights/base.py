"""What every weight perturbation is, and the tools they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sam_bench.perturb.weights.loss import BatchLoss
from sam_bench.registry import Component, Registry


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
