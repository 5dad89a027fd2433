"""The attacks' random numbers: uniform, reproducible, an example's own; or upstream's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sam_bench.attacks.rng import CounterRNG, UpstreamRNG, mix

SMALL = st.integers(0, 2**20)
PUBLISHED = [0.6413119435310364, 0.9982175827026367, 0.6513947248458862, 0.24659264087677002]


def where(*rows: tuple[int, int, int]) -> tuple[Tensor, ...]:
    return torch.tensor(rows).unbind(1)


def splitmix64(state: int) -> int:
    """SplitMix64's output for a state, in Python's unbounded integers."""
    mask = 2**64 - 1
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8))
def test_mixing_is_splitmix64s_bit_for_bit(states: list[int]) -> None:
    mixed = mix(torch.tensor(states)).tolist()
    assert [value % 2**64 for value in mixed] == [splitmix64(state % 2**64) for state in states]


def test_the_numbers_of_a_seed_stay_the_same_for_ever() -> None:
    # A change here changes every verdict that a published record reports.
    rng = CounterRNG(0, "square", torch.arange(100))
    drawn = rng.uniform(*where((7, 1, 42)), (4,), stream=1).flatten()
    assert drawn.tolist() == PUBLISHED


@given(rows=st.lists(st.tuples(st.integers(0, 99), SMALL, SMALL), min_size=1, max_size=5), seed=SMALL)
@settings(max_examples=30, deadline=None)
def test_a_row_draws_the_same_alone_and_in_company(rows: list[tuple[int, int, int]], seed: int) -> None:
    rng = CounterRNG(seed, "apgd-ce", torch.arange(100))
    for draw in (rng.uniform, rng.normal):
        together = draw(*where(*rows), (2, 3), stream=0)
        for row, drawn in zip(rows, together, strict=True):
            assert torch.equal(draw(*where(row), (2, 3), stream=0)[0], drawn)
    parts = rng.proposals(*where(*rows), (1, 2), stream=0)
    assert [tuple(part.shape) for part in parts] == [(len(rows), 1), (len(rows), 2)]


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"attack": "fab"},
        {"place": 4},
        {"trial": 1},
        {"at": 1},
        {"stream": 1},
    ],
    ids=lambda other: next(iter(other)),
)
def test_everything_a_number_is_keyed_by_changes_it(other: dict[str, Any]) -> None:
    def drawn(
        seed: int = 0, attack: str = "square", place: int = 3, trial: int = 0, at: int = 0, stream: int = 0
    ) -> Any:
        rng = CounterRNG(seed, attack, torch.tensor([place]))
        return rng.uniform(*where((0, trial, at)), (50,), stream=stream).flatten().tolist()

    assert not set(drawn()) & set(drawn(**other))


def test_uniform_numbers_are_uniform_and_normal_ones_normal_along_every_key() -> None:
    rng = CounterRNG(3, "apgd-t", torch.arange(300))
    for rows in (
        [(n, 0, 0) for n in range(300)],
        [(5, n, 0) for n in range(300)],
        [(5, 0, n) for n in range(300)],
    ):
        uniform = rng.uniform(*where(*rows), (100,), stream=0)
        assert uniform.min() >= 0 and uniform.max() < 1
        counts = torch.histc(uniform, bins=20, min=0, max=1)
        assert float(((counts - 1500) ** 2 / 1500).sum()) < 50  # chi squared of 19 degrees: p > 1e-4
        normal = rng.normal(*where(*rows), (100,), stream=0)
        assert abs(float(normal.mean())) < 0.03 and abs(float(normal.std()) - 1) < 0.02
        assert abs(float((normal.abs() < 1).float().mean()) - 0.6827) < 0.01
        for each in (uniform - 0.5, normal):
            neighbours = (each[1:] * each[:-1]).mean() / each.var(), (each[:, 1:] * each[:, :-1]).mean() / each.var()
            assert max(abs(float(value)) for value in neighbours) < 0.03


def test_upstreams_draws_are_torchs_in_the_order_asked_for() -> None:
    rng, rows = UpstreamRNG(11), where((4, 0, 0), (9, 0, 0))
    drawn = [
        rng.uniform(*rows, (3, 2), stream=0),
        *rng.proposals(*rows, (1, 4), stream=1),
        rng.normal(*rows, (5,), stream=0),
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        assert torch.equal(drawn[0], torch.rand(2, 3, 2))
        assert torch.equal(drawn[1], torch.rand(1).expand(2, 1))
        assert torch.equal(drawn[2], torch.rand(4).expand(2, 4))
        assert torch.equal(drawn[3], torch.randn(2, 5))
