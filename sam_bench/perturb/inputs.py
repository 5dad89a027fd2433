"""Perturbations of the input: adversarial training's axis, and the search behind PGD evaluation.

A new one is a class here and nothing else: its fields become settings of a recipe and options of
the command line.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sam_bench.modes import batch_norm_statistics_kept, frozen, training_mode
from sam_bench.perturb.ball import Ball
from sam_bench.records import Norm, Radius
from sam_bench.registry import Component, Registry

LossPerExample = Callable[[Tensor, Tensor], Tensor]
"""Maps logits [B, classes] and labels [B] to losses [B]."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per example, [B]; in float32 where the logits have less."""
    return F.cross_entropy(at_least_float32(logits), y, reduction="none")


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, in float32 if it is in half precision: sums of exponentials need the digits."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, loss: LossPerExample = cross_entropy
) -> tuple[Tensor, Tensor]:
    """Logits at `x` and the gradient of each example's loss with respect to it.

    Only the input is differentiated: call it with the parameters frozen (`modes.frozen`).

    Args:
        model: Maps float [B, C, H, W] in [0, 1] to logits.
        x: Inputs, float [B, C, H, W].
        y: Labels, int64 [B].
        loss: What is differentiated.

    Returns:
        Logits [B, classes] and gradient [B, C, H, W], both detached.
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(x)
        (gradient,) = torch.autograd.grad(loss(logits, y).sum(), x)
    return logits.detach(), gradient


class InputPerturbation(Component):
    """Base of what moves a batch of inputs before the weights learn from it."""

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes per example that one call of `perturb` takes."""
        return (0, 0)

    @property
    def ball(self) -> Ball | None:
        """The threat model trained against; None when there is none."""
        return None

    @abstractmethod
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """The inputs to learn from.

        Leaves every parameter's `.grad`, every BatchNorm statistic and every mode as it found them.

        Args:
            model: In train mode; maps float [B, C, H, W] in [0, 1] to logits [B, classes].
            x: Clean inputs, float [B, C, H, W] in [0, 1].
            y: Labels, int64 [B].
            generator: Decides the random draws; on the same device as `x`.

        Returns:
            float [B, C, H, W] in [0, 1], detached.
        """


INPUT_PERTURBATIONS: Registry[InputPerturbation] = Registry(
    kind="input perturbation", field="inputs", group="sam_bench.input_perturbations"
)


@INPUT_PERTURBATIONS.register("none")
class NoInputPerturbation(InputPerturbation):
    """Clean inputs."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """The inputs themselves."""
        return x


class GradientAscent(InputPerturbation):
    """What the gradient methods share: a ball, a random start, and how BatchNorm behaves meanwhile."""

    norm: Norm = Field(default="Linf", description="norm of the ball around each input: Linf or L2")
    eps: Radius = Field(default=Radius("8/255"), description="radius of the ball, for inputs in [0, 1]; e.g. 8/255")
    bn_mode: Literal["train", "eval"] = Field(
        default="eval",
        description="BatchNorm while the input is searched: batch statistics (train) or running ones (eval); "
        "running statistics never move",
    )

    @property
    def ball(self) -> Ball:
        """The ball trained against."""
        return Ball(norm=self.norm, eps=float(self.eps))

    def _search(self, model: nn.Module, x: Tensor, y: Tensor, *, start: Tensor, steps: int, step_size: float) -> Tensor:
        x_adv = start
        with frozen(model), training_mode(model, self.bn_mode == "train"), batch_norm_statistics_kept(model):
            for _ in range(steps):
                _, gradient = input_gradient(model, x_adv, y)
                x_adv = self.ball.step(x_adv, x, gradient, step_size)
        return x_adv


@INPUT_PERTURBATIONS.register("fgsm")
class FGSM(GradientAscent):
    """One step from a random start: fast adversarial training (Wong, Rice, Kolter 2020, algorithm 3)."""

    step_size: Radius | None = Field(default=None, description="length of a step; default: 1.25 eps")
    random_start: bool = Field(default=True, description="start at a random point of the ball")

    @property
    def passes(self) -> tuple[int, int]:
        """One gradient of the input."""
        return (1, 1)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """One step of ascent on the cross-entropy."""
        start = self.ball.sample(x, generator) if self.random_start else x
        size = 1.25 * self.eps if self.step_size is None else float(self.step_size)
        return self._search(model, x, y, start=start, steps=1, step_size=size)


@INPUT_PERTURBATIONS.register("pgd")
class PGD(GradientAscent):
    """Projected gradient descent: adversarial training (Madry et al. 2018, equation 2.1)."""

    steps: int = Field(default=10, ge=1, description="steps of the ascent")
    step_size: Radius | None = Field(default=None, description="length of a step; default: eps/4")
    random_start: bool = Field(default=True, description="start at a random point of the ball")

    @property
    def passes(self) -> tuple[int, int]:
        """One gradient of the input a step."""
        return (self.steps, self.steps)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """The last iterate of the ascent on the cross-entropy."""
        start = self.ball.sample(x, generator) if self.random_start else x
        size = self.eps / 4 if self.step_size is None else float(self.step_size)
        return self._search(model, x, y, start=start, steps=self.steps, step_size=size)
