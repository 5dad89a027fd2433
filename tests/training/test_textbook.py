"""The benchmark's textbook loop and ours compute the same step, so that their speeds can be compared."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from training_samples import Steps, digits, method_of

from sam_bench.data import to_float
from sam_bench.models import create_model
from sam_bench.perturb.ball import Ball
from sam_bench.records import Architecture
from sam_bench.seeds import row_generator
from sam_bench.training import build_recipe, load_recipe, override

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
    ours = Steps(mine, method_of(name, settings), seed=0, precision="fp32")
    plain = textbook.Textbook(theirs, name, lr=0.05, momentum=0.9, weight_decay=5e-4)
    before = copy.deepcopy(theirs)
    for step in range(3):
        rows = slice(16 * step, 16 * step + 16)
        x, y = to_float(digits().images[rows]), digits().labels[rows]
        ours.at(x, y, step=step, progress=0.5)
        plain(x, y, lr=0.05)
    for a, b, start in zip(mine.parameters(), theirs.parameters(), before.parameters(), strict=True):
        moved = float((b - start).detach().norm())
        assert float((a - b).detach().norm()) <= 1e-4 * moved + 1e-7


@pytest.mark.parametrize("name", ["standard", "sam", "at"])
def test_faithful_recipes_leave_its_weights_and_statistics(textbook: ModuleType, name: str) -> None:
    # In float64, where rounding does not decide the sign of a gradient.
    settings: dict[str, Any] = {
        "standard": {},
        "sam": {"rho": textbook.RHO},
        "at": {"eps": "8/255", "step_size": "2/255", "steps": textbook.STEPS},
    }[name]
    mine, theirs = network().double(), network().double()
    recipe = override(load_recipe(name, faithful=True), settings)
    ours = Steps(mine, build_recipe(recipe), seed=3, precision="fp32")
    plain = textbook.Textbook(theirs, name, lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(5):
        rows = slice(16 * step, 16 * step + 16)
        x, y = to_float(digits().images[rows]).double(), digits().labels[rows]
        draws = row_generator(3, "inputs", step, first=0, total=len(x), device=x.device)
        start = Ball("Linf", textbook.EPS).sample(x, draws)
        ours.at(x, y, step=step, progress=0.0)
        plain(x, y, lr=0.1, start=start)
    expected = theirs.state_dict()
    for key, value in mine.state_dict().items():
        assert torch.allclose(value, expected[key], rtol=1e-9, atol=1e-11), key


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
