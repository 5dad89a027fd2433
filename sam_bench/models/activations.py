"""The activation of our networks, an option of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

Activation = Annotated[
    Literal["relu", "silu", "gelu", "softplus"],
    Field(description="what follows each normalisation; the smooth ones suit penalties on the input's gradient"),
]

_KINDS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),  # nothing else needs what a BatchNorm or a sum returns
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
}


def activation_layer(name: Activation) -> nn.Module:
    """The layer; it has no parameters, so a state dict does not depend on it."""
    return _KINDS[name]()
