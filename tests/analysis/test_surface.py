"""Loss surfaces, against closed forms of linear models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import sam_bench
from sam_bench.analysis.base import Context
from sam_bench.analysis.loss_surface import filter_normalised, input_surface, mean_loss, weight_surface
from sam_bench.analysis.surface import Surface
from sam_bench.errors import InputError
from sam_bench.progress import SilentReporter
from sam_bench.zoo import LoadedModel

COORDINATES = [-1.0, -0.5, 0.0, 0.5, 1.0]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(9, 3, 2, 2, generator=draws()), torch.arange(9) % 2


def margins(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """By how much a linear model of two classes is right, [N]."""
    scores = (x.flatten(1) @ weight.T + bias) @ torch.tensor([1.0, -1.0])
    return scores * (1 - 2 * y)


def test_a_filter_of_the_direction_is_as_long_as_that_of_the_network() -> None:
    parameters = [torch.randn(5, 3, 2, 2, generator=draws()), torch.randn(5, generator=draws()), torch.zeros(2, 4)]
    direction, other = (filter_normalised(parameters, draws(seed)) for seed in (1, 2))
    assert torch.allclose(direction[0].flatten(1).norm(dim=1), parameters[0].flatten(1).norm(dim=1))
    assert not direction[1].any()
    assert not direction[2].any()
    assert not torch.allclose(direction[0], other[0])


def test_by_weights_the_surface_of_a_linear_model_is_the_closed_form(
    linear: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    weight, bias = (each.detach().clone() for each in linear.parameters())
    one, other = (filter_normalised([weight, bias], draws(seed)) for seed in (1, 2))
    points: list[int] = []
    rows = weight_surface(linear, *batch, (one, other), COORDINATES, batch_size=4, told=points.append)
    for a, row in zip(COORDINATES, rows, strict=True):
        for b, loss in zip(COORDINATES, row, strict=True):
            moved = margins(weight + a * one[0] + b * other[0], bias, *batch)
            assert loss == pytest.approx(float(F.softplus(-moved).mean()), rel=1e-5)
    assert points == [*range(1, 26)]
    assert rows[2][2] == mean_loss(linear, *batch, batch_size=4)
    assert torch.equal(linear[1].weight, weight)
    assert torch.equal(linear[1].bias, bias)
    assert linear[1].weight.grad is None


def test_by_inputs_the_surface_of_a_linear_model_is_the_closed_form(
    linear: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    directions = (torch.randn(x.shape, generator=draws(1)), torch.randn(x.shape, generator=draws(2)))
    rows = input_surface(linear, x, y, directions, COORDINATES, batch_size=4)
    weight, bias = (each.detach() for each in linear.parameters())
    plain, *slopes = (margins(weight, 0 * bias, each, y) for each in (x, *directions))
    offset = margins(weight, bias, x, y) - plain
    for a, row in zip(COORDINATES, rows, strict=True):
        for b, loss in zip(COORDINATES, row, strict=True):
            moved = plain + offset + a * slopes[0] + b * slopes[1]
            assert loss == pytest.approx(float(F.softplus(-moved).mean()), rel=1e-5)


def test_the_loss_does_not_depend_on_the_batches(linear: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    whole = mean_loss(linear, *batch, batch_size=9)
    assert whole == pytest.approx(float(F.cross_entropy(linear(batch[0]), batch[1]).detach()), rel=1e-6)
    assert mean_loss(linear, *batch, batch_size=2) == pytest.approx(whole, rel=1e-6)


def test_the_draws_of_an_image_do_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    x, y = torch.rand(20, 3, 2, 2, generator=draws()), torch.arange(20) % 3
    model = LoadedModel(network, "tanh", "0" * 64, None, 3, (3, 2, 2))
    surface = Surface(points=3, distance_steps=1)
    with SilentReporter().stage("", len(x)) as stage:
        few, all_at_once = (
            surface.measure(model, Context(x=x, y=y, classes=(), batch_size=size, seed=0, stage=stage, models={}))
            for size in (5, 20)
        )
    assert torch.allclose(*(torch.tensor(each["inputs"]) for each in (few, all_at_once)), rtol=0, atol=1e-6)


def test_a_model_of_a_zoo_is_mapped(zoo: Path, tmp_path: Path) -> None:
    settings = {"points": 3, "distance_steps": 10, "eps": "8/255"}
    result = sam_bench.analyze("surface", ["first"], zoo=zoo, n_examples=12, settings=settings, output=tmp_path)
    found = result.measured["first"]
    assert found["coordinates"] == [-1, 0, 1]
    assert found["weights"][1][1] == pytest.approx(found["loss"], rel=1e-6)
    assert found["inputs"][1][1] == pytest.approx(found["loss"], rel=1e-6)
    # Along the adversarial direction the loss rises more than along random signs, and falls on the other side.
    assert found["inputs"][2][1] > found["inputs"][1][2]
    assert found["inputs"][2][1] > found["loss"] > found["inputs"][0][1]
    distances = [each for each in found["distances"] if each is not None]
    assert len(found["distances"]) == 12
    assert distances == sorted(distances)
    assert result.lines[0].startswith("first: loss ")


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ([0, 1, 4, 5], "2.50/255"),
        ([0, 1, 4], "1.00/255"),
        ([0, 1, 4, None], "2.50/255"),
        ([0, 1, None, None], "not found"),
    ],
)
def test_the_median_of_an_even_number_of_distances_lies_between_the_middle_two(
    levels: list[int | None], said: str
) -> None:
    surface = Surface(points=3)
    grid = [[1.0] * 3] * 3
    distances = [None if each is None else each / 255 for each in levels]
    (line,) = surface.lines({"model": {"loss": 1.0, "weights": grid, "inputs": grid, "distances": distances}}, {})
    assert line.endswith(f"median distance {said}")


def test_a_grid_without_a_centre_is_refused(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give an odd number"):
        sam_bench.analyze("surface", zoo=zoo, settings={"points": 4}, output=tmp_path)


def test_many_models_have_a_map_each() -> None:
    surface = [[2.0, 3.0, 4.0], [1.0, 0.5, 1.0], [2.0, 3.0, 400.0]]
    one = {"loss": 0.5, "coordinates": [-1, 0, 1], "weights": surface, "inputs": surface, "distances": [0.0, 0.1, None]}
    figure = Figure()
    Surface(points=3).draw({f"model-{at}": one for at in range(9)}, {}, figure)
    maps, below = figure.subfigs
    titles = [axes.get_title() for axes in maps.axes if axes.get_visible() and axes.get_title()]
    assert titles == [f"model-{at}" for at in range(9)]
    assert sum(axes.get_visible() for axes in maps.axes) == 2 * 9 + 2  # and two scales
    assert len(below.axes[0].lines) == 9
