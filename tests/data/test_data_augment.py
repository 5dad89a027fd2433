"""Random crop and flip: pixel for pixel torchvision's outcome, each outcome as likely as it should be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torchvision.transforms import functional as reference

from sam_bench.data import Batches, Split, augment, crop_and_flip
from sam_bench.errors import InputError
from sam_bench.records import Augmentation

MODES = {"reflect": "reflect", "zeros": "constant"}


def random_images(count: int, channels: int = 3, size: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def torchvision_outcome(image: torch.Tensor, top: int, left: int, flip: bool, padding: int, mode: str) -> torch.Tensor:
    padded = reference.pad(image, [padding], padding_mode=MODES[mode]) if padding else image
    cropped = reference.crop(padded, top, left, *image.shape[1:])
    return reference.hflip(cropped) if flip else cropped


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
def test_each_of_the_162_outcomes_equals_torchvisions(mode):
    image = random_images(1)[0]
    outcomes = [(top, left, flip) for top in range(9) for left in range(9) for flip in (False, True)]
    ours = crop_and_flip(
        image.expand(len(outcomes), -1, -1, -1),
        torch.tensor([outcome[:2] for outcome in outcomes]),
        torch.tensor([outcome[2] for outcome in outcomes]),
        padding=4,
        padding_mode=mode,
    )
    for got, (top, left, flip) in zip(ours, outcomes, strict=True):
        assert torch.equal(got, torchvision_outcome(image, top, left, flip, 4, mode)), (top, left, flip)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_batch_of_any_shape_equals_torchvision_image_by_image(data):
    size, channels, count = (data.draw(st.integers(*bounds)) for bounds in ((2, 12), (1, 4), (1, 6)))
    mode = data.draw(st.sampled_from(sorted(MODES)))
    padding = data.draw(st.integers(0, size - 1))
    images = random_images(count, channels, size, seed=data.draw(st.integers(0, 1000)))
    place = st.integers(0, 2 * padding)
    draws = data.draw(st.lists(st.tuples(place, place, st.booleans()), min_size=count, max_size=count))
    offsets, flips = torch.tensor([draw[:2] for draw in draws]), torch.tensor([draw[2] for draw in draws])
    ours = crop_and_flip(images, offsets, flips, padding=padding, padding_mode=mode)
    assert ours.dtype == torch.uint8 and ours.shape == images.shape
    for got, image, (top, left, flip) in zip(ours, images, draws, strict=True):
        assert torch.equal(got, torchvision_outcome(image, top, left, flip, padding, mode))


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
def test_all_162_outcomes_occur_equally_often(mode):
    image = random_images(1, size=16)[0]  # in smaller ones some reflected crops are palindromes
    keys = {}
    for top in range(9):
        for left in range(9):
            for flip in (False, True):
                keys[torchvision_outcome(image, top, left, flip, 4, mode).numpy().tobytes()] = len(keys)
    assert len(keys) == 162
    count = 162 * 100
    augmentation = Augmentation(crop_padding=4, padding_mode=mode, flip=True)
    drawn = augment(image.expand(count, -1, -1, -1), augmentation, torch.Generator().manual_seed(3))
    found = torch.bincount(torch.tensor([keys[one.numpy().tobytes()] for one in drawn]), minlength=162)
    assert int(found.min()) > 0
    assert chisquare(found.numpy()).pvalue > 1e-3


def test_each_example_has_a_draw_of_its_own():
    image = random_images(1)[0]
    drawn = augment(image.expand(64, -1, -1, -1), Augmentation(), torch.Generator().manual_seed(0))
    assert len({one.numpy().tobytes() for one in drawn}) > 40


def test_nothing_asked_for_changes_nothing():
    images = random_images(5)
    assert torch.equal(augment(images, Augmentation(crop_padding=0, flip=False), torch.Generator()), images)


def test_flip_alone_mirrors_about_half_and_moves_none():
    images = random_images(1).expand(2000, -1, -1, -1)
    drawn = augment(images, Augmentation(crop_padding=0), torch.Generator().manual_seed(1))
    mirrored = (drawn == images.flip(3)).flatten(1).all(1)
    same = (drawn == images).flatten(1).all(1)
    assert bool((mirrored ^ same).all())
    assert 900 < int(mirrored.sum()) < 1100


def test_switching_flip_off_leaves_the_crops_as_they_were():
    images = random_images(50)
    with_flip, without = (
        augment(images, Augmentation(flip=flip), torch.Generator().manual_seed(7)) for flip in (True, False)
    )
    either = (with_flip == without).flatten(1).all(1) | (with_flip == without.flip(3)).flatten(1).all(1)
    assert bool(either.all())


def test_the_images_given_stay_untouched():
    images = random_images(10)
    before = images.clone()
    augment(images, Augmentation(crop_padding=0), torch.Generator())
    augment(images, Augmentation(), torch.Generator())
    assert torch.equal(images, before)


def test_reflection_beyond_the_image_is_refused_before_the_first_batch():
    split = Split(random_images(4, size=4), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(InputError, match=r"crop_padding: 4 pixels cannot be reflected .* 4x4; use at most 3"):
        Batches(split, batch_size=2, seed=0, augmentation=Augmentation())
    zeros = Batches(split, batch_size=2, seed=0, augmentation=Augmentation(padding_mode="zeros"))
    assert len(list(zeros.epoch(0))) == 2
