"""Optimizers a recipe can name; the field's defaults for training from scratch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from sam_bench.errors import InputError, unknown_name
from sam_bench.registry import Component, Registry


class Optimizer(Component):
    """Base of optimizer settings."""

    lr: float = Field(default=0.1, gt=0, description="learning rate at the schedule's peak")
    weight_decay: float = Field(default=5e-4, ge=0, description="weight decay, on all parameters")

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over `parameters`."""


OPTIMIZERS: Registry[Optimizer] = Registry(
    kind="optimizer", field="optimizer", group="sam_bench.optimizers", base=Optimizer
)


@OPTIMIZERS.register("sgd")
class SGD(Optimizer):
    """Stochastic gradient descent with momentum; decay enters through the gradient."""

    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum")
    nesterov: bool = Field(default=False, description="Nesterov's momentum; needs a momentum above 0")

    @model_validator(mode="after")
    def _check(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: needs a momentum above 0, and momentum is 0")
        return self

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """`torch.optim.SGD`, fused where the device allows."""
        chosen = list(parameters)
        return _in_one_layout(
            torch.optim.SGD(
                chosen,
                lr=self.lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                nesterov=self.nesterov,
                **_fastest(chosen),
            )
        )


@OPTIMIZERS.register("adamw")
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019): the choice for transformers and mixers."""

    lr: float = Field(default=1e-3, gt=0, description="learning rate at the schedule's peak")
    weight_decay: float = Field(default=0.05, ge=0, description="decoupled weight decay, on all parameters")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the gradient's running mean")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="decay of the squared gradient's running mean")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """`torch.optim.AdamW`, fused where the device allows."""
        chosen = list(parameters)
        return _in_one_layout(
            torch.optim.AdamW(
                chosen,
                lr=self.lr,
                betas=(self.beta1, self.beta2),
                weight_decay=self.weight_decay,
                **_fastest(chosen),
            )
        )


_TIMM = (
    "adabelief adadelta adafactor adagrad adam adamax adamp adamw adanp adanw lamb lambc larc lars lion madgrad "
    "madgradw momentum momentumw nadam nadamw nlarc nlars nvnovograd radabelief radam rmsprop rmsproptf sgd sgdp sgdw"
)
"""What timm 1.0.9 builds without further packages; later versions have a list of their own to ask."""

_REFUSED = {
    "adahessian": "its step needs the gradient's graph, which the training step has freed by then",
    "fused": "it needs NVIDIA's apex; 'sgd' and 'adamw' are fused without it",
    "bnb": "it needs bitsandbytes",
    "lbfgs": "its step evaluates the loss again",
}
"""Beginnings of names that timm knows and the training step cannot use, with the reason."""


@OPTIMIZERS.register("timm")
class Timm(Optimizer):
    """Any optimizer of timm by its name; `lookahead_` before a name wraps it in Lookahead.

    Decay is on all parameters, as with the others. What is not given is timm's default.
    """

    opt: str = Field(description="timm's name of the optimizer: lion, lamb, adan, nadamw, …")
    lr: float = Field(default=1e-3, gt=0, description="learning rate at the schedule's peak")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay as the optimizer defines it, everywhere")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum, of those that take one")
    beta1: float | None = Field(default=None, ge=0, lt=1, description="first of the betas, with beta2")
    beta2: float | None = Field(default=None, ge=0, lt=1, description="second of the betas, with beta1")
    opt_eps: float | None = Field(default=None, gt=0, description="what is added to the denominator")

    @field_validator("opt")
    @classmethod
    def _known(cls, opt: str) -> str:
        name = opt.lower()
        bare = name.removeprefix("lookahead_")
        for beginning, reason in _REFUSED.items():
            if bare.startswith(beginning):
                raise InputError(f"timm's {opt!r} cannot be used here: {reason}")
        names = timm_optimizers()
        if bare not in names:
            raise unknown_name("optimizer of timm", bare, names)
        return name

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """What timm makes of it.

        Raises:
            InputError: The optimizer takes no betas or no eps, or refuses a value.
        """
        from timm.optim import create_optimizer_v2

        if (self.beta1 is None) != (self.beta2 is None):
            raise InputError("optimizer.beta1 and optimizer.beta2 are given together or not at all")
        more: dict[str, Any] = {} if self.beta1 is None else {"betas": (self.beta1, self.beta2)}
        if self.opt_eps is not None:
            more["eps"] = self.opt_eps
        try:
            built: torch.optim.Optimizer = create_optimizer_v2(
                list(parameters),
                opt=self.opt,
                lr=self.lr,
                weight_decay=self.weight_decay,
                momentum=self.momentum,
                **more,
            )
        except (TypeError, ValueError, AssertionError) as error:
            raise InputError(f"optimizer.opt: timm's {self.opt!r} cannot be built: {error}") from error
        return built


def timm_optimizers() -> list[str]:
    """The optimizers that `Timm` takes, without the prefix for Lookahead."""
    from timm import optim

    names = optim.list_optimizers() if hasattr(optim, "list_optimizers") else _TIMM.split()
    return sorted(name for name in set(names) if not name.startswith(tuple(_REFUSED)))


def _fastest(parameters: list[nn.Parameter]) -> dict[str, Any]:
    """One kernel over all tensors where torch has it for the device, else several tensors at a time."""
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return {"fused": True} if fused else {"foreach": True}


def _in_one_layout(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Bring gradients and state to their parameters' memory layout before they are used.

    The fused kernels walk through memory and pair what lies at the same place. A gradient in another
    layout than its parameter (channels last, say) would be applied to the wrong weights, silently.
    """
    optimizer.register_step_pre_hook(_align_gradients)
    optimizer.register_load_state_dict_post_hook(_align_state)
    return optimizer


def _align_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                parameter.grad = _like(parameter, gradient)


def _align_state(optimizer: torch.optim.Optimizer) -> None:
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = _like(parameter, value)


def _like(parameter: Tensor, values: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=values.dtype, requires_grad=False).copy_(values)
