"""Lets the tests of this folder import their samples, and gives them a trained network."""

import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def examples() -> tuple[Tensor, Tensor]:
    """A hundred digits no network here was trained on."""
    digits = load_digits()
    return torch.tensor(digits.images[-100:], dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target[-100:])


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    """A small CNN with BatchNorm, trained for a second."""
    digits = load_digits()
    x, y = torch.tensor(digits.images[:800], dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target[:800])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(128, 10),
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()
