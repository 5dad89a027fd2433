"""Square where it searches in a coarser arithmetic than its witnesses are judged in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from autoattack_samples import Conv, Short, ShortBF16, examples, make_search, upstreams
from torch import Tensor, nn

from sam_bench.attacks.autoattack import Engine
from sam_bench.attacks.autoattack.square import Square, refuse_what_upstreams_square_cannot, sides
from sam_bench.attacks.autoattack.square_init import tile
from sam_bench.attacks.autoattack.suite import AttackConfig
from sam_bench.attacks.rng import CounterRNG
from sam_bench.errors import InputError
from sam_bench.integrations import upstream
from sam_bench.perturb.ball import Ball
from sam_bench.records import ROBUST, Norm


class OnlySquare(ShortBF16):
    """Square alone, in bfloat16 or in what PyTorch makes of float32."""

    coarse: str

    def engine_to_run(self, norm: Norm) -> Engine:
        return Engine([AttackConfig("square", restarts_or_targets=1, iterations=90)], bf16=self.coarse == "bf16")


class Rash(nn.Module):
    """In a coarse arithmetic it gets everything wrong at the first question of an attack; else it is exact."""

    def __init__(self, net: Conv, clean: Tensor, coarse: str) -> None:
        super().__init__()
        self.net, self.clean, self.coarse, self.lies = net, clean, coarse, 0

    def _is_coarse(self) -> bool:
        if self.coarse == "bf16":
            return torch.is_autocast_enabled("cpu")
        return torch.backends.cudnn.allow_tf32

    def forward(self, x: Tensor) -> Tensor:
        attacked = not bool((x[0] == self.clean).flatten(1).all(1).any())
        with torch.autocast("cpu", enabled=False):
            logits: Tensor = self.net(x)
        if not (attacked and self.lies == 0 and self._is_coarse()):
            return logits
        self.lies += 1
        return logits.roll(1, 1)


@pytest.mark.parametrize("patience", [1, 16])  # steps between two looks at who is through, on a CPU and on a GPU
@pytest.mark.parametrize("coarse", ["TF32", "bf16"])
def test_a_success_that_only_a_coarse_arithmetic_sees_does_not_end_the_search(
    coarse: str, patience: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Conv(dtype=torch.float32)
    x, y = examples(model, 20)
    how: dict[str, Any] = {"norm": "Linf", "eps": 0.012, "seed": 1, "batch_size": 32}
    exact = OnlySquare(coarse="").run(model, x, y, **how)
    assert {"square", ROBUST} == set(exact.verdicts)
    monkeypatch.setattr(Square, "check_every", patience)
    rash = Rash(model, x, coarse)
    result = OnlySquare(coarse=coarse).run(rash, x, y, **how)
    assert rash.lies == 1
    # The start is where every search begins, so that none of them has lost anything.
    assert result.verdicts == exact.verdicts
    assert torch.equal(result.x_adv, exact.x_adv)


@pytest.mark.parametrize("rng", ["counter", "upstream"])
def test_a_row_at_a_margin_of_zero_stops_as_upstreams_does(rng: Any) -> None:
    """Of two equal logits the first is the answer: right, and yet nothing is left to lower."""
    asked: list[int] = []

    class Tied(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(len(x))
            clean = (x.flatten(1)[:, :1] == 0.5).float()
            return torch.cat([clean, torch.zeros(len(x), 9)], 1)

    x, y = torch.full((6, 3, 11, 11), 0.5), torch.zeros(6, dtype=torch.int64)
    how: dict[str, Any] = {"norm": "Linf", "eps": 0.1, "batch_size": 6}
    ours = Short(engine="fast", version="custom", suite=("square",), rng=rng).run(Tied(), x, y, **how)
    passes = len(asked)
    theirs = Short(engine="reference", version="custom", suite=("square",)).run(Tied(), x, y, **how)
    assert ours.verdicts == theirs.verdicts == [ROBUST] * 6
    assert passes < 20  # of 90 queries


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_there_are_as_many_tiles_as_sides_occur_and_not_as_there_are_pixels(norm: Any) -> None:
    x, y = torch.rand(1, 3, 300, 260, generator=torch.Generator().manual_seed(0)), torch.zeros(1, dtype=torch.int64)
    net = nn.Sequential(nn.AvgPool2d(100), nn.Flatten(), nn.LazyLinear(4))
    rng = CounterRNG(0, "square", torch.arange(1))
    search = make_search("square", net, x, y, ball=Ball(norm, 0.5), rng=rng, steps=5000)
    occurring = {60, *sides(5000, 300, 260, norm=norm)}
    assert len(search._tiles) == len(occurring) < 14
    rows = search.init(torch.arange(1), torch.arange(1))
    for at in (0, 1, 60, 3000, 5000):
        rows.iteration[:] = at
        number, side = int(search._numbers[at]), int(search._sides[at])
        assert torch.equal(search._tiles[number, 0, :side, :side], tile(side, norm))


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_upstreams_square_is_refused_on_images_of_the_sizes_on_which_it_fails(norm: Any) -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(4)[:1].expand(len(x), -1)

    net, y = Sure(), torch.tensor([0])
    refused, failed = [], []
    for height in (5, 7, 9, 10, 12, 14):
        for width in (1, 2, 5, 10, 14):
            x = torch.full((1, 1, height, width), 0.5)
            square = upstreams(net, Ball(norm, 0.1), seed=0, steps=1, queries=1, version="custom")
            try:
                upstream.run_attack(square, "square", x, y)
            except (ArithmeticError, IndexError, RuntimeError, ValueError):
                failed.append((height, width))
            try:
                refuse_what_upstreams_square_cannot(height, width, norm)
            except InputError:
                refused.append((height, width))
    assert refused == failed and 0 < len(failed) < 15


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_with_upstreams_random_numbers_one_image_is_attacked_too(norm: Any) -> None:
    model = Conv(dtype=torch.float32)
    x, y = examples(model, 1)
    attack = Short(engine="fast", rng="upstream", version="custom", suite=("square",))
    assert attack.run(model, x, y, norm=norm, eps=0.001).verdicts == [ROBUST]
