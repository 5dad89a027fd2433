"""Batches: an epoch over a split, in which each batch depends on (seed, epoch, batch) alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sam_bench.data.augment import augment, check_augmentation
from sam_bench.data.splits import Split
from sam_bench.device import send
from sam_bench.errors import InputError
from sam_bench.records import Augmentation
from sam_bench.seeds import generator, row_generator


def to_float(images: Tensor) -> Tensor:
    """Bytes to float32 in [0, 1], with exactly the values of torchvision's ToTensor (division by 255).

    The divisor is a tensor on the images' device, made there without a wait: by a number PyTorch's CUDA kernel does
    not divide, it multiplies with the reciprocal, which rounds some of the 256 values to a neighbour.

    Args:
        images: uint8, any shape.

    Raises:
        InputError: The images are not uint8, so that dividing them by 255 would be wrong.
    """
    if images.dtype != torch.uint8:
        raise InputError(f"to_float takes uint8 images, not {images.dtype}")
    return images.to(torch.float32).div_(torch.full((), 255.0, device=images.device))


@dataclass(frozen=True)
class Extra:
    """Further training images that take the places of some.

    Args:
        split: What they are drawn from, with replacement.
        fraction: Of every batch, above 0 and below 1.
    """

    split: Split
    fraction: float

    def to(self, device: torch.device | str) -> Extra:
        """The same on `device`."""
        return Extra(self.split.to(device), self.fraction)

    def of(self, places: Tensor) -> Tensor:
        """Which places of a batch are theirs, bool [places]: spread evenly, so that every shard has its share."""
        return ((places + 1) * self.fraction).floor() > (places * self.fraction).floor()


class Batches:
    """Iterates over a split in batches of float images and labels, on the split's device.

    Batch b of epoch e is a pure function of (seed, e, b): a run resumed in the middle of an epoch
    sees what the uninterrupted one would have seen. Random numbers are drawn on the CPU, so that
    they do not depend on the device. Only the batch at hand is converted to float.

    When shuffling without `drop_last`, a remainder of one example joins the batch before it, because
    BatchNorm cannot normalise over a single example; every example still comes once an epoch.

    Of several devices each gets a shard: consecutive examples of every batch, as many as the others
    to within one, and the same as they would be in the undivided batch.

    Args:
        split: What to iterate over.
        batch_size: Examples a batch; the last may be smaller (or, see above, larger by one).
        seed: Decides order and augmentation.
        augmentation: What is done to each image; None: nothing.
        shuffle: A new order every epoch; otherwise the split's own order every time.
        drop_last: Leave out a last batch that is not full.
        shard: Which shard is wanted, from 0, and of how many.
        extra: Images that replace a fraction of every batch. Which ones is a function of (seed, epoch, batch), too.
            An epoch has as many batches as without, so it shows only the other fraction of the split.

    Raises:
        InputError: No batch at all would come out, the augmentation does not fit the images, or no extra image would
            be in a batch.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None,
        shuffle: bool = True,
        drop_last: bool = False,
        shard: tuple[int, int] = (0, 1),
        extra: Extra | None = None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        if len(split) == 0:
            raise InputError("there are no examples to make batches of")
        if drop_last and len(split) < batch_size:
            raise InputError(
                f"batch_size {batch_size} with drop_last leaves nothing of {len(split)} examples; use a smaller one"
            )
        smallest = 2 * shard[1] if shuffle else shard[1]
        if shard[1] > 1 and min(batch_size, len(split)) < smallest:
            raise InputError(
                f"batch_size {batch_size} cannot be shared by {shard[1]} devices: each needs at least "
                f"{smallest // shard[1]} of its examples"
            )
        if extra is not None and not bool(extra.of(torch.arange(min(batch_size, len(split)))).any()):
            raise InputError(
                f"is no whole image of a batch of {min(batch_size, len(split))}, so that none would be learned from",
                field="extra_fraction",
                value=extra.fraction,
                hint="give a larger one",
            )
        if augmentation is not None:
            check_augmentation(augmentation, min(split.images.shape[2:]))
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.augmentation, self.shuffle, self.drop_last = augmentation, shuffle, drop_last
        self.shard, self.extra = shard, extra
        full, rest = divmod(len(split), batch_size)
        joins = 0 < rest < smallest and full > 0 and (shuffle or shard[1] > 1)
        self._count = full if drop_last or joins or rest == 0 else full + 1

    def __len__(self) -> int:
        """Batches an epoch."""
        return self._count

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch.

        Args:
            epoch: Which one, from 0.
            start: The first batch wanted; those before it are skipped without being made.

        Yields:
            (x, y): float32 [B, C, H, W] in [0, 1] and int64 [B], on the split's device.

        Raises:
            InputError: There is no such batch to start at.
        """
        if not 0 <= start <= len(self):
            raise InputError(f"cannot start at batch {start}: an epoch has {len(self)} batches")
        order = self._order(epoch) if self.shuffle else None
        for batch in range(start, len(self)):
            first, count, total = self.share_of(batch)
            begin = batch * self.batch_size + first
            chosen = slice(begin, begin + count)
            where = chosen if order is None else order[chosen]
            images, labels = self.split.images[where], self.split.labels[where]
            if self.extra is not None:
                images, labels = self._mixed(images, labels, epoch, batch)
            if self.augmentation is not None:
                draws = row_generator(self.seed, "augment", epoch, batch, first=first, total=total)
                images = augment(images, self.augmentation, draws)
            yield to_float(images), labels

    def _mixed(self, images: Tensor, labels: Tensor, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        assert self.extra is not None
        first, count, total = self.share_of(batch)
        split, draws = self.extra.split, generator(self.seed, "extra", epoch, batch)
        drawn = torch.randint(len(split), (total,), generator=draws)[first : first + count]
        theirs = self.extra.of(torch.arange(first, first + count))
        drawn, theirs = (send(each, images.device) for each in (drawn, theirs))
        mixed = torch.where(theirs[:, None, None, None], split.images[drawn], images)
        return mixed, torch.where(theirs, split.labels[drawn], labels)

    def share_of(self, batch: int) -> tuple[int, int, int]:
        """This shard's part of a batch: the index of its first example, how many it has, and the whole batch's size."""
        last_of_all = batch == len(self) - 1 and not self.drop_last
        total = len(self.split) - batch * self.batch_size if last_of_all else self.batch_size
        shard, shards = self.shard
        first = shard * total // shards
        return first, (shard + 1) * total // shards - first, total

    def _order(self, epoch: int) -> Tensor:
        draws = generator(self.seed, "order", epoch)
        return send(torch.randperm(len(self.split), generator=draws), self.split.device)
