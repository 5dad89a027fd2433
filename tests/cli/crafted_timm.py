"""Models of timm that break the contract an attack relies on, each in its own way."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

_CFG = {"file": "weights that nobody reads", "input_size": (1, 8, 8), "mean": (0.0,), "std": (1.0,)}

default_cfgs = generate_default_cfgs(
    dict.fromkeys(
        (
            "crafted_nan",
            "crafted_infinite",
            "crafted_narrow",
            "crafted_labels",
            "crafted_failing",
            "crafted_probabilities",
        ),
        _CFG,
    )
)


class _Crafted(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.num_classes, self.pretrained_cfg = kind, 10, _CFG
        self.weight = nn.Parameter(torch.randn(64, 10, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1) @ self.weight
        if self.kind == "nan":
            return logits * 0.0 / 0.0
        if self.kind == "infinite":
            return (logits.abs() + 1) / 0.0
        if self.kind == "narrow":
            return logits[:, :7]
        if self.kind == "probabilities":
            return logits.softmax(1)
        if self.kind == "labels":
            return logits.argmax(1)
        raise RuntimeError("this network fails\nwith more lines than one")


@register_model
def crafted_nan(pretrained: bool = False, **_: Any) -> nn.Module:
    return _Crafted("nan")


@register_model
def crafted_infinite(pretrained: bool = False, **_: Any) -> nn.Module:
    return _Crafted("infinite")


@register_model
def crafted_narrow(pretrained: bool = False, **_: Any) -> nn.Module:
    return _Crafted("narrow")


@register_model
def crafted_labels(pretrained: bool = False, **_: Any) -> nn.Module:
    return _Crafted("labels")


@register_model
def crafted_failing(pretrained: bool = False, **_: Any) -> nn.Module:
    return _Crafted("failing")


@register_model
def crafted_probabilities(pretrained: bool = False, **_: Any) -> nn.Module:
    return _Crafted("probabilities")
