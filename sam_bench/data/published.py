"""Tiny ImageNet, ImageNet's test images, CIFAR-10-C and CIFAR-100-C, unpacked by hand from their published files."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sam_bench.data.folder import middle_square, open_image, to_bytes
from sam_bench.data.splits import Dataset, Split
from sam_bench.errors import InputError, shortened, unknown_name

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    *("speckle_noise", "gaussian_blur", "spatter", "saturate"),
)
"""The files of CIFAR-10-C: the fifteen of the paper, and four more."""

_CORRUPTED = re.compile(r"cifar(?P<classes>10|100)-c(-(?P<corruption>\w+))?(-(?P<severity>\d+))?")
_FOLDERS = {"10": "CIFAR-10-C", "100": "CIFAR-100-C"}
_SEVERITIES = 5


def is_corrupted(key: str) -> bool:
    """Whether a name is of a corrupted test set, right or not."""
    return _CORRUPTED.fullmatch(key) is not None


def corrupted_name(key: str) -> tuple[str, str, int] | None:
    """What `cifar10-c-fog-3` means: classes, corruption, severity; None if it is no such name at all.

    Raises:
        InputError: Corruption or severity is missing or unknown.
    """
    match = _CORRUPTED.fullmatch(key)
    if match is None:
        return None
    classes, corruption, severity = match["classes"], match["corruption"], match["severity"]
    if corruption is None or severity is None:
        example = f"cifar{classes}-c-fog-3"
        raise InputError(
            f"data set {key!r} needs a corruption and a severity, as in {example}; "
            f"corruptions: {', '.join(CORRUPTIONS)}"
        )
    if corruption not in CORRUPTIONS:
        raise unknown_name(f"corruption of cifar{classes}-c", corruption, CORRUPTIONS)
    if int(severity) not in range(1, _SEVERITIES + 1):
        raise InputError(f"data set {key!r}: the severity must be from 1 to {_SEVERITIES}")
    return classes, corruption, int(severity)


def load_corrupted(classes: str, corruption: str, severity: int, data_dir: Path) -> Dataset:
    """The test images of CIFAR-10 or CIFAR-100 after a corruption (Hendrycks, Dietterich 2019, arXiv 1903.12261).

    Args:
        classes: "10" or "100".
        corruption: One of `CORRUPTIONS`.
        severity: From 1 to 5.
        data_dir: Holds the folder CIFAR-10-C or CIFAR-100-C with labels.npy and a file a corruption, each with the
            five severities one after the other.

    Raises:
        InputError: A file is missing or not as published; names it.
    """
    folder = data_dir / _FOLDERS[classes]
    _require(folder, ["labels.npy", f"{corruption}.npy"], f"{folder.name}.tar")
    labels, images = (_array(folder / f"{name}.npy") for name in ("labels", corruption))
    per_severity, rest = divmod(len(labels), _SEVERITIES)
    if labels.ndim != 1 or rest or per_severity == 0 or images.shape != (len(labels), 32, 32, 3):
        raise InputError(
            f"{folder / corruption}.npy has shape {list(images.shape)} and labels.npy {list(labels.shape)}; right are "
            f"[5 N, 32, 32, 3] and [5 N]"
        )
    if images.dtype != np.uint8:
        raise InputError(f"{folder / corruption}.npy is {images.dtype}; right is uint8")
    rows = slice((severity - 1) * per_severity, severity * per_severity)
    test = Split(
        torch.from_numpy(np.ascontiguousarray(images[rows].transpose(0, 3, 1, 2))),
        torch.from_numpy(labels[rows].astype(np.int64)),
    )
    names = tuple(str(number) for number in range(int(classes)))
    name = f"cifar{classes}-c-{corruption}-{severity}"
    return Dataset(name=name, train=None, test=test, classes=names, mirrors=True)


def load_tiny_imagenet(data_dir: Path, test_only: bool) -> Dataset:
    """Tiny ImageNet as its zip unpacks; the validation images are the test set, as usual (Le, Yang 2015).

    The published test images have no labels.
    """
    root = data_dir / "tiny-imagenet-200"
    listed = root / "val" / "val_annotations.txt"
    _require(root, ["wnids.txt", "val/images", "val/val_annotations.txt", "train"], "tiny-imagenet-200.zip")
    classes = sorted(_lines(root / "wnids.txt"))
    numbers = {name: number for number, name in enumerate(classes)}
    test = []
    for line in _lines(listed):
        file, name = [*line.split("\t"), ""][:2]
        if name not in numbers:
            raise InputError(f"{listed} has the line {shortened(line)!r}: the second word must be a class of wnids.txt")
        test.append((root / "val" / "images" / file, numbers[name]))
    train = []
    for name in [] if test_only else classes:
        folder = root / "train" / name / "images"
        files = sorted(folder.glob("*.JPEG")) if folder.is_dir() else []
        if not files:
            raise InputError(f"{folder} has no images: {root} is not whole; unpack tiny-imagenet-200.zip again")
        train += [(file, numbers[name]) for file in files]
    return Dataset(
        name="tiny-imagenet",
        train=None if test_only else _split(train, 64),
        test=_split(test, 64),
        classes=tuple(classes),
        mirrors=True,
    )


def load_imagenet(data_dir: Path, test_only: bool) -> Dataset:
    """RobustBench's 5,000 test images of ImageNet, each resized to 256 and cut to 224 pixels as it does by default.

    They are read from val/<class>/*.JPEG in `data_dir`, or in `data_dir`/imagenet. There is no training part:
    ImageNet's own training images are a FOLDER.
    """
    lists = _robustbench_lists()
    files = _lines(lists / "imagenet_test_image_ids.txt")
    numbers: dict[str, int] = json.loads((lists / "imagenet_class_to_id_map.json").read_text(encoding="utf-8"))
    root = next((each for each in (data_dir, data_dir / "imagenet") if (each / "val").is_dir()), None)
    if root is None:
        raise InputError(
            f"{data_dir} has no folder val; ImageNet's validation images must be in {data_dir / 'val'}/<class>/*.JPEG, "
            "with a folder for each class such as n01440764"
        )
    _require(root / "val", files, "ILSVRC2012_img_val.tar, its files moved into a folder a class,")
    test = [(root / "val" / file, numbers[file.partition("/")[0]]) for file in files]
    return Dataset(
        name="imagenet",
        train=None,
        test=_split(test, 224, resize_to=256),
        classes=tuple(sorted(numbers, key=lambda name: numbers[name])),
        robustbench="imagenet",
        mirrors=True,
    )


def _robustbench_lists() -> Path:
    """RobustBench's lists, found without importing it."""
    spec = importlib.util.find_spec("robustbench")
    if spec is None or spec.origin is None:
        raise InputError("data set 'imagenet' needs RobustBench's list of test images: pip install robustbench")
    return Path(spec.origin).parent / "helper_files"


def _require(folder: Path, files: Iterable[str], archive: str) -> None:
    """Refuse a folder that is not there, or not whole, with what is missing."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; unpack {archive} there, or give another `data_dir`")
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3:,} more" if len(missing) > 3 else "")
        raise InputError(f"{folder} is not whole: it lacks {named}; unpack {archive} again")


def _array(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {shortened(str(error))}; it is cut off or no .npy file") from error
    return array


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _split(files: list[tuple[Path, int]], size: int, *, resize_to: int | None = None) -> Split:
    images = torch.empty((len(files), 3, size, size), dtype=torch.uint8)
    for place, (file, _) in enumerate(files):
        images[place] = _image(file, size, resize_to)
    return Split(images, torch.tensor([label for _, label in files], dtype=torch.int64))


def _image(file: Path, size: int, resize_to: int | None) -> Tensor:
    if not file.is_file():
        raise InputError(f"{file} is missing; unpack the archive again")
    return to_bytes(middle_square(open_image(file, grey=False), size, resize_to=resize_to))
