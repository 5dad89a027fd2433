"""A short training on digits, and a module that fits their images."""

from __future__ import annotations

from typing import Any

import torch

import sam_bench
from sam_bench import train
from sam_bench.records import Recipe


def train_on_digits(recipe: str | Recipe = "standard", **changes: Any) -> sam_bench.api.TrainResult:
    settings = {"epochs": 3, "batch_size": 32, "schedule": "one-cycle", "crop_padding": 0, "flip": False}
    arguments: dict[str, Any] = {
        "dataset": "digits",
        "image_size": 8,
        "arch": "preactresnet10",
        "arch_options": {"width": 4},
        "settings": settings | changes.pop("settings", {}),
        "limit_train": 256,
        "precision": "fp32",
    }
    return train(recipe, **(arguments | changes))


class Linear(torch.nn.Module):
    """A model that sam-bench knows nothing of."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(x.flatten(1))
        return logits
