"""Mixed batches: their equations, and that a batch is a function of seed, epoch and number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sam_bench.data import Batches, MixedBatches, Split


def plain(count: int = 22, size: int = 8, seed: int = 0) -> Batches:
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 1, 6, 6), generator=draws, dtype=torch.uint8)
    return Batches(Split(images, torch.arange(count) % 5), batch_size=size, seed=seed, augmentation=None)


def mixed(*, mixup: float = 0.0, cutmix: float = 0.0, seed: int = 0, count: int = 22) -> MixedBatches:
    return MixedBatches(plain(count), mixup=mixup, cutmix=cutmix, num_classes=5, seed=seed)


@pytest.mark.parametrize("count", [22, 23])
def test_mixup_averages_image_and_label_with_the_same_weight(count: int) -> None:
    weights = set()
    for (x, y), (clean, labels) in zip(mixed(mixup=0.8, count=count).epoch(1), plain(count).epoch(1), strict=True):
        even = len(x) - len(x) % 2
        one, other = clean[:even], clean[:even].flip(0)
        share = float(((x[:even] - other) * (one - other)).sum() / (one - other).square().sum())
        torch.testing.assert_close(x[:even], share * one + (1 - share) * other, rtol=0, atol=1e-6)
        hot = torch.eye(5)[labels]
        torch.testing.assert_close(y[:even], share * hot[:even] + (1 - share) * hot[:even].flip(0), rtol=0, atol=1e-5)
        assert torch.equal(x[even:], clean[even:]) and torch.equal(y[even:], hot[even:])
        weights.add(round(share, 4))
    assert len(weights) == len(plain(count))


def test_cutmix_pastes_a_rectangle_and_shares_the_label_by_its_area() -> None:
    pasted = 0
    for (x, y), (clean, labels) in zip(mixed(cutmix=1.0).epoch(0), plain().epoch(0), strict=True):
        from_other = (x == clean.flip(0)) & (x != clean)
        assert bool(((x == clean) | (x == clean.flip(0))).all())
        area = float(from_other.any(0).any(0).float().mean())
        own = y.gather(1, labels[:, None])[labels != labels.flip(0)]
        torch.testing.assert_close(own, torch.full_like(own, 1 - area), rtol=0, atol=1e-6)
        pasted += int(from_other.any())
    assert pasted


def test_a_batch_is_the_same_wherever_an_epoch_is_entered_and_numpys_stream_is_left_alone() -> None:
    whole = list(mixed(mixup=0.8, cutmix=1.0).epoch(3))
    np.random.seed(5)
    for (x, y), (again, labels) in zip(whole[1:], mixed(mixup=0.8, cutmix=1.0).epoch(3, start=1), strict=True):
        assert torch.equal(x, again) and torch.equal(y, labels)
    after = np.random.rand()
    np.random.seed(5)
    assert after == np.random.rand()
    other = next(iter(mixed(mixup=0.8, cutmix=1.0, seed=1).epoch(3)))
    assert not torch.equal(other[1], whole[0][1])


def test_mixed_images_stay_in_the_box() -> None:
    for x, y in mixed(mixup=0.2, cutmix=1.0).epoch(0):
        assert float(x.min()) >= 0 and float(x.max()) <= 1
        torch.testing.assert_close(y.sum(1), torch.ones(len(y)))
