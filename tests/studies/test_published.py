"""The published fault is what AutoAttack's authors' package does when it is called as the script calls it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sam_bench.integrations import upstream
from sam_bench.models import NormalizedModel
from sam_bench.records import Architecture, Cost, ModelCard, Radius, Recipe, WeightsFile
from sam_bench.studies import published

_EPS = Radius("1/255")


def _card(dataset: str, mean: tuple[float, ...], std: tuple[float, ...]) -> ModelCard:
    return ModelCard(
        name="m",
        dataset=dataset,
        architecture=Architecture(name="preactresnet18", num_classes=10, in_channels=len(mean), mean=mean, std=std),
        parameters=1,
        recipe=Recipe(name="standard", summary="none"),
        epochs=0,
        seed=0,
        precision="fp32",
        train_examples=1,
        train_fingerprint="0" * 64,
        test_fingerprint="0" * 64,
        clean_accuracy=0.1,
        cost=Cost(train_forward=0, train_backward=0, seconds=0, device="cpu"),
        packages={},
        weights=WeightsFile(file="m.safetensors", size=1, sha256="0" * 64),
        created="2026-01-01T00:00:00+00:00",
    )


def test_cifar100_gets_the_constants_of_cifar10_and_others_their_own() -> None:
    own = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    assert published.constants(_card("cifar100", *own)) == ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    assert published.constants(_card("cifar10-jpeg", *own)) == own


@pytest.mark.slow
def test_it_finds_what_upstreams_own_evaluation_of_normalised_images_finds() -> None:
    torch.manual_seed(0)
    mean, std = (0.4,), (0.25,)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    model = NormalizedModel(network, mean, std).eval()
    x = torch.rand(24, 1, 8, 8)
    normalised = (x - 0.4) / 0.25
    with torch.no_grad():
        kept = network(normalised).argmax(1)
        survive = (network(normalised.clamp(0, 1)).argmax(1) == kept).nonzero().flatten()
        fall = (network(normalised.clamp(0, 1)).argmax(1) != kept).nonzero().flatten()
    rows = torch.cat([survive[:2], fall[:2]])
    x, y, normalised = x[rows], kept[rows].clone(), normalised[rows]
    y[0] = (y[0] + 1) % 10  # a misclassified one
    found = published.evaluated(model, x, y, card=_card("mine", mean, std), norm="Linf", eps=_EPS)

    suite = upstream.build(network, norm="Linf", eps=float(_EPS), seed=0, version="standard", device=x.device)
    given = suite.run_standard_evaluation(normalised, y, batch_size=128)
    adversarial = given[0] if isinstance(given, tuple) else given
    with torch.no_grad():
        expected = network(adversarial).argmax(1) == y
    assert [verdict == "robust" for verdict in found["verdicts"]] == expected.tolist()
    assert found["clean"] == [False, True, True, True]
    assert found["clipped"][2:] == [False, False]
    assert found["verdicts"][2:] == ["apgd-ce", "apgd-ce"]  # clipping alone breaks them
    assert any(expected.tolist())
