"""Split and Dataset: shapes refused, fingerprints, held-out parts, channel statistics."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_bench.data import Dataset, Split, channel_stats, first_examples, hold_out, known_stats
from sam_bench.errors import InputError


def make_split(labels: list[int], *, channels: int = 3, size: int = 4, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(labels), channels, size, size), generator=generator, dtype=torch.uint8)
    return Split(images, torch.tensor(labels, dtype=torch.int64))


class TestSplit:
    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), r"images must be uint8 .* not float32"),
            (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"not uint8 \[2, 4, 4\]"),
            (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), r"labels must be int64 \[N\], not float32"),
            (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "2 images but 3 labels"),
        ],
    )
    def test_tensors_that_do_not_fit_are_refused(self, images, labels, message):
        with pytest.raises(InputError, match=message):
            Split(images, labels)

    def test_it_is_shown_in_one_line(self):
        assert repr(make_split([0, 1, 2])) == "Split(3 images, uint8 [3, 3, 4, 4])"

    def test_head_is_the_first_examples_and_all_when_there_are_fewer(self):
        split = make_split([0, 1, 2, 3])
        assert torch.equal(split.head(3).images, split.images[:3])
        assert split.head(3).labels.tolist() == [0, 1, 2]
        assert len(split.head(99)) == 4
        with pytest.raises(InputError, match="at least 1, not 0"):
            split.head(0)

    @given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=30), count=st.integers(1, 35))
    def test_the_first_examples_of_what_is_sorted_by_class_are_of_every_class_in_turn(self, labels, count):
        split, wanted = make_split(sorted(labels)), min(count, len(labels))
        found = first_examples(split, count)
        where = [int((split.images == image).flatten(1).all(1).nonzero()[0]) for image in found.images]
        assert where == sorted(set(where)) and len(where) == wanted
        sizes = Counter(labels)
        given = Counter(found.labels.tolist())
        # Nobody has given two more than one who has some left, and each has given its first.
        for one, other in itertools.product(sizes, sizes):
            assert given[one] <= given[other] + (one < other) or given[other] == sizes[other]
        for label in sizes:
            assert [index for index in where if split.labels[index] == label] == [
                int(index) for index in (split.labels == label).nonzero()[: given[label]]
            ]

    def test_the_first_examples_of_what_is_mixed_are_the_first(self):
        split = make_split([0, 2, 1, 0, 2])
        assert torch.equal(first_examples(split, 3).images, split.images[:3])
        assert first_examples(split, 9) is split

    def test_moving_to_where_it_is_copies_nothing(self):
        split = make_split([0, 1])
        assert split.to("cpu") is split
        assert split.to("meta").images.device.type == "meta"

    def test_the_fingerprint_is_the_documented_digest(self):
        split = make_split([3, 1, 2], channels=1, size=5)
        expected = hashlib.sha256(
            b"images uint8 3x1x5x5\n"
            + split.images.numpy().tobytes()
            + b"labels int64 3\n"
            + np.array([3, 1, 2], dtype="<i8").tobytes()
        ).hexdigest()
        assert split.fingerprint == expected

    def test_the_fingerprint_does_not_depend_on_how_the_images_lie_in_memory(self):
        split = make_split(list(range(7)))
        strided = split.images.contiguous(memory_format=torch.channels_last)
        assert strided.stride() != split.images.stride()
        assert Split(strided, split.labels).fingerprint == split.fingerprint

    @given(index=st.integers(0, 5 * 3 * 16 - 1), label=st.integers(0, 4))
    @settings(max_examples=30, deadline=None)
    def test_one_changed_pixel_or_label_changes_the_fingerprint(self, index, label):
        split = make_split([0, 1, 2, 3, 4])
        images = split.images.clone()
        images.view(-1)[index] += 1
        labels = split.labels.clone()
        labels[label] += 1
        prints = {split.fingerprint, Split(images, split.labels).fingerprint, Split(split.images, labels).fingerprint}
        assert len(prints) == 3

    def test_a_reshaped_split_with_the_same_bytes_has_another_fingerprint(self):
        wide = torch.arange(32, dtype=torch.uint8).reshape(2, 1, 4, 4)
        labels = torch.zeros(2, dtype=torch.int64)
        assert Split(wide, labels).fingerprint != Split(wide.reshape(2, 4, 2, 2), labels).fingerprint


class TestDataset:
    def test_it_tells_classes_channels_and_size(self):
        dataset = Dataset("d", None, make_split([0, 1], channels=1, size=6), ("a", "b", "c"))
        assert (dataset.num_classes, dataset.in_channels, dataset.image_size) == (3, 1, 6)

    @pytest.mark.parametrize(
        ("train", "test", "message"),
        [
            (make_split([0]), make_split([0], size=5), r"train images of shape \[3, 4, 4\] but test images of shape"),
            (make_split([0, 2]), make_split([0]), "the train label 2, but its 2 classes are numbered 0 to 1"),
            (make_split([0]), make_split([-1]), "the test label -1"),
            (make_split([0]), make_split([]), "no test examples"),
            (
                None,
                Split(torch.zeros(1, 1, 4, 5, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)),
                "4x5 pixels; they must be square",
            ),
        ],
    )
    def test_parts_that_do_not_fit_together_are_refused(self, train, test, message):
        with pytest.raises(InputError, match=message):
            Dataset("d", train, test, ("a", "b"))


def identify(split: Split) -> list[int]:
    """The example numbers written into the first pixels by `numbered`."""
    return [int(low) + 256 * int(high) for low, high in split.images[:, 0, 0, :2].tolist()]


def numbered(labels: list[int]) -> Split:
    images = torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8)
    number = torch.arange(len(labels))
    images[:, 0, 0, 0], images[:, 0, 0, 1] = number % 256, number // 256
    return Split(images, torch.tensor(labels, dtype=torch.int64))


class TestHoldOut:
    @given(
        labels=st.lists(st.integers(0, 6), min_size=2, max_size=300),
        share=st.floats(0, 1),
        seed=st.integers(-(2**40), 2**40),
    )
    @settings(max_examples=100, deadline=None)
    def test_the_parts_are_disjoint_and_complete_and_keep_their_labels_and_the_first_its_order(
        self, labels, share, seed
    ):
        split = numbered(labels)
        count = 1 + int(share * (len(labels) - 2))
        train, validation = hold_out(split, count, seed)
        kept, aside = identify(train), identify(validation)
        assert len(aside) == count
        assert sorted(kept + aside) == list(range(len(labels)))
        assert kept == sorted(kept)
        assert validation.labels.tolist() == [labels[index] for index in aside]
        assert train.labels.tolist() == [labels[index] for index in kept]

    @given(
        sizes=st.lists(st.integers(1, 60), min_size=2, max_size=6), share=st.floats(0, 1), seed=st.integers(0, 2**31)
    )
    @settings(max_examples=100, deadline=None)
    def test_every_class_gives_its_share_up_to_rounding(self, sizes, share, seed):
        labels = [label for label, size in enumerate(sizes) for _ in range(size)]
        count = 1 + int(share * (len(labels) - 2))
        _, validation = hold_out(numbered(labels), count, seed)
        taken = torch.bincount(validation.labels, minlength=len(sizes)).tolist()
        for got, size in zip(taken, sizes, strict=True):
            # Rounding at a common share is off by 1/2 itself, and by the roundings of the others.
            assert abs(got - count * size / len(labels)) <= 1 / 2 + len(sizes) * size / (2 * len(labels))

    @given(count=st.integers(1, 79), seed=st.integers(0, 2**31))
    @settings(max_examples=60, deadline=None)
    def test_equal_classes_give_equal_numbers_up_to_one(self, count, seed):
        _, validation = hold_out(numbered([index % 8 for index in range(80)]), count, seed)
        taken = torch.bincount(validation.labels, minlength=8)
        assert int(taken.max() - taken.min()) <= 1

    def test_a_small_set_is_part_of_a_larger_one_of_the_same_seed(self):
        split = numbered([index % 10 for index in range(400)])
        small, large = (identify(hold_out(split, count, 5)[1]) for count in (30, 90))
        assert small == large[:30]

    def test_the_first_of_those_set_aside_are_of_every_class_where_the_split_is_sorted_by_class(self):
        _, validation = hold_out(numbered([index // 40 for index in range(400)]), 100, 3)
        assert torch.bincount(validation.labels[:50], minlength=10).tolist() == [5] * 10

    def test_the_seed_alone_decides(self):
        split = numbered([index % 10 for index in range(400)])
        first, again, other = (identify(hold_out(split, 50, seed)[1]) for seed in (1, 1, 2))
        assert first == again
        assert first != other

    def test_the_choice_is_the_same_in_every_version(self):
        _, validation = hold_out(numbered([index % 3 for index in range(30)]), 6, 0)
        assert sorted(identify(validation)) == [2, 13, 24, 26, 27, 28]

    @pytest.mark.parametrize("count", [-1, 0, 4, 5])
    def test_leaving_a_part_empty_is_refused(self, count):
        with pytest.raises(InputError, match=f"cannot set {count} of 4 examples aside .* from 1 to 3"):
            hold_out(make_split([0, 1, 0, 1]), count, 0)


class TestChannelStats:
    @given(seed=st.integers(0, 2**31), count=st.integers(1, 20), channels=st.integers(1, 4))
    @settings(max_examples=40, deadline=None)
    def test_they_equal_numpy_in_double_precision(self, seed, count, channels):
        split = make_split([0] * count, channels=channels, seed=seed)
        mean, std = channel_stats(split)
        values = split.images.numpy().astype(np.float64) / 255
        np.testing.assert_allclose(mean, values.mean(axis=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(std, values.std(axis=(0, 2, 3)), rtol=1e-10)

    def test_they_are_exact_where_the_answer_is_known(self):
        images = torch.zeros(9000, 2, 4, 4, dtype=torch.uint8)
        images[::2, 0] = 255
        images[:, 1] = 51
        split = Split(images, torch.zeros(9000, dtype=torch.int64))
        assert channel_stats(split) == ((0.5, 0.2), (0.5, 0.0))

    def test_an_empty_split_has_none(self):
        with pytest.raises(InputError, match="empty split"):
            channel_stats(make_split([]))

    def test_the_published_constants_are_known_for_cifar_alone(self):
        known = known_stats("CIFAR10")
        assert known is not None and known[0] == (0.4914, 0.4822, 0.4465)
        assert known_stats("cifar100") is not None
        assert known_stats("cifar10-jpeg") is None
        assert all(math.isfinite(value) for part in known for value in part)
