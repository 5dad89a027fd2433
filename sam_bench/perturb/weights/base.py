"""What every weight perturbation is, and the tools they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from sam_bench.perturb.weights.loss import BatchLoss
from sam_bench.perturb.weights.own_loop import LossFunction, OwnLoss, runner_for
from sam_bench.perturb.weights.runner import StepContext
from sam_bench.registry import Component, Registry
from sam_bench.seeds import generator


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm over all elements of all tensors, a scalar on their device."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
    return norm


def inner_product(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Inner product over all elements of all tensors, a scalar on their device."""
    products = torch._foreach_mul(list(one), list(other))
    return torch.stack([product.sum() for product in products]).sum()


def views_like(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Cut a vector into tensors of the parameters' shapes and, where these are dense, their memory order.

    Element by element operations on a whole list are fast only between tensors of the same strides.

    Args:
        flat: [N], as many elements as the parameters have together.
        parameters: Whose shapes and strides the views get.
    """
    views: list[Tensor] = []
    for piece, parameter in zip(flat.split([each.numel() for each in parameters]), parameters, strict=True):
        dense = torch.empty_like(parameter, device="meta", memory_format=torch.preserve_format)
        views.append(piece.as_strided(dense.shape, dense.stride(), piece.storage_offset()))
    return views


def draw_normal(parameters: Sequence[Tensor], seed: int, step: int, *parts: int) -> list[Tensor]:
    """Standard normal noise of the parameters' shapes, the same on every device of a run.

    Args:
        parameters: At least one, all of one dtype on one device.
        seed: The run's.
        step: Of the run.
        parts: Which draw of the step.
    """
    first = parameters[0]
    draws = generator(seed, "weights", step, *parts, device=first.device)
    count = sum(parameter.numel() for parameter in parameters)
    return views_like(torch.randn(count, generator=draws, device=first.device, dtype=first.dtype), parameters)


@contextmanager
def restored(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Give copies of parameters, and put these back when the block ends, bit for bit.

    Adding and subtracting a perturbation would leave rounding behind at every step.
    """
    before = [parameter.detach().clone(memory_format=torch.preserve_format) for parameter in parameters]
    try:
        yield before
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), before)


@contextmanager
def displaced(parameters: Sequence[Tensor], by: Sequence[Tensor]) -> Iterator[None]:
    """Move parameters by a perturbation and put them back bit for bit."""
    with restored(parameters):
        with torch.no_grad():
            torch._foreach_add_(list(parameters), list(by))
        yield


class WeightPerturbation(Component):
    """Base of what decides the gradient that the optimizer uses."""

    takes_mixed: ClassVar[bool] = True
    """Whether it takes labels that Mixup or CutMix mixed: shares of the classes, float [B, classes]."""

    @property
    def passes(self) -> tuple[float, float]:
        """Forward and backward passes per example and step, on average."""
        return (1, 1)

    def passes_with(self, objective: tuple[float, float]) -> tuple[float, float]:
        """The same with an objective that takes so many forward and backward passes itself."""
        forward, backward = self.passes
        return (forward * objective[0], backward * objective[1])

    def check(self, model: nn.Module, *, epochs: int, steps: int) -> None:
        """Refuse, before anything is learned, a run in which it could not act or never would.

        Args:
            model: The network.
            epochs: Of the run.
            steps: Of an epoch.

        Raises:
            InputError: It has nothing to perturb, or no step to do it in.
        """
        return

    def check_step(self, optimizer: torch.optim.Optimizer | None, *, sync_ascent: bool) -> None:
        """Refuse a way of taking steps in which it could not act.

        Args:
            optimizer: Uses the gradients; None if it is not known.
            sync_ascent: Whether an ascent follows the gradient of the whole batch on several devices.

        Raises:
            InputError: It contradicts a setting, or lacks what the method needs.
        """
        return

    @abstractmethod
    def backward(self, batch: BatchLoss) -> Tensor:
        """Fill `.grad` with the gradient to descend along; the weights are bitwise as before.

        Args:
            batch: The loss as a function of the weights.

        Returns:
            The loss at the unperturbed weights, a detached scalar.
        """

    def step_gradients(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        x: Tensor,
        y: Tensor,
        *,
        at: StepContext | None = None,
        micro_batch: int | None = None,
        sync_ascent: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Tensor:
        """Fill `.grad` for your own loop, in place of `loss_fn(model(x), y).backward()`; then step the optimizer.

        What `.grad` held before is replaced, so `zero_grad` is not needed. The passes run in the `torch.autocast`
        mode of the caller. A model in `DistributedDataParallel` averages its gradients as usual.

        Args:
            model: In train mode; maps `x` to logits.
            loss_fn: Maps logits and `y` to the mean loss or to one loss per example; ESAM needs the second.
                `reduction="sum"`, and a mean with class weights or ignored labels, are refused where passes see parts
                of the batch.
            x: Inputs, float [B, ...].
            y: Labels, int64 [B].
            at: The place of the step in the run, for methods that depend on it: `StepContext.at(step, epochs=10,
                steps_per_epoch=len(loader), seed=0)`.
            micro_batch: Examples differentiated at a time, if the batch does not fit the device; None for all.
            sync_ascent: Under DDP, follow the whole batch's gradient uphill instead of each device's own.
            optimizer: Takes the step afterwards. MSAM, which follows its momentum, and WSAM, which moves the weights
                once more after it, need it.

        Returns:
            The loss at the unperturbed weights, a detached scalar; MSAM's is the one at the perturbed weights.

        Raises:
            InputError: The method depends on the step and `at` is missing, or on the optimizer and `optimizer` is, or
                the loss or model does not fit.
        """
        self.check_step(optimizer, sync_ascent=sync_ascent)
        objective = OwnLoss(loss_fn, model, y)
        with runner_for(model, x.device, optimizer, micro_batch=micro_batch, sync_ascent=sync_ascent) as runner:
            return self.backward(BatchLoss(model, x, y, objective=objective, runner=runner, at=at))


WEIGHT_PERTURBATIONS: Registry[WeightPerturbation] = Registry(
    kind="weight perturbation", field="weights", group="sam_bench.weight_perturbations", base=WeightPerturbation
)


@WEIGHT_PERTURBATIONS.register("none")
class NoWeightPerturbation(WeightPerturbation):
    """The plain gradient."""

    def backward(self, batch: BatchLoss) -> Tensor:
        """The gradient at the weights."""
        return batch.backward().loss
