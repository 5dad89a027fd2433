"""Split and Dataset: images as bytes, labels, and what is computed from all of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from sam_bench.errors import InputError
from sam_bench.records import RobustBenchDataset

Stats = tuple[tuple[float, ...], tuple[float, ...]]

BLOCK = 256
"""Images that are looked at together where all of a split are looked at."""

# The constants of the robustness papers' protocol, rounded as they are there.
_KNOWN_STATS: dict[str, Stats] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one part of a data set, on one device.

    Args:
        images: uint8 [N, C, H, W], 0 to 255.
        labels: int64 [N], class numbers from 0.

    Raises:
        InputError: A shape, a type or a device does not fit.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise InputError(f"images must be uint8 [N, C, H, W], not {_describe(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise InputError(f"labels must be int64 [N], not {_describe(self.labels)}")
        if len(self.images) != len(self.labels):
            raise InputError(f"there are {len(self.images)} images but {len(self.labels)} labels")
        if self.images.device != self.labels.device:
            raise InputError(f"images are on {self.images.device} but labels on {self.labels.device}")

    def __repr__(self) -> str:
        return f"Split({len(self)} images, {_describe(self.images)})"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where images and labels are."""
        return self.images.device

    @property
    def shape(self) -> tuple[int, ...]:
        """N, C, H, W."""
        return tuple(self.images.shape)

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`; itself when it is there already."""
        if self.device == torch.device(device):
            return self
        return Split(self.images.to(device), self.labels.to(device))

    def head(self, n: int) -> Split:
        """The first `n` examples, or all where there are fewer.

        Raises:
            InputError: `n` is below 1.
        """
        if n < 1:
            raise InputError(f"the number of examples must be at least 1, not {n}")
        return self if n >= len(self) else Split(self.images[:n], self.labels[:n])

    def select(self, indices: Tensor) -> Split:
        """The examples at `indices`, int64 [n], in that order."""
        where = indices.to(self.device)
        return Split(self.images[where], self.labels[where])

    def blocks(self) -> Iterator[Tensor]:
        """All images in order, a few hundred at a time."""
        return iter(self.images.split(BLOCK))

    @cached_property
    def fingerprint(self) -> str:
        """What `fingerprint_of` makes of it."""
        return fingerprint_of(self)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Args:
        name: What cards and records call it; usable as one part of a path.
        train: Training examples; None when only the test set was asked for.
        test: Test examples, in their published order.
        classes: Name of each class, by label.
        robustbench: The RobustBench data set that shares its inputs and classes, or None.
        mirrors: Whether a mirrored image shows the same class; None where that is not known.

    Raises:
        InputError: A part is empty, images are not square or not of one shape, or a label has no class.
    """

    name: str
    train: Split | None
    test: Split
    classes: tuple[str, ...]
    robustbench: RobustBenchDataset | None = None
    mirrors: bool | None = None

    def __post_init__(self) -> None:
        for part, split in (("train", self.train), ("test", self.test)):
            if split is None:
                continue
            if len(split) == 0:
                raise InputError(f"data set {self.name!r} has no {part} examples")
            if split.images.shape[1:] != self.test.images.shape[1:]:
                raise InputError(
                    f"data set {self.name!r} has train images of shape {list(split.images.shape[1:])} "
                    f"but test images of shape {list(self.test.images.shape[1:])} (channels, height, width)"
                )
            if split.images.shape[2] != split.images.shape[3]:
                height, width = split.images.shape[2:]
                raise InputError(f"data set {self.name!r} has images of {height}x{width} pixels; they must be square")
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= len(self.classes):
                raise InputError(
                    f"data set {self.name!r} has the {part} label {low if low < 0 else high}, "
                    f"but its {len(self.classes)} classes are numbered 0 to {len(self.classes) - 1}"
                )

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Channels of an image: 1 for grey, 3 for RGB."""
        return int(self.test.images.shape[1])

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels."""
        return int(self.test.images.shape[2])


class _InBlocks(Protocol):
    """What is computed from all images needs of a split, which memory need not hold."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def labels(self) -> Tensor: ...

    def blocks(self) -> Iterator[Tensor]: ...


def fingerprint_of(split: _InBlocks) -> str:
    """SHA-256 over shapes, types and bytes, as 64 hexadecimal digits; the same on every device, streamed or not.

    The digest is of `images uint8 NxCxHxW\\n`, the images' bytes in that order, `labels int64 N\\n`,
    and the labels as little-endian 64-bit integers.
    """
    digest = hashlib.sha256()
    digest.update(f"images uint8 {'x'.join(map(str, split.shape))}\n".encode())
    for block in split.blocks():
        digest.update(block.cpu().contiguous().numpy().data)
    digest.update(f"labels int64 {len(split.labels)}\n".encode())
    digest.update(split.labels.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


S = TypeVar("S", bound="_Divisible")


class _Divisible(Protocol):
    """What `hold_out` and `first_examples` need of a split."""

    @property
    def labels(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def head(self: S, n: int) -> S: ...

    def select(self: S, indices: Tensor) -> S: ...


def hold_out(split: S, count: int, seed: int) -> tuple[S, S]:
    """Set `count` examples aside, each class in proportion to its size.

    The k-th of a class's n examples, in a random order, gets the key (k + 1/2) / n; the `count`
    smallest keys are set aside. So every class gives its share up to rounding, a smaller validation
    set is a part of a larger one of the same seed. What is left keeps the split's order; what is set aside
    is ordered by its keys, so that the first of it, too, are of each class in proportion.

    Args:
        split: What to divide.
        count: Size of the validation set, from 1 to len(split) - 1.
        seed: Decides which examples; the same seed gives the same two parts on every device.

    Returns:
        (train, validation), without an example in common.

    Raises:
        InputError: `count` leaves one of the two parts empty.
    """
    total = len(split)
    if not 1 <= count < total:
        raise InputError(
            f"cannot set {count} of {total} examples aside for validation: it must be from 1 to {total - 1}"
        )
    # RandomState's stream is frozen across NumPy versions, so that a card's split can be had again.
    order = np.random.RandomState(seed % 2**32).permutation(total)
    labels = split.labels.cpu().numpy()[order]
    by_class = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    keys = np.empty(total)
    keys[by_class] = (np.arange(total) - starts[labels[by_class]] + 0.5) / sizes[labels[by_class]]
    ranked = order[np.argsort(keys, kind="stable")]  # equal keys stay in the random order
    return split.select(torch.from_numpy(np.sort(ranked[count:]))), split.select(torch.from_numpy(ranked[:count]))


def first_examples(split: S, count: int) -> S:
    """The first `count` examples, or all where there are fewer; where examples are sorted by class, of every class.

    A folder is sorted by class: its first examples would all be of the first. Of a split that is sorted so, the
    classes give their examples in turn (the first of each, then the second of each), which keep the split's order.

    Args:
        split: What to take from.
        count: How many, at least 1.

    Returns:
        The examples; a smaller count takes a part of what a larger one takes.
    """
    labels = split.labels.cpu().numpy()
    if count >= len(split) or np.any(np.diff(labels) < 0):
        return split.head(count)
    turn = np.arange(len(labels)) - np.searchsorted(labels, labels)  # an example's index within its class
    return split.select(torch.from_numpy(np.sort(np.lexsort((labels, turn))[:count])))


def channel_stats(split: _InBlocks) -> Stats:
    """Mean and (population) standard deviation of each channel of all images, for inputs in [0, 1].

    Computed from counts of the 256 values in integer arithmetic: exact up to the last rounding.

    Args:
        split: At least one image.

    Returns:
        (mean, std), each with one float a channel; the std of a constant channel is 0.

    Raises:
        InputError: The split is empty.
    """
    if len(split.labels) == 0:
        raise InputError("the mean and standard deviation of an empty split do not exist")
    counts = torch.zeros((split.shape[1], 256), dtype=torch.int64)
    for block in split.blocks():
        channels = [torch.bincount(channel.flatten(), minlength=256) for channel in block.transpose(0, 1)]
        counts += torch.stack(channels).cpu()
    means, stds = [], []
    for histogram in counts.tolist():
        n = sum(histogram)
        first = sum(value * count for value, count in enumerate(histogram))
        second = sum(value * value * count for value, count in enumerate(histogram))
        means.append(first / (255 * n))
        stds.append(math.sqrt(n * second - first * first) / (255 * n))
    return tuple(means), tuple(stds)


def known_stats(name: str) -> Stats | None:
    """The published (mean, std) of a data set, as the robustness papers round them; None for any but CIFAR's two."""
    return _KNOWN_STATS.get(name.lower())


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
