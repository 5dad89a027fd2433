"""A step of PGD through a compiled network is one graph, and ends where the steps of the network itself do."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from test_inputs import images, small_net
from torch import Tensor, nn
from torch._dynamo.utils import counters

from sam_bench import graphs
from sam_bench.perturb.inputs import PGD
from sam_bench.seeds import generator


def ends(pgd: PGD, network: nn.Module, called: nn.Module, *, bf16: bool = False) -> Tensor:
    """Where two searches end, and the networks' statistics after them."""
    found = []
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), graphs.room_for_graphs(True, network):
        for seed in range(2):
            found.append(pgd.perturb(called, *images(), generator=generator(seed)))
    return torch.cat([each.flatten() for each in (*found, *network.buffers())])


@pytest.mark.parametrize(
    ("settings", "bf16"),
    [
        ({}, True),
        ({"norm": "L2", "eps": 0.5, "bn_mode": "train"}, False),
        ({"loss": "kl", "start": "gaussian"}, False),
        ({"restarts": 2}, False),
        ({"iterate": "best"}, False),
        ({"bn_mode": "update"}, False),
    ],
)
def test_a_compiled_search_ends_where_an_uncompiled_one_does(
    settings: dict[str, Any], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    network, pgd = small_net().train(), PGD(steps=3, **settings)
    twin = copy.deepcopy(network)
    compiled = graphs.compiled(twin)
    counters.clear()
    assert torch.equal(ends(pgd, twin, compiled, bf16=bf16), ends(pgd, network, network, bf16=bf16))
    assert (compiled in graphs._whole) == ("iterate" not in settings and settings.get("bn_mode") != "update")
    assert counters["stats"]["unique_graphs"] <= 2 and twin[0].weight.grad is None


class Breaks(nn.Module):
    """A network that no graph holds whole."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_net()

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        logits: Tensor = self.inner(x)
        return logits


def test_a_network_that_breaks_the_graph_is_searched_in_parts_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    network, pgd = Breaks(), PGD(steps=3)
    compiled, expected = graphs.compiled(network), ends(pgd, network, network)
    with pytest.warns(UserWarning, match="a step of the search through Breaks runs as several graphs: "):
        assert torch.equal(ends(pgd, network, compiled), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ends(pgd, network, compiled), expected)


@pytest.mark.slow
def test_with_kernels_of_its_own_a_step_ends_within_rounding() -> None:
    torch.manual_seed(0)
    network, pgd = nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.Tanh()), PGD(norm="L2", eps=0.5, steps=3)
    compiled = graphs.compiled(network)
    torch.testing.assert_close(ends(pgd, network, compiled), ends(pgd, network, network), rtol=1e-5, atol=1e-6)
    assert compiled in graphs._whole
