"""A batch in parts: all of it, in as many parts on every device, and no example alone with BatchNorm."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from weights_samples import batch_loss, data, net

from sam_bench.perturb.weights.entropy_sgd import EntropySGD
from sam_bench.perturb.weights.esam import ESAM
from sam_bench.perturb.weights.microbatches import Microbatches

PLAIN, NORMALISED = nn.Linear(1, 1), nn.BatchNorm1d(1)


@given(
    total=st.integers(2, 200),
    devices=st.integers(1, 8),
    most=st.integers(1, 40),
    share=st.sampled_from([0.01, 0.05, 0.25, 1 / 3, 0.5, 0.9, 1.0]),
    norm=st.booleans(),
)
@settings(max_examples=300, deadline=None)
@example(total=7, devices=3, most=1, share=0.9, norm=False)
def test_every_device_has_as_many_parts_nearly_equal_and_none_of_a_single_example(
    total: int, devices: int, most: int, share: float, norm: bool
) -> None:
    total = max(total, 2 * devices)  # a smaller batch is not shared
    shards = [(rank + 1) * total // devices - rank * total // devices for rank in range(devices)]
    parts = Microbatches(NORMALISED if norm else PLAIN, most, (min(shards), max(shards)))
    numbers = set()
    for shard in shards:
        for count in {max(2, math.ceil(share * shard)), max(2, round(share * shard))}:
            cut = list(parts.cut(count, share))
            numbers.add(len(cut))
            assert [row for where, _ in cut for row in range(count)[where]] == list(range(count))
            assert [last for _, last in cut] == [False] * (len(cut) - 1) + [True]
            sizes = [len(range(count)[where]) for where, _ in cut]
            assert max(sizes) - min(sizes) <= 1 and min(sizes) >= (2 if norm else 1)
            assert max(sizes) <= max(most, 2) + (2 if norm else 0)
    assert len(numbers) == 1


@pytest.mark.parametrize("norm", [True, False])
def test_without_batch_norm_a_part_is_never_larger_than_asked_for(norm: bool) -> None:
    sizes = [where.stop - where.start for where, _ in Microbatches(NORMALISED if norm else PLAIN, 2, (9, 9)).cut(9)]
    assert sizes == ([2, 2, 2, 3] if norm else [1, 2, 2, 2, 2])


@pytest.mark.parametrize("perturbation", [ESAM(example_share=0.05), EntropySGD(inner_share=0.05)], ids=str)
@pytest.mark.parametrize(("count", "least"), [(1, 1), (2, 2), (7, 2)])
def test_a_small_share_of_a_small_batch_is_two_examples(
    perturbation: ESAM | EntropySGD, count: int, least: int
) -> None:
    model, (x, y) = net(), data(count=count)
    seen: list[int] = []

    def score(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        logits: torch.Tensor = model(images)
        return logits

    perturbation.backward(batch_loss(model, x, y, score=score))
    assert min(seen) == least and seen[-1] == least
