"""A tiny checkpoint, and the fields of a card that fits it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_bench.models import architecture_for, create_model
from sam_bench.records import Architecture, ComponentSpec, Cost, Recipe
from sam_bench.zoo import Zoo


@pytest.fixture(scope="session")
def architecture() -> Architecture:
    return architecture_for(
        "preactresnet18",
        num_classes=10,
        in_channels=3,
        image_size=32,
        mean=(0.49, 0.48, 0.45),
        std=(0.25, 0.24, 0.26),
        options={"width": 4},
    )


@pytest.fixture
def network(architecture: Architecture) -> Callable[[int], nn.Module]:
    """Networks by seed, their BatchNorm statistics off their initial values."""

    def make(seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        module = create_model(architecture)
        module.train()(torch.rand(8, 3, 32, 32))
        return module.eval()

    return make


@pytest.fixture
def fields(architecture: Architecture) -> Callable[..., dict[str, Any]]:
    """The fields of a card, all but the weights; keywords replace."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "name": "sam",
            "dataset": "cifar10-jpeg",
            "robustbench_dataset": "cifar10",
            "architecture": architecture,
            "recipe": Recipe(name="sam", summary="SAM", weights=ComponentSpec(method="sam", rho=0.2)),
            "epochs": 1,
            "seed": 0,
            "precision": "fp32",
            "train_examples": 100,
            "train_fingerprint": "0" * 64,
            "test_fingerprint": "1" * 64,
            "clean_accuracy": 0.5,
            "cost": Cost(train_forward=2, train_backward=2, seconds=1, device="cpu"),
            "packages": {"torch": torch.__version__},
            "created": "2026-01-01T00:00:00+00:00",
            **changes,
        }

    return make


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo(tmp_path / "zoo")


@pytest.fixture
def images() -> Tensor:
    return torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
