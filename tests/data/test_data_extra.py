"""Batches mixed with further images: whose place is taken, and that a batch is a function of seed, epoch and number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sam_bench.data import Batches, Extra, Split, load_extra
from sam_bench.errors import InputError
from sam_bench.records import Augmentation

OWN, FURTHER = 0, 1  # the value of every pixel says where an image is from, and its label which one it is


def split(count: int, value: int) -> Split:
    return Split(torch.full((count, 1, 4, 4), value, dtype=torch.uint8), torch.arange(count))


def batches(fraction: float | None, *, shard: tuple[int, int] = (0, 1), seed: int = 0, size: int = 20) -> Batches:
    extra = None if fraction is None else Extra(split(50, FURTHER), fraction)
    options = {"batch_size": size, "seed": seed, "augmentation": None}
    return Batches(split(90, OWN), shard=shard, extra=extra, **options)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.7, 0.95])
def test_every_batch_has_the_share_and_the_others_are_those_of_the_unmixed_batch(fraction: float) -> None:
    mixed, plain = list(batches(fraction).epoch(1)), list(batches(None).epoch(1))
    assert len(mixed) == len(plain) == 5
    for (x, y), (_, labels) in zip(mixed, plain, strict=True):
        theirs = (x.flatten(1)[:, 0] * 255).round() == FURTHER
        assert int(theirs.sum()) == int(len(x) * fraction)
        assert torch.equal(y[~theirs], labels[~theirs])
        assert bool((y[theirs] < 50).all())
    drawn = torch.cat([y[(x.flatten(1)[:, 0] > 0)] for x, y in mixed])
    assert len(drawn.unique()) > 0.4 * min(50, len(drawn))  # not the same few


def test_a_batch_is_the_same_wherever_an_epoch_is_entered_and_differs_by_epoch_and_seed() -> None:
    whole = list(batches(0.7).epoch(2))
    for (x, y), (again, labels) in zip(whole[3:], batches(0.7).epoch(2, start=3), strict=True):
        assert torch.equal(x, again) and torch.equal(y, labels)
    for other in (batches(0.7).epoch(3), batches(0.7, seed=1).epoch(2)):
        assert not torch.equal(next(iter(other))[1], whole[0][1])


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_are_the_batch_and_each_has_its_share(shards: int) -> None:
    whole = list(batches(0.7).epoch(0))
    parts = [list(batches(0.7, shard=(shard, shards)).epoch(0)) for shard in range(shards)]
    for number, (x, y) in enumerate(whole):
        assert torch.equal(torch.cat([part[number][0] for part in parts]), x)
        assert torch.equal(torch.cat([part[number][1] for part in parts]), y)
        for part in parts:
            share = float((part[number][0].flatten(1)[:, 0] > 0).float().mean())
            assert abs(share - 0.7) <= 1 / len(part[number][1])


def test_further_images_are_augmented_like_the_others() -> None:
    images = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
    images[..., 0] = 255  # a mirrored one has its bar on the right
    mirrored = Split(images, torch.arange(8))
    made = Batches(
        split(8, OWN),
        batch_size=8,
        seed=0,
        augmentation=Augmentation(crop_padding=0, flip=True),
        extra=Extra(mirrored, 0.99),
    )
    x, _ = next(iter(made.epoch(0)))
    assert bool((x[:, 0, 0, 3] == 1).any()) and bool((x[:, 0, 0, 0] == 1).any())


@pytest.mark.parametrize("names", [("image", "label"), ("x_train", "y_train")])
def test_published_names_of_the_arrays_are_read(names: tuple[str, str], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "1m.npz", **{names[0]: pixels, names[1]: np.arange(6)})
    found = load_extra(tmp_path / "1m.npz", shape=(3, 8, 8), num_classes=10)
    assert np.array_equal(found.images.numpy(), pixels.transpose(0, 3, 1, 2)) and found.labels.tolist() == [*range(6)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, r"must hold image and label, or x_train and y_train \(it holds x\)"),
        ({"image": np.zeros((3, 6, 6, 3), np.uint8), "label": np.arange(3)}, "image has images of 6x6x3; .* 8x8x3"),
        (
            {"image": np.zeros((3, 8, 8, 3), np.uint8), "label": np.array([0, 1, 10])},
            "has the label 10, but .* 10",
        ),
        ({"image": np.zeros((3, 8, 8, 3), np.uint8), "label": np.arange(4)}, "image has 3 images, but label has 4"),
        (
            {"image": np.zeros((3, 8, 8, 3), np.uint8), "label": np.zeros(3)},
            "label is float64; labels must",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_named(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=rf"bad\.npz.*{message}"):
        load_extra(tmp_path / "bad.npz", shape=(3, 8, 8), num_classes=10)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*none\.npz"):
        load_extra(tmp_path / "none.npz", shape=(3, 8, 8), num_classes=10)
