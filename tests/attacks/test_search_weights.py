"""The weights that a search reads are laid out and cast once, and are the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from sam_bench.attacks.autoattack.model_calls import ModelCalls, runs_channels_last
from sam_bench.attacks.autoattack.search_weights import SearchWeights
from sam_bench.modes import frozen

CPU = torch.device("cpu")


class Network(nn.Module):
    """Convolutions of several kinds; remembers what its weights were when it ran."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 1, stride=2, bias=False), nn.BatchNorm2d(32)
        )
        self.grouped = nn.utils.weight_norm(nn.Conv2d(32, 32, 3, groups=4))
        self.head, self.seen = nn.Linear(32, 10), list[tuple[torch.dtype, bool]]()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layers[0].weight
        self.seen.append((weight.dtype, weight.is_contiguous(memory_format=torch.channels_last)))
        logits: Tensor = self.head(self.grouped(self.layers(x)).relu().mean((2, 3)))
        return logits


@contextmanager
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A search that reads the weights as they are."""
    with monkeypatch.context() as patch:
        patch.setattr(SearchWeights, "in_place", lambda self: nullcontext())
        yield


@pytest.mark.parametrize("bf16", [False, True])
def test_a_search_reads_prepared_weights_and_computes_the_same_numbers(
    bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = Network().eval(), torch.rand(20, 3, 12, 12), torch.arange(20) % 10

    def loss(logits: Tensor) -> Tensor:
        return logits.gather(1, y[:, None]).squeeze(1)

    with frozen(model):
        calls = ModelCalls(model, least_rows=16, device=CPU, bf16=bf16, channels_last=True)
        found = [calls.logits(x), *calls.gradient(x, loss), *calls.class_gradients(x)]
        assert set(model.seen) == {(torch.bfloat16 if bf16 else torch.float32, True)}
        model.seen.clear()
        calls.exact_logits(x)
        with without(monkeypatch):
            expected = [calls.logits(x), *calls.gradient(x, loss), *calls.class_gradients(x)]
        assert set(model.seen) == {(torch.float32, False)}, "the verifier and everybody else meet the model itself"
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_the_originals_are_back_whatever_happens() -> None:
    model = Network().eval()
    own = dict(model.named_parameters())
    with frozen(model):
        weights = SearchWeights(model, channels_last=True, bf16=True)
        with pytest.raises(ZeroDivisionError), weights.in_place():
            raise ZeroDivisionError
    assert all(parameter is own[name] for name, parameter in model.named_parameters()) and len(own) == 10
    assert all(parameter.requires_grad for parameter in own.values())


class Views(Network):
    """Reads what its convolutions made as rows, which other layouts than its own do not allow."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layers[2](self.layers[0](x))
        logits: Tensor = hidden.view(len(x), -1)[:, :10]
        return logits


def test_a_model_that_takes_no_such_weights_keeps_its_own() -> None:
    grey = torch.rand(1, 1, 12, 12)  # one channel: in such an image the layouts are the same
    for kind, takes in ((Views, False), (Network, True)):
        model = kind().eval()
        model.layers[0], model.layers[2] = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3)
        with frozen(model):
            assert runs_channels_last(model, grey, device=CPU, gradients=True) is takes


class Asserts(Network):
    """Its own code refuses another layout."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layers[0](x)
        assert hidden.is_contiguous(), "this kernel takes rows"
        logits: Tensor = self.layers[2](hidden).flatten(1)[:, :10]
        return logits


def test_a_model_whose_own_code_refuses_a_layout_is_run_without_it() -> None:
    model = Asserts().eval()
    model.layers[0], model.layers[2] = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3)
    with frozen(model):
        assert runs_channels_last(model, torch.rand(1, 3, 12, 12), device=CPU, gradients=True) is False
