"""Sharpness, against dense Hessians, closed forms and a planted sharp minimum."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn
from torch.func import functional_call, hessian, vmap

import sam_bench
from sam_bench.analysis.base import Context
from sam_bench.analysis.correlation import correlation
from sam_bench.analysis.hessian import WeightHessian, input_curvature, top_eigenvalue_each, top_eigenvalues, trace
from sam_bench.analysis.sharpness import Sharpness, rises
from sam_bench.errors import InputError, SamBenchError
from sam_bench.perturb.weights.asam import ASAM
from sam_bench.perturb.weights.sam import SAM
from sam_bench.progress import SilentReporter
from sam_bench.zoo import LoadedModel


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)
    )
    layers(torch.rand(16, 1, 5, 5))  # BatchNorm's statistics off their initial values
    return layers.double().eval()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(10, 1, 5, 5, generator=draws(), dtype=torch.float64), torch.arange(10) % 4


def dense(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The Hessian of the mean loss by the parameters, in the order in which they come."""
    shapes = {name: each.shape for name, each in network.named_parameters()}
    flat = torch.cat([each.detach().flatten() for each in network.parameters()])

    def loss(vector: Tensor) -> Tensor:
        pieces = vector.split([math.prod(shape) for shape in shapes.values()])
        given = {name: each.view(shapes[name]) for name, each in zip(shapes, pieces, strict=True)}
        return F.cross_entropy(functional_call(network, given, (x,)), y)

    found: Tensor = hessian(loss)(flat)
    return found


def test_products_eigenvalues_and_trace_are_those_of_the_dense_hessian(
    network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    matrix = dense(network, *batch)
    product = WeightHessian(network, *batch, batch_size=4)
    vector = torch.randn(product.size, generator=draws(), dtype=torch.float64)
    assert torch.allclose(product(vector), matrix @ vector, atol=1e-10)

    largest = torch.linalg.eigvalsh(matrix).flip(0)[:3].tolist()
    assert top_eigenvalues(product, product.size, 3, generator=draws()) == pytest.approx(largest, rel=1e-4)

    estimate, error = trace(product, product.size, 200, generator=draws())
    assert error > 0
    assert estimate == pytest.approx(float(matrix.trace()), abs=4 * error)
    # For random signs the variance is twice the sum of the squares off the diagonal.
    variance = 2 * float((matrix**2).sum() - (matrix.diagonal() ** 2).sum())
    assert error == pytest.approx(math.sqrt(variance / 200), rel=0.3)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_hessian_in_channels_last_is_the_same(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    usual = WeightHessian(network, *batch, batch_size=10)
    spectrum = top_eigenvalues(usual, usual.size, 2, generator=draws())
    other = WeightHessian(network.to(memory_format=torch.channels_last), *batch, batch_size=10)
    assert top_eigenvalues(other, other.size, 2, generator=draws()) == pytest.approx(spectrum, rel=1e-4)


def test_saturated_logits_have_eigenvalues_of_zero() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.ones_(model[1].weight)
    model[1].bias.data = torch.tensor([1e4, 0.0])
    product = WeightHessian(model, torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64), batch_size=3)
    assert top_eigenvalues(product, product.size, 2, generator=draws()) == [0.0, 0.0]


@pytest.mark.parametrize("count", [1, 2])
def test_as_many_eigenvalues_as_parameters_are_those_of_the_dense_matrix(count: int) -> None:
    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)[:count, :count]
    largest = torch.linalg.eigvalsh(matrix).flip(0).tolist()
    found = top_eigenvalues(lambda vector: matrix @ vector, count, count, generator=draws())
    assert found == pytest.approx(largest)


def test_a_network_of_one_parameter_is_measured() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x.flatten(1)

    x, y = torch.rand(6, 1, 2, 2, generator=draws()), torch.arange(6) % 4
    model = LoadedModel(Scaled().eval(), "scaled", "0" * 64, None, 4, (1, 2, 2))
    with SilentReporter().stage("", 6) as stage:
        context = Context(x=x, y=y, classes=(), batch_size=4, seed=0, stage=stage, models={})
        found = Sharpness(**SMALL | {"eigenvalues": 2}).measure(model, context)
    with torch.no_grad():
        chances = (2 * x.flatten(1)).softmax(1)
        mean = (chances * x.flatten(1)).sum(1)
        curvature = ((chances * x.flatten(1).square()).sum(1) - mean.square()).mean()
    assert found["weights"]["eigenvalues"] == pytest.approx([float(curvature)], rel=1e-4)


def test_eigenvalues_that_are_not_found_end_in_a_sentence() -> None:
    with pytest.raises(SamBenchError, match=r"^the Hessian's largest eigenvalues were not found; give a smaller "):
        top_eigenvalues(lambda vector: math.nan * vector, 4, 1, generator=draws())


def test_a_model_without_trainable_parameters_has_no_hessian(batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match="no parameter that can be differentiated"):
        WeightHessian(nn.Flatten(), *batch, batch_size=4)


def test_slope_and_curvature_by_the_input_are_those_of_the_dense_hessian(
    network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    def loss(image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(network(image[None]), label[None])

    matrices = vmap(hessian(loss))(*batch).reshape(10, 25, 25)
    slopes = vmap(torch.func.grad(loss))(*batch).flatten(1)
    norms, largest = input_curvature(network, *batch, steps=25, generator=draws())
    assert torch.allclose(norms, slopes.norm(dim=1))
    assert torch.allclose(largest, torch.linalg.eigvalsh(matrices)[:, -1], rtol=1e-6)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_network_of_relus_needs_as_many_steps_as_classes(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 30), nn.ReLU(), nn.Linear(30, 4)).double()
    few, many = (input_curvature(network, *batch, steps=steps, generator=draws())[1] for steps in (4, 25))
    assert torch.allclose(few, many, rtol=1e-6)


def test_a_search_that_has_seen_everything_invents_no_eigenvalue() -> None:
    matrices = torch.stack([-torch.eye(5), -torch.diag(torch.arange(1.0, 6.0))]).double()
    found = top_eigenvalue_each(
        lambda vectors: (matrices @ vectors[:, :, None])[:, :, 0], torch.ones(2, 5, dtype=torch.float64), 5
    )
    assert found.tolist() == pytest.approx([-1, -1])


def test_the_rise_is_the_loss_at_the_moved_weights(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    before = {name: each.clone() for name, each in network.state_dict().items()}
    found = rises(network, *batch, [SAM(rho=0.1), ASAM(rho=0.2, eta=0.0)], batch_size=4)
    assert all(torch.equal(each, before[name]) for name, each in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())

    parameters = dict(network.named_parameters())
    loss = F.cross_entropy(network(batch[0]), batch[1])
    slopes = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    sizes = {name: each.abs() if "weight" in name else torch.ones_like(each) for name, each in parameters.items()}
    for rise, rho, scale in ((found[0], 0.1, None), (found[1], 0.2, sizes)):
        scaled = slopes if scale is None else {name: each * scale[name] for name, each in slopes.items()}
        length = torch.cat([each.flatten() for each in scaled.values()]).norm()
        moves = scaled if scale is None else {name: each * scale[name] for name, each in scaled.items()}
        moved = {name: (each + rho * moves[name] / length).detach() for name, each in parameters.items()}
        there = F.cross_entropy(functional_call(network, moved, (batch[0],)), batch[1])
        assert rise == pytest.approx(float((there - loss).detach()), rel=1e-5)


def test_a_planted_sharp_minimum_is_found_sharp_and_adaptive_sharpness_is_not_fooled() -> None:
    """Scaling two layers against each other keeps the function (Dinh et al. 2017, arXiv 1703.04933)."""
    torch.manual_seed(0)
    x, y = torch.rand(64, 1, 4, 4, generator=draws(), dtype=torch.float64), torch.arange(64) % 3
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    adam = torch.optim.Adam(flat.parameters(), lr=0.02)
    for _ in range(100):
        adam.zero_grad()
        F.cross_entropy(flat(x), y).backward()
        adam.step()
    sharp = nn.Sequential(nn.Flatten(), nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    sharp[1].weight.data, sharp[3].weight.data = flat[1].weight.data / 10, flat[3].weight.data * 10
    assert torch.allclose(flat(x), sharp(x))

    methods = [SAM(rho=0.05), ASAM(rho=0.5, eta=0.0)]
    plain, planted = (rises(network, x, y, methods, batch_size=64) for network in (flat, sharp))
    assert planted[0] > 3 * plain[0]
    assert planted[1] == pytest.approx(plain[1], rel=1e-6)
    tops = [
        top_eigenvalues(product, product.size, 1, generator=draws())[0]
        for product in (WeightHessian(network, x, y, batch_size=64) for network in (flat, sharp))
    ]
    assert tops[1] > 10 * tops[0]


@pytest.mark.parametrize("ranks", [False, True])
def test_correlations_are_scipys_and_partial_ones_those_of_residuals(ranks: bool) -> None:
    a, b, c = np.random.default_rng(0).normal(size=(3, 12)) + np.random.default_rng(1).normal(size=12)
    oracle = (spearmanr if ranks else pearsonr)(a, b)
    found = correlation(list(a), list(b), ranks=ranks)
    assert found is not None
    assert found["estimate"] == pytest.approx(oracle.statistic)
    if not ranks:
        interval = oracle.confidence_interval(0.95)
        assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    plain = {pair: (spearmanr if ranks else pearsonr)(*pair_of).statistic for pair, pair_of in
             {"ab": (a, b), "ac": (a, c), "bc": (b, c)}.items()}  # fmt: skip
    partial = (plain["ab"] - plain["ac"] * plain["bc"]) / math.sqrt((1 - plain["ac"] ** 2) * (1 - plain["bc"] ** 2))
    found = correlation(list(a), list(b), ranks=ranks, given=list(c))
    assert found is not None
    assert found["estimate"] == pytest.approx(partial)
    assert found["low"] < partial < found["high"]


def test_a_correlation_that_cannot_be_told_is_not() -> None:
    assert correlation([1, 2, 3], [1, 2, 3]) is None
    assert correlation([1.0] * 8, [*map(float, range(8))]) is None
    values = [*map(float, range(8))]
    assert correlation(values, [1, 5, 2, 8, 3, 9, 4, 7], given=values) is None


SMALL = {"rho": (0.05, 0.1), "probes": 2, "hessian_examples": 8, "eigenvalues": 1, "lanczos_steps": 3, "m": 8}


def test_a_model_of_a_zoo_is_measured(zoo: Path, tmp_path: Path) -> None:
    result = sam_bench.analyze("sharpness", ["first"], zoo=zoo, n_examples=16, settings=SMALL, output=tmp_path)
    first = result.measured["first"]
    assert (first["weights"]["groups"], first["weights"]["m"]) == (2, 8)
    assert 0 <= first["robust_accuracy"] <= first["clean"]["accuracy"]
    assert all(one["sharpness"] < other["sharpness"] for one, other in pairwise(first["weights"]["sam"]))
    # The ascent of each group is steeper than one that has to suit both.
    assert all(each["m_sharpness"] > each["sharpness"] for each in first["weights"]["sam"])
    assert result.findings["correlations"] == {}
    assert set(result.findings["kinds"].values()) == {"neither"}
    assert "correlations need at least 6 models" in result.lines[-1]


def test_correlations_over_a_zoo_that_was_made_up() -> None:
    def made_up(at: int) -> dict[str, object]:
        spread = {"mean": at**2 / 9, "median": (7.0 - at) ** 2, "percentile_90": 1.0}
        rows = [{"rho": 0.1, "sharpness": 0.1 * at, "m_sharpness": 0.2 + at}]
        weights = {"sam": rows, "adaptive": rows, "eigenvalues": [1.0], "m": 1, "groups": 1}
        return {
            "clean": {"loss": 1.0, "confidence": (at * 5 % 7) / 7, "accuracy": 0.9},
            "robust_accuracy": 0.1 * at,
            "weights": weights | {"trace": {"estimate": float(at), "standard_error": 1.0}},
            "inputs": {"gradient_norm": spread, "top_eigenvalue": spread},
        }

    found = Sharpness(rho=(0.1,), rho_adaptive=(0.1,)).combine({str(at): made_up(at) for at in range(7)}, {})
    told = found["correlations"]
    assert told["SAM sharpness, whole set, rho 0.1"]["pearson"]["estimate"] == pytest.approx(1)
    assert told["input gradient norm, median"]["spearman"]["estimate"] == pytest.approx(-1)
    assert told["largest eigenvalue by weights"]["spearman"] is None
    assert found["kinds"]["0"] == "unknown"
