"""A folder of images that memory does not hold: files are listed, and read when their batch comes."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
import torch
from PIL import Image
from torch import Tensor

from sam_bench.data.folder import (
    ImageFile,
    common_classes,
    middle_square,
    one_size,
    open_image,
    require_parts,
    scan_images,
    to_bytes,
    with_progress,
)
from sam_bench.data.images import check_image_size, name_from_file
from sam_bench.data.memory import free_memory
from sam_bench.data.splits import BLOCK, Dataset, Split, fingerprint_of
from sam_bench.errors import InputError, SamBenchError
from sam_bench.records import write_atomic

SIDECAR = ".sam-bench-fingerprints.json"
"""Lies beside train/ and test/: fingerprints of what has been decoded before."""

_KEPT = 50  # fingerprints in a sidecar
_AT_ONCE = 8  # files that are read by as many threads; Pillow releases Python's lock


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """One part of a data set, as the files it is made of.

    Args:
        root: The part's folder.
        files: Paths below it, as bytes [N]. One array, not N objects: workers share its memory.
        labels: int64 [N], class numbers from 0, on the CPU.
        image_size: Height and width of the images that come out.
        channels: 1 or 3.
        resize_to: Where an image is not augmented, its shorter side before the middle is cut out;
            default `image_size`. ImageNet's custom is 256 for 224.
        device: Where batches go.
    """

    root: Path
    files: npt.NDArray[np.bytes_]
    labels: Tensor
    image_size: int
    channels: int
    resize_to: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.files)

    @property
    def bytes_in_memory(self) -> int:
        """What the images would take as bytes in memory."""
        return len(self) * self.channels * self.image_size**2

    def to(self, device: torch.device | str) -> StreamedSplit:
        """The same files, their batches on `device`."""
        return replace(self, device=torch.device(device))

    def select(self, indices: Tensor) -> StreamedSplit:
        """The examples at `indices`, int64 [n], in that order."""
        return replace(self, files=self.files[indices.numpy()], labels=self.labels[indices])

    def head(self, n: int) -> StreamedSplit:
        """The first `n` examples, or all where there are fewer.

        Raises:
            InputError: `n` is below 1.
        """
        if n < 1:
            raise InputError(f"the number of examples must be at least 1, not {n}")
        return self if n >= len(self) else self.select(torch.arange(n))

    def sample(self, n: int) -> StreamedSplit:
        """`n` examples evenly spread over all classes, or all where there are fewer: for statistics."""
        return self if n >= len(self) else self.select(torch.arange(n) * len(self) // n)

    def path(self, index: int) -> Path:
        """The file of one example."""
        return self.root / os.fsdecode(self.files[index])

    def open(self, index: int) -> Image.Image:
        """One example's image, decoded, in the size it has on disk.

        Raises:
            InputError: The file cannot be read any more; names it.
        """
        return open_image(self.path(index), grey=self.channels == 1)

    def middle(self, index: int) -> Tensor:
        """One example as it is evaluated: resized, the middle cut out; uint8 [C, image_size, image_size]."""
        return to_bytes(middle_square(self.open(index), self.image_size, resize_to=self.resize_to))

    @property
    def shape(self) -> tuple[int, ...]:
        """N, C, H, W of what `load` gives."""
        return len(self), self.channels, self.image_size, self.image_size

    def blocks(self) -> Iterator[Tensor]:
        """All images in order as they are evaluated, a few hundred at a time; uint8, on the CPU.

        Raises:
            InputError: A file cannot be read any more; names it.
        """
        for first in with_progress(range(0, len(self), BLOCK), f"Reading {self.root.name} images"):
            yield self._decoded(range(first, min(first + BLOCK, len(self))))

    def _decoded(self, chosen: range) -> Tensor:
        # Each thread switches warnings off for itself, and what several have switched back may be off for good.
        with warnings.catch_warnings(), ThreadPoolExecutor(_AT_ONCE) as pool:
            return torch.stack(list(pool.map(self.middle, chosen)))

    def load(self) -> Split:
        """The same examples in memory, on the split's device.

        Raises:
            InputError: They are too large, or a file cannot be read any more; names it.
        """
        try:
            images = torch.empty(self.shape, dtype=torch.uint8)
        except RuntimeError as error:
            size, gigabytes = self.image_size, self.bytes_in_memory / 1e9
            raise InputError(
                f"{len(self)} images of {size}x{size} need {gigabytes:.0f} GB of memory",
                hint="give a smaller `image_size`",
            ) from error
        for number, block in enumerate(self.blocks()):
            images[number * BLOCK : (number + 1) * BLOCK] = block
        return Split(images, self.labels).to(self.device)

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of what `load` gives, of which only a few hundred images are in memory at a time.

        Every image is decoded for it. So the result is kept in a sidecar beside the part's folder, under a
        digest of what the images are made of, with the files' sizes and times in place of their contents: a
        file that was changed without a change of these goes unnoticed until the sidecar is deleted.
        """
        key, sidecar = self._key(), self.root.parent / SIDECAR
        known = _read_sidecar(sidecar)
        if key not in known:
            known = dict([*_read_sidecar(sidecar).items(), (key, fingerprint_of(self))][-_KEPT:])
            _write_sidecar(sidecar, known)
        return known[key]

    def _key(self) -> str:
        """What decides the images without being them; another version of Pillow may decode another image."""
        shape, resize_to = "x".join(map(str, self.shape)), self.resize_to or self.image_size
        start = f"images of {self.root.name} {shape} resize {resize_to} Pillow {PIL.__version__}\n"
        digest = hashlib.sha256(start.encode())
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for first in range(0, len(self), 1024):  # map() takes all it is given at once
                for line in pool.map(self._line, range(first, min(first + 1024, len(self)))):
                    digest.update(line)
        return f"images-{digest.hexdigest()}"

    def _line(self, index: int) -> bytes:
        path = self.path(index)
        try:
            found = path.stat()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error}); mend or remove it") from error
        start = f"{int(self.labels[index])} {found.st_size} {found.st_mtime_ns} "
        return start.encode() + bytes(self.files[index]) + b"\n"


def _read_sidecar(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}


def _write_sidecar(path: Path, content: dict[str, str]) -> None:
    try:
        write_atomic(path, json.dumps(content, indent=1))
    except SamBenchError:  # data are often read-only; then the next run decodes all again
        return


@dataclass(frozen=True, eq=False)
class StreamedDataset:
    """A data set on disk; what `Dataset` is in memory.

    Args:
        name: What cards and records call it.
        train: Training examples; None when only the test set was asked for.
        test: Test examples.
        classes: Name of each class, by label.
    """

    name: str
    train: StreamedSplit | None
    test: StreamedSplit
    classes: tuple[str, ...]

    @property
    def robustbench(self) -> None:
        """RobustBench's own name for the data set: a user's folder has none."""
        return

    @property
    def mirrors(self) -> None:
        """Whether a mirrored image shows the same class: not known of a user's folder."""
        return

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Channels of an image: 1 for grey, 3 for RGB."""
        return self.test.channels

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels."""
        return self.test.image_size

    @property
    def bytes_in_memory(self) -> int:
        """What all images would take as bytes in memory."""
        return self.test.bytes_in_memory + (self.train.bytes_in_memory if self.train is not None else 0)

    def load(self) -> Dataset:
        """The same data set in memory."""
        train = self.train.load() if self.train is not None else None
        return Dataset(self.name, train, self.test.load(), self.classes)


def stream_folder(
    path: str | Path,
    *,
    image_size: int | None = None,
    resize_to: int | None = None,
    test_only: bool = False,
    name: str | None = None,
) -> StreamedDataset:
    """List the images of train/<class>/ and test/<class>/ (and folders below them) without decoding them.

    Classes are the folders' names in sorted order. Images are grey when all of them are, otherwise
    RGB; transparency and EXIF rotation are ignored, as torchvision does. Hidden files and files that
    are no images by their ending are passed over.

    Args:
        path: The folder.
        image_size: Resize each image's shorter side to this and cut the middle square out. Without
            it, all images must be square and of one size.
        resize_to: Shorter side before the middle is cut out, in evaluation; default `image_size`.
        test_only: Do without train/.
        name: What it is called; default the folder's name.

    Raises:
        InputError: A part, a class or an image is missing, unreadable or of another size; names it.
    """
    path = Path(path)
    check_image_size(image_size)
    if resize_to is not None and (image_size is None or resize_to < image_size):
        raise InputError(f"resize_to {resize_to} must be at least the image size, which is {image_size or 'not given'}")
    parts = require_parts(path, test_only=test_only)
    classes = common_classes(path)
    files = {part: scan_images(path / part, classes) for part in parts}
    everything = [file for part in parts for file in files[part]]
    size = image_size or one_size(everything)
    grey = all(file.grey for file in everything)
    if grey and test_only and (path / "train").is_dir():  # with the training part, one in colour decides for all
        grey = all(file.grey for file in scan_images(path / "train", classes))
    channels = 1 if grey else 3
    splits = {part: _streamed(path / part, files[part], size, channels, resize_to) for part in parts}
    return StreamedDataset(
        name=name or name_from_file(path.resolve().name, str(path)),
        train=splits.get("train"),
        test=splits["test"],
        classes=tuple(classes),
    )


def _streamed(root: Path, files: list[ImageFile], size: int, channels: int, resize_to: int | None) -> StreamedSplit:
    names = [os.fsencode(file.path.relative_to(root).as_posix()) for file in files]
    labels = torch.tensor([file.label for file in files], dtype=torch.int64)
    return StreamedSplit(root, np.array(names, dtype=np.bytes_), labels, size, channels, resize_to)


def must_stream(dataset: StreamedDataset, device: torch.device | str = "cpu", *, copies: int = 1) -> bool:
    """Whether a folder is streamed: when its images would take more than half of the memory that is free.

    The memory is the computer's and, where training runs on a GPU, the GPU's. Where it cannot be
    found out, a folder is held in memory.

    Args:
        dataset: The folder.
        device: Where training runs.
        copies: Processes that would each hold it in the computer's memory; every GPU is one process's own.
    """
    here = torch.device(device).type == "cpu"
    needed = [(copies, free_memory("cpu"))] + ([] if here else [(1, free_memory(device))])
    return any(free is not None and 2 * times * dataset.bytes_in_memory > free for times, free in needed)
