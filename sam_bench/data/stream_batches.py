"""StreamedBatches: what `Batches` gives, from files that worker processes read ahead."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sam_bench.data.augment import augment, check_augmentation
from sam_bench.data.batches import Batches, to_float
from sam_bench.data.folder import to_bytes
from sam_bench.data.resized_crop import ResizedCrop
from sam_bench.data.splits import Split
from sam_bench.data.streaming import StreamedSplit
from sam_bench.errors import InputError
from sam_bench.records import Augmentation
from sam_bench.seeds import row_generator

_AHEAD = 2  # batches that each worker has ready


class _Request(NamedTuple):
    """One batch for a worker to read: its examples, and where in the run it is."""

    chosen: list[int]
    epoch: int
    batch: int
    first: int
    total: int


class _Reader(Dataset[Any]):
    """Makes whole batches of bytes, in a worker or in this process."""

    def __init__(self, split: StreamedSplit, seed: int, augmentation: Augmentation | ResizedCrop | None) -> None:
        self.split, self.seed, self.augmentation = split, seed, augmentation

    def __getitem__(self, request: _Request) -> tuple[Tensor, Tensor] | str:
        """The batch, or the error of a file as text: an exception would arrive wrapped in a traceback."""
        try:
            return self._images(request), self.split.labels[request.chosen]
        except InputError as error:
            return str(error)

    def _images(self, request: _Request) -> Tensor:
        split, how = self.split, self.augmentation
        images = torch.empty(
            (len(request.chosen), split.channels, split.image_size, split.image_size), dtype=torch.uint8
        )
        draws = row_generator(
            self.seed, "augment", request.epoch, request.batch, first=request.first, total=request.total
        )
        if isinstance(how, ResizedCrop):
            for row, (index, own) in enumerate(zip(request.chosen, how.draw(len(images), draws), strict=True)):
                images[row] = to_bytes(how.apply(split.open(index), split.image_size, own))
            return images
        for row, index in enumerate(request.chosen):
            images[row] = split.middle(index)
        return images if how is None else augment(images, how, draws)


class _Requests(Sampler[_Request]):
    """What a loader asks its workers for, one epoch's batches; set before it asks."""

    def __init__(self) -> None:
        self.pending: Iterator[_Request] = iter(())

    def __iter__(self) -> Iterator[_Request]:
        return self.pending


class StreamedBatches:
    """Iterates over a streamed split as `Batches` does over one in memory.

    Batch b of epoch e is a pure function of (seed, e, b) for any number of workers: a worker makes
    whole batches, and each batch has its own random stream. Without augmentation, or with padded crops
    and flips, batches are bitwise those of `Batches` over the same folder in memory. Workers live as
    long as this object and read ahead. They hand over bytes, which become float on the device.

    Args:
        split: What to iterate over.
        batch_size: Examples a batch; the last may be smaller, or larger by one, as in `Batches`.
        seed: Decides order and augmentation.
        augmentation: `ResizedCrop` (ImageNet's); `Augmentation`: padded crop and flip of the image as it
            is evaluated; None: nothing.
        shuffle: A new order every epoch; otherwise the split's own order every time.
        drop_last: Leave out a last batch that is not full.
        shard: Which shard is wanted, from 0, and of how many.
        workers: Processes that read; 0: this one; default: the CPUs but one, at most 8.

    Raises:
        InputError: No batch at all would come out, or the augmentation does not fit the images.
    """

    def __init__(
        self,
        split: StreamedSplit,
        *,
        batch_size: int,
        seed: int,
        augmentation: Augmentation | ResizedCrop | None,
        shuffle: bool = True,
        drop_last: bool = False,
        shard: tuple[int, int] = (0, 1),
        workers: int | None = None,
    ) -> None:
        if isinstance(augmentation, Augmentation):
            check_augmentation(augmentation, split.image_size)
        if workers is not None and workers < 0:
            raise InputError(f"the number of workers must be at least 0, not {workers}")
        # Batches of example numbers (and empty images): order, remainder and shards are those in memory.
        numbers = Split(torch.empty((len(split), 0, 0, 0), dtype=torch.uint8), torch.arange(len(split)))
        self._plan = Batches(
            numbers,
            batch_size=batch_size,
            seed=seed,
            augmentation=None,
            shuffle=shuffle,
            drop_last=drop_last,
            shard=shard,
        )
        self.split, self.seed, self.augmentation = split, seed, augmentation
        self.workers = default_workers() if workers is None else workers
        self._idle: list[tuple[DataLoader[Any], _Requests]] = []

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._plan)

    def share_of(self, batch: int) -> tuple[int, int, int]:
        """As `Batches.share_of`."""
        return self._plan.share_of(batch)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch.

        Args:
            epoch: Which one, from 0.
            start: The first batch wanted; those before it are skipped without being read.

        Yields:
            (x, y): float32 [B, C, H, W] in [0, 1] and int64 [B], on the split's device.

        Raises:
            InputError: There is no such batch to start at, or a file cannot be read any more.
        """
        # A loader serves one epoch at a time; two epochs side by side get two loaders.
        loader, requests = self._idle.pop() if self._idle else self._loader()
        requests.pending = self._requests(epoch, start)
        try:
            for batch in loader:
                if isinstance(batch, str):
                    raise InputError(batch)
                x, y = (tensor.to(self.split.device, non_blocking=True) for tensor in batch)
                yield to_float(x), y
        finally:
            self._idle.append((loader, requests))

    def _requests(self, epoch: int, start: int) -> Iterator[_Request]:
        for batch, (_, numbers) in enumerate(self._plan.epoch(epoch, start=start), start):
            first, _, total = self.share_of(batch)
            yield _Request(numbers.tolist(), epoch, batch, first, total)

    def _loader(self) -> tuple[DataLoader[Any], _Requests]:
        requests = _Requests()
        loader: DataLoader[Any] = DataLoader(
            _Reader(self.split, self.seed, self.augmentation),
            batch_size=None,
            sampler=requests,
            num_workers=self.workers,
            pin_memory=self.split.device.type == "cuda",
            persistent_workers=self.workers > 0,
            prefetch_factor=_AHEAD if self.workers else None,
            worker_init_fn=_leave_interrupts_to_parent,
            generator=torch.Generator(),  # else every epoch would draw from the global one
        )
        return loader, requests


def default_workers() -> int:
    """One a CPU that this process may use, but for one that trains; at most 8."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(allowed - 1, 0))


def _leave_interrupts_to_parent(worker: int) -> None:
    """Ctrl-C goes to workers, too. PyTorch handles SIGTERM in them, in place of the run's own handler."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_batches(split: Split | StreamedSplit, **options: Any) -> Batches | StreamedBatches:
    """`Batches` or `StreamedBatches`, as the split demands.

    Args:
        split: What to iterate over.
        options: What both take.

    Raises:
        InputError: `ResizedCrop` is asked for images that memory holds: they are cut to size already.
    """
    if isinstance(split, StreamedSplit):
        options.pop("extra", None)  # a training refuses it before
        return StreamedBatches(split, **options)
    options.pop("workers", None)
    if isinstance(options.get("augmentation"), ResizedCrop):
        raise InputError("augmentation: random resized crops need a FOLDER of images that is streamed")
    return Batches(split, **options)
