"""Weighted sharpness-aware minimization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sam_bench.errors import InputError
from sam_bench.perturb.weights.ascent import Ascent, scale_to
from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS
from sam_bench.perturb.weights.loss import BatchLoss
from sam_bench.perturb.weights.mixed import two_gradients


@WEIGHT_PERTURBATIONS.register("wsam")
class WSAM(Ascent):
    """SAM with a weight on its sharpness (Yue et al. 2023, arXiv 2305.15817, algorithm 1).

    The optimizer gets the plain gradient `g`. After its step, the weights also move by `- lr c (g' - g)`, where `g'`
    is SAM's gradient and `c = gamma / (1 - gamma)`. So the sharpness is that of this step alone: it enters neither
    momentum nor other statistics of the optimizer. Gamma 0 is the base optimizer. Without momentum, gamma 1/2 is SAM.
    """

    rho: float = Field(default=0.05, ge=0, description="radius of the ascent in weight space (L2 over all parameters)")
    sharpness_weight: float = Field(
        default=0.9, ge=0, lt=1, description="weight of the sharpness (the paper's gamma): 0.5 counts it like the loss"
    )

    _waiting: RemovableHandle | None = PrivateAttr(default=None)  # for the optimizer's step

    def check_step(self, optimizer: torch.optim.Optimizer | None, *, sync_ascent: bool) -> None:
        """Refuse an optimizer that nothing can follow.

        Raises:
            InputError: There is no optimizer, or it runs no hooks after its step.
        """
        if optimizer is None:
            raise InputError(
                "must be given, because this method also moves the weights after the optimizer's step",
                field="optimizer",
                hint="for example step_gradients(model, loss_fn, x, y, optimizer=optimizer)",
            )
        if not getattr(type(optimizer).step, "hooked", False):
            raise InputError(
                f"{self.method} moves the weights after the optimizer's step, and {type(optimizer).__name__} runs no "
                "hooks there; choose an optimizer of PyTorch, such as sgd or adamw"
            )

    def backward(self, batch: BatchLoss) -> Tensor:
        """`g`; the optimizer's step will be followed by one along the sharpness."""
        if self._waiting is not None:
            self._waiting.remove()  # the step that it waited for was left out
        return super().backward(batch)

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`rho g / ||g||`."""
        scale_to(gradients, self.rho)

    def perturbed_step(self, batch: BatchLoss) -> Tensor:
        """`g` for the optimizer, `g' - g` for after its step; the loss at `w`."""
        optimizer = batch.runner.optimizer
        if optimizer is None:
            raise InputError(f"{self.method} follows the optimizer's step, and the batch's `Runner` has no optimizer")
        found = two_gradients(self, batch)
        sharpness = [sharp - plain for sharp, plain in zip(found.sharp, found.plain, strict=True)]
        for parameter, gradient in zip(found.parameters, found.plain, strict=True):
            parameter.grad = gradient
        if not batch.runner.sync_ascent:
            batch.runner.average([*found.plain, *sharpness])
        self._follow(optimizer, dict(zip(found.parameters, sharpness, strict=True)))
        return found.loss

    def _follow(self, optimizer: torch.optim.Optimizer, sharpness: dict[Tensor, Tensor]) -> None:
        """Let the optimizer's next step be followed by `- lr c (g' - g)`."""
        weight = self.sharpness_weight / (1 - self.sharpness_weight)

        def move(stepped: torch.optim.Optimizer, *_: object) -> None:
            handle.remove()
            with torch.no_grad():
                for group in stepped.param_groups:
                    learned = [parameter for parameter in group["params"] if parameter in sharpness]
                    if learned:
                        along = [sharpness[parameter] for parameter in learned]
                        torch._foreach_add_(learned, along, alpha=-group["lr"] * weight)

        self._waiting = handle = optimizer.register_step_post_hook(move)
