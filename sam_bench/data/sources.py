"""`load_dataset`: one table of named data sets, and own images from a file or a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from sam_bench.data.digits import load_digits
from sam_bench.data.images import check_image_size, check_name, name_from_file, resize
from sam_bench.data.npz import load_npz, npz_name
from sam_bench.data.published import (
    corrupted_name,
    is_corrupted,
    load_corrupted,
    load_imagenet,
    load_tiny_imagenet,
)
from sam_bench.data.splits import Dataset, Split
from sam_bench.data.streaming import StreamedDataset, stream_folder
from sam_bench.data.torchvision_sets import load_cifar10, load_cifar100, load_svhn
from sam_bench.errors import InputError, unknown_name
from sam_bench.records import RobustBenchDataset


@dataclass(frozen=True)
class Source:
    """A data set that is known by name.

    Args:
        load: Takes the folder for downloads and whether the test set alone is wanted.
        image_size: The size that goes by the plain name; another one is part of the name.
        summary: One line: what it is.
        fingerprints: Of the training and the test images at that size; None while they are not known here.
    """

    load: Callable[[Path, bool], Dataset]
    image_size: int
    summary: str
    fingerprints: tuple[str, str] | None = None


SOURCES: dict[str, Source] = {
    "cifar10": Source(load_cifar10, 32, "CIFAR-10: 50,000 + 10,000 colour images, 32x32, 10 classes; downloaded"),
    "cifar100": Source(load_cifar100, 32, "CIFAR-100: 50,000 + 10,000 colour images, 32x32, 100 classes; downloaded"),
    "svhn": Source(load_svhn, 32, "SVHN: 73,257 + 26,032 house numbers, 32x32 colour, 10 classes; downloaded"),
    "tiny-imagenet": Source(
        load_tiny_imagenet, 64, "Tiny ImageNet: 100,000 + 10,000 colour images, 64x64, 200 classes; unpacked by hand"
    ),
    "imagenet": Source(
        load_imagenet, 224, "ImageNet: RobustBench's 5,000 test images, 224x224 colour, 1,000 classes; unpacked by hand"
    ),
    "digits": Source(
        load_digits,
        16,
        "scikit-learn's digits: 1,297 + 500 grey images, 8x8 enlarged to 16x16; no download",
        (
            "e62b318dd42cadc5a06e152524876e5818be42945b7aa252f86c82c959436bc8",
            "bd60575e380976f2fdf5b55fbd41185423eb3519ffa3e09bc3069115c19f741d",
        ),
    ),
}

_RESERVED = {re.sub(r"[-_.]", "", key): key for key in (*SOURCES, *get_args(RobustBenchDataset))}
"""Names of published data sets, without signs, and as they are written; no other images may have them."""

_SIZED = re.compile(r"(?P<base>.+)-(?P<size>\d{1,4})px")


def data_sources() -> dict[str, str]:
    """Every named data set with a line about it."""
    return {name: source.summary for name, source in SOURCES.items()}


def load_dataset(
    spec: str,
    *,
    data_dir: Path = Path("data"),
    name: str | None = None,
    image_size: int | None = None,
    test_only: bool = False,
) -> Dataset:
    """Load a data set, whole, as bytes in memory.

    Args:
        spec: A name such as 'cifar10' or 'cifar10-c-fog-3' (in any case; see `data_sources`), a FILE.npz with
            x_train, y_train, x_test and y_test, or a FOLDER with train/<class>/* and test/<class>/*.
        data_dir: Where downloads go and are looked for.
        name: What cards and records call it; by default the data set's own name, or the file's.
        image_size: Resize to this many pixels. A data set resized from its own size is another one:
            'cifar10' at 16 is called 'cifar10-16px' (which is also a valid `spec`).
        test_only: Leave the training part out (`train` is None); a file or folder may then lack it.

    Returns:
        The data set, on the CPU.

    Raises:
        InputError: Unknown name, no such file, or a file that does not hold what it should; says which.
        SamBenchError: A download failed, or a downloaded file is damaged; says what to do.
    """
    if name is not None:
        check_name(name, "name")
    check_image_size(image_size)
    _refuse_name_of_another(spec, name=name, image_size=image_size)
    named = _named(spec, image_size)
    if named is not None:
        key, size = named
        source = _source(key)
        assert source is not None
        dataset = source.load(Path(data_dir).expanduser(), test_only)
        dataset = _resized(dataset, size, plain=source.image_size)
        return dataset if name is None else replace(dataset, name=name)
    dataset = _load_path(spec, image_size=image_size, test_only=test_only, name=name)
    return check_reserved(dataset if name is None else replace(dataset, name=name))


def known_name(spec: str, *, name: str | None = None, image_size: int | None = None) -> str | None:
    """What a data set will be called, before it is loaded; None for a file or folder that was given no name.

    Args:
        spec: As for `load_dataset`, and so are the others.

    Raises:
        InputError: The name is not usable, or `spec` and `image_size` contradict each other.
    """
    _refuse_name_of_another(spec, name=name, image_size=image_size)
    if name is not None:
        return check_name(name, "name")
    named = _named(spec, image_size)
    return None if named is None else _name_at(*named, plain=_plain_size(named[0]))


def name_of(spec: str) -> str:
    """What a data set will be called, before its images are loaded; a file that is not there, after its stem.

    Args:
        spec: As for `load_dataset`.

    Raises:
        InputError: No name can be made of that of the file or folder.
    """
    named, path = known_name(spec), Path(spec).expanduser()
    if named is not None:
        return named
    if path.is_file():
        return npz_name(path)
    return name_from_file(path.stem if path.suffix == ".npz" else path.resolve().name, spec)


def reserved_name(name: str) -> str | None:
    """The published data set that a name stands for, at any size: `cifar10` for `CIFAR-10-16px`; else None."""
    sized = _SIZED.fullmatch(name.lower())
    bare = re.sub(r"[-_.]", "", sized["base"] if sized else name.lower())
    return name.lower() if is_corrupted(name.lower()) else _RESERVED.get(bare)


def check_reserved(dataset: Dataset) -> Dataset:
    """The data set, if its name is free or its images are the published ones of that name.

    Args:
        dataset: A user's images.

    Raises:
        InputError: The name is reserved, and the images are not the published ones or cannot be compared.
    """
    meant = reserved_name(dataset.name)
    if meant is None:
        return dataset
    source = _source(meant)
    known = source.fingerprints if source and dataset.name == meant else None
    found = (dataset.train and dataset.train.fingerprint, dataset.test.fingerprint)
    if known is None or any(own not in (None, published) for own, published in zip(found, known, strict=True)):
        raise _reserved(dataset.name, meant)
    return dataset


def _refuse_name_of_another(spec: str, *, name: str | None, image_size: int | None) -> None:
    """Refuse a reserved name for other data, before anything is loaded."""
    meant = None if name is None else reserved_name(name)
    if name is None or meant is None:
        return
    named = _named(spec, image_size)
    if named is not None and name == _name_at(*named, plain=_plain_size(named[0])):
        return
    source = _source(meant)
    if named is not None or source is None or source.fingerprints is None or name != meant:
        raise _reserved(name, meant)


def _reserved(name: str, meant: str) -> InputError:
    way = f"`dataset='{meant}'` gives the published images" if _source(meant) else "no file can be checked for them"
    return InputError(
        f"the name {name!r} is kept for the published {meant}, and these images are not known to be those: {way}; "
        f"give other images another name with `dataset_name`, for example own-{meant}"
    )


def open_dataset(
    spec: str,
    *,
    stream: bool = False,
    data_dir: Path = Path("data"),
    name: str | None = None,
    image_size: int | None = None,
) -> Dataset | StreamedDataset:
    """A data set to train on: a FOLDER listed, which can be streamed or loaded; anything else in memory.

    Args:
        spec: As for `load_dataset`, and so are the others.
        stream: Accept nothing but a FOLDER, as augmentations that need whole images demand.

    Raises:
        InputError: As `load_dataset`; or `stream` is asked for what is not a folder.
        SamBenchError: As `load_dataset`.
    """
    path = _path(spec)
    if _named(spec, image_size) is None and path is not None and path.is_dir():
        if name is not None:
            check_name(name, "name")
        listed = stream_folder(path, image_size=image_size, name=name)
        meant = reserved_name(listed.name)
        if meant is not None:
            raise _reserved(listed.name, meant)
        return listed
    if stream:
        raise InputError(
            f"augmentation.random_resized_crop needs images as they are on disk, and {spec} is not a FOLDER of images",
            hint="use `random_resized_crop=False`",
        )
    return load_dataset(spec, data_dir=data_dir, name=name, image_size=image_size)


def _named(spec: str, image_size: int | None) -> tuple[str, int] | None:
    """The named data set that is meant, and the size; None when it is none."""
    key = spec.lower()
    sized = _SIZED.fullmatch(key)
    if sized and _source(key) is None and _source(sized["base"]) is not None:
        if image_size not in (None, int(sized["size"])):
            raise InputError(
                f"data set {spec!r} has images of {int(sized['size'])} pixels, but `image_size={image_size}` is given"
            )
        key, image_size = sized["base"], int(sized["size"])
        check_image_size(image_size)
    return (key, image_size or _plain_size(key)) if _source(key) is not None else None


def _source(key: str) -> Source | None:
    """The named data set; None if there is none of that name."""
    corrupted = corrupted_name(key)
    if corrupted is None:
        return SOURCES.get(key)
    return Source(
        lambda data_dir, _: load_corrupted(*corrupted, data_dir),
        32,
        "the test images of CIFAR after a corruption: cifar10-c-CORRUPTION-SEVERITY, and cifar100-c likewise",
    )


def _plain_size(key: str) -> int:
    source = _source(key)
    assert source is not None
    return source.image_size


def is_named_dataset(name: str) -> bool:
    """Whether a data set is found by its name alone (`cifar10`, `digits-8px`), as a file of one's own is not."""
    return _source(re.sub(r"-\d+px$", "", name)) is not None


def _path(spec: str) -> Path | None:
    """The file or folder that is there; None where there is none, or `spec` cannot be a path at all."""
    try:
        path = Path(spec).expanduser()
        return path if spec.strip() and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a NUL
        return None


def _load_path(spec: str, *, image_size: int | None, test_only: bool, name: str | None) -> Dataset:
    path = _path(spec)
    if path is not None and path.is_dir():
        return stream_folder(path, image_size=image_size, test_only=test_only, name=name).load()
    if path is not None and path.is_file():
        dataset = load_npz(path, test_only=test_only, name=name)
        return _resized(dataset, image_size or dataset.image_size, plain=dataset.image_size)
    if spec.lower().endswith(".npz") or os.sep in spec or "/" in spec:
        raise InputError(
            f"there is no file or folder {spec}; a data set is one of {', '.join(SOURCES)}, a FILE.npz or a FOLDER"
        )
    problem = unknown_name("data set", spec, SOURCES)
    raise InputError(f"{problem} The path of a FILE.npz or of a FOLDER with train/ and test/ works too.")


def _resized(dataset: Dataset, size: int, *, plain: int) -> Dataset:
    """The data set at `size`, under a name that says so unless it is its `plain` size."""
    if size != dataset.image_size:
        test = Split(resize(dataset.test.images, size), dataset.test.labels)
        train = dataset.train and Split(resize(dataset.train.images, size), dataset.train.labels)
        dataset = replace(dataset, train=train, test=test, robustbench=None)
    return dataset if size == plain else replace(dataset, name=_name_at(dataset.name, size, plain=plain))


def _name_at(name: str, size: int, *, plain: int) -> str:
    return name if size == plain else f"{name[:90]}-{size}px"
