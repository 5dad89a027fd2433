"""A folder of images that memory does not hold: files are listed, and read when their batch comes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
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
)
from sam_bench.data.images import check_image_size, name_from_file
from sam_bench.data.memory import free_memory
from sam_bench.data.splits import Dataset, Split
from sam_bench.errors import InputError, SamBenchError
from sam_bench.records import sha256_file, write_atomic

SIDECAR = ".sam-bench-fingerprints.json"
"""Lies beside train/ and test/: fingerprints of what has been hashed before."""

_KEPT = 50  # fingerprints in a sidecar
_HASHED_AT_ONCE = 8  # files; hashing releases Python's lock


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

    def load(self) -> Split:
        """The same examples in memory, on the split's device: pixel for pixel what `load_folder` gives."""
        images = torch.empty((len(self), self.channels, self.image_size, self.image_size), dtype=torch.uint8)
        for index in range(len(self)):
            images[index] = self.middle(index)
        return Split(images, self.labels).to(self.device)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the files and what is made of them, as 64 hexadecimal digits.

        The digest is of `files N size S channels C resize R\\n`, then for each example, in the split's
        order, `label bytes sha256 path\\n` with the path below the part's folder, pieces joined by `/`.

        Every file is read for it. So the result is kept in a sidecar beside the part's folder, under a
        digest of the same lines with the files' times in place of their contents: a file that was
        changed without a change of size and time goes unnoticed until the sidecar is deleted.
        """
        head = f"files {len(self)} size {self.image_size} channels {self.channels} resize {self._resized}\n"
        quick = hashlib.sha256(head.encode())
        for line in self._lines(lambda path: str(path.stat().st_mtime_ns)):
            quick.update(line)
        key, sidecar = quick.hexdigest(), self.root.parent / SIDECAR
        known = _read_sidecar(sidecar)
        if key not in known:
            digest = hashlib.sha256(head.encode())
            for line in self._lines(sha256_file):
                digest.update(line)
            known = dict([*_read_sidecar(sidecar).items(), (key, digest.hexdigest())][-_KEPT:])
            _write_sidecar(sidecar, known)
        return known[key]

    @property
    def _resized(self) -> int:
        return self.resize_to or self.image_size

    def _lines(self, content: Callable[[Path], str]) -> Iterator[bytes]:
        """A line a file: label, bytes, `content(path)`, path."""

        def line(index: int) -> bytes:
            path = self.path(index)
            try:
                text = f"{int(self.labels[index])} {path.stat().st_size} {content(path)} "
            except OSError as error:
                raise InputError(f"{path} cannot be read ({error.strerror or error}); mend or remove it") from error
            return text.encode() + bytes(self.files[index]) + b"\n"

        with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
            for start in range(0, len(self), 1024):  # map() takes all it is given at once
                yield from pool.map(line, range(start, min(start + 1024, len(self))))


def _read_sidecar(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}


def _write_sidecar(path: Path, content: dict[str, str]) -> None:
    try:
        write_atomic(path, json.dumps(content, indent=1))
    except SamBenchError:  # data are often read-only; then the next run hashes again
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
        """RobustBench's own name for the data set: a folder of one's own has none."""
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
    path: Path, *, image_size: int | None = None, resize_to: int | None = None, test_only: bool = False
) -> StreamedDataset:
    """List the images of train/<class>/ and test/<class>/; what `load_folder` reads, without reading it.

    Args:
        path: The folder.
        image_size: Height and width of what comes out; without it, all images must be square and of one size.
        resize_to: Shorter side before the middle is cut out, in evaluation; default `image_size`.
        test_only: Do without train/.

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
    channels = 1 if all(file.grey for file in everything) else 3
    splits = {part: _streamed(path / part, files[part], size, channels, resize_to) for part in parts}
    return StreamedDataset(
        name=name_from_file(path.resolve().name, str(path)),
        train=splits.get("train"),
        test=splits["test"],
        classes=tuple(classes),
    )


def _streamed(root: Path, files: list[ImageFile], size: int, channels: int, resize_to: int | None) -> StreamedSplit:
    names = [os.fsencode(file.path.relative_to(root).as_posix()) for file in files]
    labels = torch.tensor([file.label for file in files], dtype=torch.int64)
    return StreamedSplit(root, np.array(names, dtype=np.bytes_), labels, size, channels, resize_to)


def must_stream(dataset: StreamedDataset, device: torch.device | str = "cpu") -> bool:
    """Whether a folder is streamed: when its images would take more than half of the memory that is free.

    The memory is the computer's and, where training runs on a GPU, the GPU's. Where it cannot be
    found out, a folder is held in memory.
    """
    return any(
        free is not None and 2 * dataset.bytes_in_memory > free for free in (free_memory("cpu"), free_memory(device))
    )
