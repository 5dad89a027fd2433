"""What is drawn at random differs from step to step and from epoch to epoch, seen from inside the network."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from training_samples import method_of, run

from sam_bench.data import Split


class Watched(nn.Module):
    """Keeps what goes into the network, and the masks of its random layer in train mode."""

    def __init__(self, random: nn.Module) -> None:
        super().__init__()
        self.random, self.head = random, nn.Linear(64, 10)
        self.inputs: list[Tensor] = []
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        kept = self.random(torch.ones(len(x), 64))
        self.inputs.append(x.detach().clone())
        if self.training:
            self.kept.append(kept.detach() != 0)
        logits: Tensor = self.head(x.flatten(1) * kept)
        return logits


def equal_images(count: int) -> Split:
    """Images that are all the same: whatever differs between two batches of one size was drawn."""
    image = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    return Split(image.repeat(count, 1, 1, 1), torch.zeros(count, dtype=torch.int64))


def all_differ(tensors: list[Tensor]) -> bool:
    return not any(torch.equal(one, other) for one, other in combinations(tensors, 2))


@pytest.mark.parametrize("random", [nn.Dropout(0.5), DropPath(0.5)], ids=["dropout", "stochastic depth"])
def test_every_step_has_its_own_masks_and_both_passes_of_sam_have_the_same(random: nn.Module, tmp_path: Path) -> None:
    model = Watched(random)
    run(tmp_path, method_of("sam", {"batch_size": 16}), model=model, train=equal_images(48))
    first, second = model.kept[::2], model.kept[1::2]
    assert len(first) == len(second) == 6
    assert all_differ(first)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("recipe", ["at", "fast-at", "trades"])
def test_every_step_starts_its_search_at_random_points_of_its_own(recipe: str, tmp_path: Path) -> None:
    model, train = Watched(nn.Identity()), equal_images(24)
    run(tmp_path, method_of(recipe, {"crop_padding": 0, "batch_size": 8}), model=model, train=train)
    clean = train.images[:8] / 255
    searched = [x for x in model.inputs if not torch.equal(x, clean)]
    starts = searched[:: len(searched) // 6]
    assert len(starts) == 6 and all_differ(starts)


def test_every_batch_of_every_epoch_is_augmented_in_its_own_way(tmp_path: Path) -> None:
    model = Watched(nn.Identity())
    run(tmp_path, method_of("standard", {"crop_padding": 3, "epochs": 3}), model=model, train=equal_images(16))
    assert len(model.inputs) == 6 and all_differ(model.inputs)
