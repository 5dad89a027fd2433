"""`--precision auto` measures the network that is trained, and leaves it as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from training_samples import TinyNet, assert_same, tiny_net

from sam_bench import device as rooms
from sam_bench.training.precision import network_gain, precision_for

CPU, SHAPE = torch.device("cpu"), (1, 8, 8)


class Slow(TinyNet):
    """Slow in one type, as attention of few channels is in bfloat16 on CPUs that convolve twice as fast in it."""

    def __init__(self, *, in_bf16: bool) -> None:
        super().__init__()
        self.in_bf16 = in_bf16

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(20 if torch.is_autocast_enabled("cpu") == self.in_bf16 else 1):
            logits = super().forward(x)
        return logits


@pytest.mark.parametrize(("slow_in_bf16", "expected"), [(True, "fp32"), (False, "bf16")])
def test_the_network_decides_whatever_a_convolution_gains(
    slow_in_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(rooms, "bf16_gain", lambda threads: 2.0 if slow_in_bf16 else 0.5)
    network = Slow(in_bf16=slow_in_bf16)
    precision, why = precision_for("auto", CPU, network, SHAPE)
    assert precision == expected and why.startswith("the network in bfloat16 is ")
    assert precision_for("bf16", CPU, network, SHAPE) == ("bf16", "asked for")


def test_measuring_draws_nothing_and_leaves_the_network_alone() -> None:
    network = tiny_net().eval()
    network.norm.train()
    before, draws = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert network_gain(network, SHAPE) > 0
    assert_same(network.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), draws) and network.norm.training and not network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_network_that_refuses_bfloat16_trains_in_float32() -> None:
    class Refuses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("not implemented for BFloat16")
            logits: Tensor = self.head(x.flatten(1))
            return logits

    assert network_gain(Refuses(), SHAPE) == 0
