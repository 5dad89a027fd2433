"""A user's own images in a FILE.npz: read without pickles, every array checked before it is used."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor

from sam_bench.data.images import SMALLEST_IMAGE, check_name, name_from_file
from sam_bench.data.splits import Dataset, Split
from sam_bench.errors import InputError, shortened
from sam_bench.records import RobustBenchDataset

# Classes, channels and size that sharing a RobustBench data set's inputs and classes implies; None: any.
_ROBUSTBENCH_SHAPES: dict[str, tuple[int, int, int | None]] = {
    "cifar10": (10, 3, 32),
    "cifar100": (100, 3, 32),
    "imagenet": (1000, 3, None),
}

_MOST_CLASSES = 1_000_000


def load_npz(path: str | Path, *, test_only: bool = False, name: str | None = None) -> Dataset:
    """Load x_train, y_train, x_test, y_test, and where given classes, name and robustbench.

    Args:
        path: The file. Images are uint8 [N, H, W, C] or (grey) [N, H, W], square, or floats in [0, 1],
            which are rounded to bytes; labels are integers [N] from 0.
        test_only: Do not read x_train, and do without the two training arrays.
        name: What it is called; default the array `name`, or the file's name.

    Raises:
        InputError: The file or an array is not as it should be; names both and says what is right.
    """
    with _opened(Path(path)) as archive:
        return _Reader(Path(path), archive).dataset(test_only, name)


def npz_name(path: Path) -> str:
    """What `load_npz` calls the data set of a file; its images are not read.

    Raises:
        InputError: The file cannot be read, or no name can be made.
    """
    with _opened(path) as archive:
        return _Reader(path, archive).name()


def load_extra(path: str | Path, *, shape: tuple[int, ...], num_classes: int) -> Split:
    """Further training images, for example generated ones: `image` and `label`, or x_train and y_train.

    The first are the names in the published files of Wang et al. 2023 (arXiv 2302.04638).

    Args:
        path: A FILE.npz.
        shape: Channels, height and width of the images they join.
        num_classes: Of these images.

    Raises:
        InputError: The file, an array, a size or a label is not as it should be; says what is right.
    """
    with _opened(Path(path)) as archive:
        reader = _Reader(Path(path), archive)
        names = [pair for pair in (("image", "label"), ("x_train", "y_train")) if set(pair) <= set(archive)]
        if not names:
            there = shortened(", ".join(archive)) or "nothing"
            raise InputError(f"{path} must hold image and label, or x_train and y_train (it holds {there})")
        images, labels = names[0]
        found = reader.split_of(images, labels, reader.labels_of(labels))
    if found.shape[1:] != shape:
        wanted = f"{shape[1]}x{shape[2]}x{shape[0]}"
        raise InputError(f"{path}: {images} has images of {_shape(found)}; the training images have {wanted}")
    if int(found.labels.max()) >= num_classes:
        raise InputError(
            f"{path}: {labels} has the label {int(found.labels.max())}, but there are {num_classes} classes"
        )
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is not a whole .npz file (a zip archive, written by numpy.savez): it is of another kind or cut off"
        )
    try:
        archive = np.load(path, allow_pickle=False)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as an .npz file: {shortened(str(error))}") from error
    with archive:
        yield archive


class _Reader:
    """Reads and checks the arrays of one open archive; its errors name the file and the array."""

    def __init__(self, path: Path, archive: Mapping[str, Any]) -> None:
        self.path, self.archive = path, archive

    def dataset(self, test_only: bool, name: str | None) -> Dataset:
        needed = ["x_test", "y_test"] if test_only else ["x_train", "y_train", "x_test", "y_test"]
        missing = [array for array in needed if array not in self.archive]
        if missing:
            there = shortened(", ".join(self.archive)) or "nothing"
            raise InputError(
                f"{self.path} lacks {' and '.join(missing)}; it must hold {', '.join(needed)} (it holds {there})"
            )
        name, classes, robustbench = name or self.name(), self.classes(), self.robustbench()
        test_labels = self.labels("test")
        # A test set need not show every class; the training labels tell how many there are.
        train_labels = self.labels("train") if "y_train" in self.archive else None
        classes = classes or self.numbered_classes(train_labels, test_labels)
        for part, labels in (("train", train_labels), ("test", test_labels)):
            if labels is not None and int(labels.max()) >= len(classes):
                at = int(np.argmax(labels))
                raise self.wrong(
                    f"y_{part}",
                    f"has the label {int(labels[at])} (at {at}), but there are {len(classes)} classes: "
                    f"labels must be from 0 to {len(classes) - 1}",
                )
        test = self.split("test", test_labels)
        train = None if test_only or train_labels is None else self.split("train", train_labels)
        if train is not None and train.images.shape[1:] != test.images.shape[1:]:
            raise self.wrong(
                "x_test", f"has images of {_shape(test)}, but x_train of {_shape(train)}; they must be the same"
            )
        self.check_robustbench(robustbench, len(classes), test)
        return Dataset(name=name, train=train, test=test, classes=classes, robustbench=robustbench)

    def wrong(self, array: str, what: str) -> InputError:
        return InputError(f"{self.path}: {array} {what}")

    def read(self, array: str) -> np.ndarray[Any, Any]:
        try:
            value = self.archive[array]
        except ValueError as error:
            if "allow_pickle" in str(error):
                raise self.wrong(
                    array,
                    "is an object array (a pickle, which is never loaded); "
                    "save numbers or strings, and images all of one size",
                ) from error
            raise self.wrong(array, f"cannot be read ({shortened(str(error))}); the file is damaged") from error
        except MemoryError as error:
            raise self.wrong(array, "does not fit into memory") from error
        except (OSError, EOFError, KeyError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
            raise self.wrong(
                array, f"cannot be read ({shortened(str(error))}); the file is cut off or damaged"
            ) from error
        if not isinstance(value, np.ndarray):  # a member of the zip that is not an array comes back as bytes
            raise self.wrong(array, "is not an array; write the file with numpy.savez")
        return value

    def labels(self, part: str) -> Tensor:
        return self.labels_of(f"y_{part}")

    def labels_of(self, array: str) -> Tensor:
        labels = self.read(array)
        hint = f" ({array}.ravel() makes it so)" if labels.ndim > 1 and labels.size == len(labels) else ""
        if labels.ndim == 2 and not hint:
            hint = f" (where a row has a 1 for its class, {array}.argmax(1) makes it so)"
        if labels.dtype.kind not in "iu":
            raise self.wrong(array, f"is {labels.dtype}; labels must be integers from 0, [N]{hint}")
        if labels.ndim != 1:
            raise self.wrong(array, f"has shape {labels.shape}; labels must be one-dimensional, [N]{hint}")
        if len(labels) == 0:
            raise self.wrong(array, "is empty; there must be at least one example")
        low, high = int(labels.min()), int(labels.max())
        if low < 0:
            index = int(np.argmin(labels))
            raise self.wrong(array, f"has the label {low} (at {index}); labels must be integers from 0")
        if high > _MOST_CLASSES:
            index = int(np.argmax(labels))
            raise self.wrong(array, f"has the label {high} (at {index}); labels must be class numbers from 0")
        return torch.from_numpy(labels.astype(np.int64))

    def split(self, part: str, labels: Tensor) -> Split:
        return self.split_of(f"x_{part}", f"y_{part}", labels)

    def split_of(self, array: str, named: str, labels: Tensor) -> Split:
        images = self.read(array)
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise self.wrong(array, f"is {images.dtype}; images must be uint8 (0 to 255), or floats in [0, 1]")
        if images.ndim not in (3, 4):
            raise self.wrong(
                array, f"has shape {images.shape}; images must be [N, H, W, C], or [N, H, W] where they are grey"
            )
        if len(images) != len(labels):
            raise self.wrong(array, f"has {len(images)} images, but {named} has {len(labels)} labels")
        if images.ndim == 3:
            images = images[..., None]
        height, width, channels = images.shape[1:]
        if height != width or channels == 0:
            hint = ""
            if height in (1, 3) and width == channels:
                hint = f"; channels come last: {array}.transpose(0, 2, 3, 1)"
            raise self.wrong(
                array, f"has images of {height}x{width} pixels and {channels} channels; images must be square{hint}"
            )
        if height < SMALLEST_IMAGE:
            least = f"{SMALLEST_IMAGE}x{SMALLEST_IMAGE}"
            raise self.wrong(array, f"has images of {height}x{width} pixels; they must be at least {least}")
        if images.dtype != np.uint8:
            images = self.to_bytes(array, images)
        return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)

    def to_bytes(self, array: str, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        low, high = float(images.min()), float(images.max())
        if math.isnan(low):
            raise self.wrong(array, "has NaN in it; floats must all be in [0, 1]")
        if not (low >= 0 and high <= 1):
            raise self.wrong(
                array, f"holds floats from {low:g} to {high:g}; floats must all be in [0, 1], or save uint8 (0 to 255)"
            )
        out = np.empty(images.shape, dtype=np.uint8)
        for first in range(0, len(images), 4096):
            block = images[first : first + 4096].astype(np.float64)
            out[first : first + 4096] = np.rint(block * 255)
        return out

    def numbered_classes(self, train: Tensor | None, test: Tensor) -> tuple[str, ...]:
        """Classes '0' to the largest label; a training set must show each, so that labels from 1 are noticed."""
        known, array = (test, "y_test") if train is None else (train, "y_train")
        count = int(known.max()) + 1
        present = torch.unique(known)
        if train is not None and len(present) < count:
            absent = int((present != torch.arange(len(present))).nonzero()[0])
            raise self.wrong(
                array,
                f"goes up to the label {count - 1}, but never has the label {absent}; number the labels from 0 "
                "without a gap, or add an array 'classes' with a name for each",
            )
        if count < 2:
            raise self.wrong(array, "has a single class; there must be at least two")
        return tuple(str(number) for number in range(count))

    def classes(self) -> tuple[str, ...] | None:
        if "classes" not in self.archive:
            return None
        classes = self.read("classes")
        if classes.dtype.kind != "U" or classes.ndim != 1:
            raise self.wrong(
                "classes", f"is {classes.dtype} {classes.shape}; it must be a list of strings, one a class"
            )
        names = tuple(str(entry) for entry in classes)
        if len(names) < 2 or len(set(names)) < len(names):
            raise self.wrong("classes", "must name at least two classes, each differently")
        return names

    def text(self, array: str) -> str | None:
        if array not in self.archive:
            return None
        value = self.read(array)
        if value.dtype.kind != "U" or value.ndim != 0:
            raise self.wrong(array, f"is {value.dtype} {value.shape}; it must be a single string")
        return str(value)

    def name(self) -> str:
        given = self.text("name")
        if given is None:
            return name_from_file(self.path.stem, str(self.path))
        return check_name(given, f"{self.path}: name")

    def robustbench(self) -> RobustBenchDataset | None:
        given = self.text("robustbench")
        if given is not None and given not in get_args(RobustBenchDataset):
            known = ", ".join(get_args(RobustBenchDataset))
            raise self.wrong("robustbench", f"is {shortened(given)!r}; it must be one of {known}, or be left out")
        return cast("RobustBenchDataset | None", given)

    def check_robustbench(self, shares: str | None, num_classes: int, test: Split) -> None:
        if shares is None:
            return
        want_classes, want_channels, want_size = _ROBUSTBENCH_SHAPES[shares]
        channels, size = test.images.shape[1:3]
        if (num_classes, channels) != (want_classes, want_channels) or want_size not in (None, size):
            pixels = f"{want_size}x{want_size}x{want_channels}" if want_size else f"{want_channels}-channel"
            raise self.wrong(
                "robustbench",
                f"is {shares!r}, which has {want_classes} classes and {pixels} images; "
                f"this file has {num_classes} classes and {_shape(test)} images",
            )


def _shape(split: Split) -> str:
    channels, height, width = split.images.shape[1:]
    return f"{height}x{width}x{channels}"
