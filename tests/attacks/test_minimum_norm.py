"""Distances to the nearest adversarial example: closed forms, foolbox's FMN and DDN, and PGD at either side."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_bench.attacks.margin import PGDMarginAttack
from sam_bench.attacks.minimum_norm import minimum_norms
from sam_bench.errors import InputError
from sam_bench.seeds import generator

NORMS = pytest.mark.parametrize("norm", ["Linf", "L2"])


class Linear(nn.Module):
    """Logits linear in the image."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, 48, generator=generator(seed, "weight")))

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T

    def distances(self, x: Tensor, y: Tensor, norm: str) -> Tensor:
        """To the nearest hyperplane, [B]: the difference of two logits over its slope in the dual norm."""
        logits = self(x).detach()
        weight = self.weight.detach()
        gaps = logits.gather(1, y[:, None]) - logits
        slopes = (weight[y][:, None] - weight).norm(p=1 if norm == "Linf" else 2, dim=2)
        return torch.where(slopes > 0, gaps / slopes, torch.inf).amin(1).clamp_min(0)


def images(seed: int, count: int = 20) -> Tensor:
    """In the middle of the box, so that its walls are far."""
    return 0.45 + 0.1 * torch.rand(count, 3, 4, 4, generator=generator(seed, "x"))


@NORMS
@pytest.mark.parametrize("classes", [2, 5])
def test_on_a_linear_model_it_is_the_distance_to_the_nearest_hyperplane(classes: int, norm: Any) -> None:
    for seed in range(2):
        model, x = Linear(classes, seed), images(seed)
        y = model(x).argmax(1)
        y[:3] = (y[:3] + 1) % classes
        found, exact = minimum_norms(model, x, y, norm=norm), model.distances(x, y, norm)
        assert (found[:3] == 0).all() and (found[3:] >= exact[3:] - 1e-6).all()
        ratios = found[3:] / exact[3:]
        # Of several hyperplanes the search may find one that is not the nearest.
        assert ratios.median() < 1.001 and ratios.max() < (1.001 if classes == 2 else 1.5)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5)
        )


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network in eval mode, images up to the walls of the box, and labels of which two are wrong."""
    model = network().eval()
    x = torch.rand(24, 3, 8, 8, generator=generator("images"))
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % 5
    return model, x, y


@NORMS
def test_it_finds_points_as_near_as_foolbox(case: tuple[nn.Module, Tensor, Tensor], norm: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox
    model, (x, y) = deepcopy(case[0]), case[1:]  # foolbox leaves gradients in the parameters
    attacks = [foolbox.attacks.LInfFMNAttack(steps=100)]
    if norm == "L2":
        attacks = [foolbox.attacks.L2FMNAttack(steps=100), foolbox.attacks.DDNAttack(steps=100)]
    ours = minimum_norms(model, x, y, norm=norm)[2:]
    for attack in attacks:
        _, x_adv, broken = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), x[2:], y[2:], epsilons=None)
        assert broken.all()
        theirs = (x_adv - x[2:]).flatten(1).norm(p=torch.inf if norm == "Linf" else 2, dim=1)
        assert ours.median() <= 1.02 * theirs.median() and (ours <= 1.1 * theirs).all()


@NORMS
def test_pgd_breaks_beyond_the_distance_and_not_far_below(case: tuple[nn.Module, Tensor, Tensor], norm: Any) -> None:
    model, x, y = case
    found = minimum_norms(model, x, y, norm=norm)
    assert (found[:2] == 0).all() and (found[2:] > 0).all()
    pgd = PGDMarginAttack(steps=60, restarts=1)
    for row in range(2, 6):
        one, label, eps = x[row : row + 1], y[row : row + 1], float(found[row])
        assert pgd.run(model, one, label, norm=norm, eps=1.02 * eps).verdicts == ["pgd-margin"]
        assert pgd.run(model, one, label, norm=norm, eps=0.9 * eps).verdicts == ["robust"]


@NORMS
def test_the_batch_the_mode_and_other_images_change_nothing(case: tuple[nn.Module, Tensor, Tensor], norm: Any) -> None:
    model, x, y = case
    whole = minimum_norms(model, x, y, norm=norm, steps=5)
    torch.testing.assert_close(minimum_norms(model, x, y, norm=norm, steps=5, batch_size=7), whole, rtol=1e-4, atol=0)
    model.train()
    statistics = model[1].running_mean.clone()  # type: ignore[index, union-attr, operator]
    assert torch.equal(minimum_norms(model, x, y, norm=norm, steps=5), whole)
    assert model.training and torch.equal(model[1].running_mean, statistics)  # type: ignore[index, arg-type]
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    model.eval()


@NORMS
def test_one_step_crosses_a_flat_boundary_where_its_distance_says(norm: Any) -> None:
    """The margin over the gradient's dual norm is the distance; the step goes half a per cent beyond."""
    model, x = Linear(2, seed=0), images(0)
    y = model(x).argmax(1)
    ratios = minimum_norms(model, x, y, norm=norm, steps=1) / model.distances(x, y, norm)
    assert ratios.min() > 0.999 and ratios.max() < 1.006


def test_more_steps_come_nearer(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    few, many = (minimum_norms(model, x, y, norm="L2", steps=steps).median() for steps in (3, 100))
    assert many < few


def test_a_model_without_a_boundary_has_none() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]) + 0 * x.flatten(1)[:, :2]

    found = minimum_norms(Constant(), images(0, 3), torch.tensor([0, 0, 1]), steps=5)
    assert found.tolist() == [torch.inf, torch.inf, 0]


def test_a_pixel_without_a_gradient_stays_where_it_is() -> None:
    class Rooted(Linear):
        """The root of a black pixel has no gradient; no logit depends on it."""

        def forward(self, x: Tensor) -> Tensor:
            first = x.flatten(1)[:, :1]
            return super().forward(x) + 0 * first.sqrt()

    model, x = Rooted(2, seed=0), images(0)
    with torch.no_grad():
        model.weight.mul_(0.01)  # so that any other number in the place of NaN would lead astray
        model.weight[:, 0] = 0
    x.flatten(1)[:, 0] = 0
    y = model(x).argmax(1)
    found = minimum_norms(model, x, y, norm="L2")
    torch.testing.assert_close(found, model.distances(x, y, "L2"), rtol=1e-3, atol=0)


def test_a_boundary_outside_the_box_is_none() -> None:
    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.flatten(1).mean(1)
            return torch.stack([1.01 - mean, torch.zeros_like(mean)], 1)

    assert minimum_norms(Bright(), images(0, 3), torch.zeros(3, dtype=torch.int64), steps=20).isinf().all()


@pytest.mark.parametrize("wrong", [{"norm": "L1"}, {"steps": 0}, {"batch_size": 0}])
def test_what_is_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        minimum_norms(Linear(2, 0), images(0), torch.zeros(20, dtype=torch.int64), **wrong)


def test_images_in_255_are_refused() -> None:
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        minimum_norms(Linear(2, 0), 255 * images(0), torch.zeros(20, dtype=torch.int64))
    with pytest.raises(InputError, match="a label"):
        minimum_norms(Linear(2, 0), images(0), torch.zeros(3, dtype=torch.int64))
