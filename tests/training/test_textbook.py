"""The benchmark's textbook loop and ours compute the same step, so that their speeds can be compared."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from training_samples import digits, method_of

from sam_bench.data import to_float
from sam_bench.models import create_model
from sam_bench.records import Architecture
from sam_bench.training.step import TrainingStep

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def textbook() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import textbook
    finally:
        sys.path.remove(str(BENCHMARKS))
    return textbook


def network() -> nn.Module:
    torch.manual_seed(0)
    return create_model(
        Architecture(name="preactresnet10", num_classes=10, in_channels=1, image_size=8, options={"width": 4})
    ).train()


@pytest.mark.parametrize("name", ["standard", "sam"])
def test_three_steps_from_the_same_weights_end_at_the_same_weights(textbook: ModuleType, name: str) -> None:
    settings = {"schedule": "constant", "lr": 0.05} | ({"rho": textbook.RHO} if name == "sam" else {})
    mine, theirs = network(), network()
    ours = TrainingStep(mine, method_of(name, settings), seed=0, precision="fp32")
    plain = textbook.Textbook(theirs, name, lr=0.05, momentum=0.9, weight_decay=5e-4)
    before = copy.deepcopy(theirs)
    for step in range(3):
        rows = slice(16 * step, 16 * step + 16)
        x, y = to_float(digits().images[rows]), digits().labels[rows]
        ours(x, y, step=step, progress=0.5)
        plain(x, y, lr=0.05)
    for a, b, start in zip(mine.parameters(), theirs.parameters(), before.parameters(), strict=True):
        moved = float((b - start).detach().norm())
        assert float((a - b).detach().norm()) <= 1e-4 * moved + 1e-7


def test_its_attack_stays_in_the_ball_and_raises_the_loss(textbook: ModuleType) -> None:
    model = network()
    x, y = to_float(digits().images[:32]), digits().labels[:32]
    x_adv = textbook.pgd(model, x, y)
    assert float((x_adv - x).abs().max()) <= textbook.EPS + 1e-6 and 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1
    loss = nn.functional.cross_entropy
    assert float(loss(model(x_adv), y).detach()) > float(loss(model(x), y).detach())


def test_its_loader_gives_every_image_once_as_torchvision_crops_it(textbook: ModuleType) -> None:
    split = digits().head(20)
    batches = list(textbook.loader(split, batch_size=8, workers=0, flip=False, pinned=False, drop_last=False))
    assert sorted(label for _, y in batches for label in y.tolist()) == sorted(split.labels.tolist())
    assert [tuple(x.shape) for x, _ in batches] == [(8, 1, 8, 8), (8, 1, 8, 8), (4, 1, 8, 8)]
