"""What a module of the caller's goes by: what it computes, and not its weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sam_bench import evaluate
from sam_bench.api.module_identity import identified
from sam_bench.errors import InputError
from sam_bench.zoo import state_dict_sha256


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Wrapped(torch.nn.Module):
    """A network behind a normalisation that no state dict has."""

    mean: torch.Tensor

    def __init__(self, network: torch.nn.Module, mean: float, std: float, *, buffer: float = 0.0) -> None:
        super().__init__()
        self.network, self.shift, self.std = network, mean, std
        self.register_buffer("mean", torch.tensor(buffer), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network((x - self.shift) / self.std)
        return logits


class Noisy(torch.nn.Module):
    """A model that draws, as a defence by randomness does."""

    def __init__(self, size: float = 0.1, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.layer, self.size, self.generator = torch.nn.Linear(64, 10), size, generator

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(x.shape, generator=self.generator)
        logits: torch.Tensor = self.layer((x + self.size * noise).square().flatten(1))
        return logits


def test_modules_with_equal_weights_that_compute_something_else_are_told_apart() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 30), torch.nn.ReLU(), torch.nn.Linear(30, 10))
    shape = (1, 8, 8)
    whole = identified(Wrapped(network, 0.5, 0.5), shape)
    assert whole[1] == 10 and whole == identified(Wrapped(network, 0.5, 0.5).train(), shape)
    others = [
        Wrapped(network, 0.51, 0.5),
        Wrapped(network, 0.5, 0.505),
        Wrapped(network, 0.0, 1.0),
        Wrapped(network, 0.5, 0.5, buffer=1.0),
    ]
    assert len({whole, *(identified(other, shape) for other in others)}) == 5
    options: dict[str, Any] = {"attack": "fgsm", "eps": "4/255", "dataset": "digits-8px", "n_examples": 40}
    first = evaluate(Wrapped(network, 0.5, 0.5), **options)
    second = evaluate(Wrapped(network, 0.0, 1.0), **options, resume=True)
    assert first.model != second.model and first.verdicts != second.verdicts
    assert evaluate(Wrapped(network, 0.5, 0.5), **options, resume=True) == first


class _Straight(torch.autograd.Function):
    """Rounds to two levels; the gradient passes as if it had not."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


class Quantised(torch.nn.Module):
    """A model that masks its gradient, or the adaptive attack on it: only the backward pass differs."""

    def __init__(self, network: torch.nn.Module, *, straight: bool) -> None:
        super().__init__()
        self.network, self.straight = network, straight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(_Straight.apply(x) if self.straight else x.round())
        return logits


def test_modules_that_differ_in_their_gradient_alone_are_told_apart() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 30), torch.nn.ReLU(), torch.nn.Linear(30, 10))
    masked, adaptive = Quantised(network, straight=False), Quantised(network, straight=True)
    assert identified(masked, (1, 8, 8)) != identified(adaptive, (1, 8, 8))
    assert identified(adaptive, (1, 8, 8)) == identified(Quantised(network, straight=True), (1, 8, 8))
    options: dict[str, Any] = {"attack": "pgd", "eps": "64/255", "dataset": "digits-8px", "n_examples": 40}
    first = evaluate(masked, **options)
    again = evaluate(adaptive, **options, resume=True)
    assert again.checkpoint_sha256 != first.checkpoint_sha256
    assert again == evaluate(adaptive, **options, resume=True)


def test_what_a_module_goes_by_does_not_depend_on_the_order_of_its_sums() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 512), torch.nn.ReLU())
    network.append(torch.nn.Linear(512, 1000))
    known = identified(network, (3, 32, 32))

    class Reordered(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            exact: torch.Tensor = super().forward(x)
            return exact * (1 + 1e-6 * torch.arange(len(x))[:, None])

    assert identified(Reordered(*network), (3, 32, 32)) == known


def test_models_that_draw_are_told_apart_by_the_size_of_their_noise() -> None:
    torch.manual_seed(0)
    little, much = Noisy(0.1), Noisy(0.9)
    much.layer = little.layer
    options: dict[str, Any] = {"attack": "fgsm", "eps": "1/255", "dataset": "digits-8px", "n_examples": 40}
    first = evaluate(little, **options)
    drawn = torch.get_rng_state()
    assert identified(little, (1, 8, 8)) == (first.checkpoint_sha256, 10)
    assert torch.equal(torch.get_rng_state(), drawn)
    other = evaluate(much, **options, resume=True)
    assert other.model != first.model
    assert evaluate(little, **options, resume=True) == first


def test_a_model_with_a_generator_that_no_seed_reaches_goes_by_its_weights() -> None:
    module = Noisy(generator=torch.Generator())
    assert identified(module, (1, 8, 8)) == (state_dict_sha256(module), 10)


def test_a_module_that_fails_is_refused_by_the_check_of_the_model() -> None:
    assert identified(torch.nn.Linear(3, 2), (1, 8, 8))[1] is None
    with pytest.raises(InputError, match="fails on 1x8x8 images"):
        evaluate(torch.nn.Linear(3, 2), attack="fgsm", dataset="digits-8px")
