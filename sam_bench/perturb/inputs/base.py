"""What every input perturbation is, and what those that climb a gradient share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sam_bench.errors import InputError
from sam_bench.modes import batch_norm_statistics_kept, frozen, training_mode
from sam_bench.perturb.ball import Ball, check_eps
from sam_bench.records import Radius, RadiusGiven
from sam_bench.registry import Component, Registry


class InputPerturbation(Component):
    """Base of what moves a batch of inputs before the weights learn from it."""

    follows_training: ClassVar[bool] = False
    """Whether `follow` wants the gradient of the pass that the weights learn from."""

    @property
    def steps_per_batch(self) -> int:
        """Steps in a row that learn from one batch."""
        return 1

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes per example that one call of `perturb` takes."""
        return (0, 0)

    @property
    def ball(self) -> Ball | None:
        """The threat model trained against; None when there is none."""
        return None

    @property
    def reach(self) -> float:
        """The farthest an input can be moved, in the ball's norm; infinite where only the box of images ends it."""
        return self.ball.eps if self.ball else 0.0

    @abstractmethod
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """The inputs to learn from.

        Leaves every parameter's `.grad` and every mode as it found them, and every BatchNorm statistic
        unless it was asked to move them.

        Args:
            model: In train mode; maps float [B, C, H, W] in [0, 1] to logits [B, classes].
            x: Clean inputs, float [B, C, H, W] in [0, 1].
            y: Labels, int64 [B].
            generator: Decides the random draws; on the same device as `x`.

        Returns:
            float [B, C, H, W] in [0, 1], detached.
        """

    def starting_points(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Where `perturb` with the same draws begins: the clean inputs, if a method does not say otherwise.

        Args:
            x: Clean inputs, float [B, C, H, W] in [0, 1].
            generator: In the state in which `perturb` gets it.
        """
        return x

    def follow(self, gradient: Tensor, *, first: int = 0) -> None:
        """Take up the gradient of the loss by the inputs that `perturb` gave, after the weights learned from them.

        Args:
            gradient: float [B, C, H, W].
            first: Place of the first row in the whole batch, where the rows are a part of it.
        """
        return

    def forget(self) -> None:
        """Begin a run: nothing is left of another one."""
        return

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The inputs to learn from, for your own loop; see `perturb`.

        Args:
            model: As `perturb` has it, or a `DistributedDataParallel` around it.
            x: Clean inputs, float [B, C, H, W] in [0, 1].
            y: Labels, int64 [B].
            generator: Decides the random draws; by default seeded from PyTorch's global one.

        Raises:
            InputError: The inputs are no floats in [0, 1], so that the box would cut them to other images; or the
                radius was surely meant in units of 1/255.
        """
        if self.reach:
            _check_images(x)
        if self.ball:
            check_eps(self.ball.norm, Radius(self.ball.eps), hint="")
        if generator is None:
            seed = int(torch.empty((), dtype=torch.int64).random_())
            generator = torch.Generator(x.device).manual_seed(seed)
        inner = getattr(model, "_orig_mod", model)  # of a compiled model
        # DDP would wait for gradients of parameters, which are frozen here.
        searched = inner.module if isinstance(inner, DistributedDataParallel) else model
        return self.perturb(searched, x, y, generator=generator)


def _check_images(x: Tensor) -> None:
    if not x.is_floating_point():
        raise InputError(f"must be floats in [0, 1], not {str(x.dtype).removeprefix('torch.')}", field="x")
    low, high = (float(end) for end in x.aminmax()) if x.numel() else (0.0, 1.0)
    if not 0 <= low <= high <= 1:
        raise InputError(
            f"must be in [0, 1], not in [{low:g}, {high:g}]", field="x", hint="let the model normalise its inputs"
        )


INPUT_PERTURBATIONS: Registry[InputPerturbation] = Registry(
    kind="input perturbation", field="inputs", group="sam_bench.input_perturbations", base=InputPerturbation
)


@INPUT_PERTURBATIONS.register("none")
class NoInputPerturbation(InputPerturbation):
    """Clean inputs."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """The inputs themselves."""
        return x


USUAL_L2 = "papers train with 16/255 to 128/255"


class GradientAscent(InputPerturbation):
    """What the gradient methods share: a ball, and how BatchNorm behaves meanwhile."""

    norm: Literal["Linf", "L2"] = Field(default="Linf", description="norm of the ball around each input: Linf or L2")
    eps: RadiusGiven = Field(
        default=Radius("8/255"), description="radius of the ball, for inputs in [0, 1]; e.g. 8/255"
    )
    bn_mode: Literal["train", "eval", "update"] = Field(
        default="eval",
        description="BatchNorm while the input is searched: batch statistics (train), running ones (eval), or batch "
        "statistics that also move the running ones (update), as in much published code",
    )

    @model_validator(mode="before")
    @classmethod
    def _radius_is_of_the_norm(cls, settings: Any) -> Any:
        if isinstance(settings, dict) and settings.get("norm") == "L2" and settings.get("eps") is None:
            raise ValueError(f"eps: must be given with norm L2, in which 8/255 is next to nothing; {USUAL_L2}")
        return settings

    @property
    def ball(self) -> Ball:
        """The ball trained against."""
        return Ball(norm=self.norm, eps=float(self.eps))

    @contextmanager
    def _searching(self, model: nn.Module) -> Iterator[None]:
        kept = nullcontext() if self.bn_mode == "update" else batch_norm_statistics_kept(model)
        with frozen(model), training_mode(model, self.bn_mode != "eval"), kept:
            yield
