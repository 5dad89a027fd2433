"""The file of an evaluation's adversarial examples, beside its record: a NumPy archive without pickled objects.

`index` int64 [K] are places in the data set and `x_adv` float32 [K, C, H, W] the examples there, in [0, 1]. 8-bit
examples are in `index_levels` and `levels` int8 [L, C, H, W]: how many levels of 255 they differ from the clean images.
So they can be read only together with the data set's own images.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sam_bench.data import Split
from sam_bench.errors import InputError, shortened
from sam_bench.evaluation.problem import Problem
from sam_bench.records import EvaluationRecord, Radius, atomic_file

ABOUT = ("attack", "checkpoint_sha256", "dataset_fingerprint", "norm", "eps")
"""What a file says of the evaluation that it belongs to."""

FORMAT = "2"
"""What a file says of the way it is written."""

_STACKS = {"index": ("x_adv", "<f4"), "index_levels": ("levels", "|i1")}
_LONGEST_TEXT, _HEADER = 4096, 1024  # bytes
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    RuntimeError,
    NotImplementedError,
    EOFError,
    OSError,
    SyntaxError,
    KeyError,
)


@dataclass(frozen=True)
class AdversarialExamples:
    """What such a file holds.

    Attributes:
        about: What they are of; see `ABOUT`.
        x_adv: Place in the data set to the example: float32 in [0, 1] or uint8, [C, H, W].
    """

    about: dict[str, str]
    x_adv: Mapping[int, NDArray[Any]]


def write_adversarial(path: Path, found: Mapping[int, Tensor], problem: Problem) -> None:
    """Write adversarial examples as float32.

    Examples that were carried over from a smaller ball are in that ball's file.

    Args:
        path: The file, a NumPy archive.
        found: Place in the data set to the adversarial example.
        problem: What they are of; its names are written along as strings.
    """
    with atomic_file(path) as file:
        _write(file, _about(problem), {"index": {place: image.numpy() for place, image in found.items()}})


def packed(examples: AdversarialExamples, test: Split) -> bytes:
    """The bytes of a file with these examples, those of 8 bits as differences from the clean images.

    Args:
        examples: What they are of says the ball; a difference that no example in it has is written as float32.
        test: The test examples of the record.
    """
    most = largest_level(Radius(examples.about["eps"]))
    floats: dict[int, NDArray[Any]] = {}
    levels: dict[int, NDArray[Any]] = {}
    for place, image in examples.x_adv.items():
        if image.dtype != np.uint8:
            floats[place] = image
            continue
        difference = image.astype(np.int16) - test.images[place].cpu().numpy()
        if abs(difference).max() <= most:
            levels[place] = difference
        else:
            floats[place] = image / np.float32(255)
    file = io.BytesIO()
    _write(file, examples.about, {"index": floats, "index_levels": levels})
    return file.getvalue()


def largest_level(eps: Radius) -> int:
    """How many levels of 255 a pixel of an 8-bit example can differ from the clean one; at most what int8 holds."""
    return int(min(127.0, 255 * float(eps) + 1e-3))


def _write(file: IO[bytes], about: Mapping[str, str], stacks: Mapping[str, Mapping[int, NDArray[Any]]]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, text in {**about, "format": FORMAT}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(text), allow_pickle=False)
        for index, images in stacks.items():
            stack, kind = _STACKS[index]
            places = sorted(images)
            with archive.open(f"{index}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(places, dtype=np.int64), allow_pickle=False)
            with archive.open(f"{stack}.npy", "w", force_zip64=True) as member:
                _write_stack(member, [images[place] for place in places], kind)


def _write_stack(file: IO[bytes], images: Sequence[NDArray[Any]], kind: str) -> None:
    """Images as one array in NumPy's format, one by one: together they may take half of the memory."""
    shape = (len(images), *images[0].shape) if images else (0,)
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    for image in images:
        file.write(image.astype(kind).tobytes())


def has_adversarial(path: Path, problem: Problem) -> bool:
    """Whether a file holds the adversarial examples of this evaluation."""
    try:
        with np.load(path) as bundle:
            there = {name: str(bundle[name]) for name in bundle.files if name in ABOUT}
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return there == _about(problem)


def _about(problem: Problem) -> dict[str, str]:
    identity = problem.identity()
    return {name: str(identity[name]) for name in ABOUT}


def about_record(record: EvaluationRecord) -> dict[str, str]:
    """What a file of this record's adversarial examples says of itself."""
    return {name: str(getattr(record, name)) for name in ABOUT}


def read_adversarial(content: bytes, source: str, record: EvaluationRecord, test: Split) -> AdversarialExamples:
    """Read a file that others may have written: nothing in it is run, and no more is unpacked than belongs in it.

    Args:
        content: The file's bytes.
        source: What the file is called in messages.
        record: The record that it lies beside.
        test: The test examples of the record.

    Raises:
        InputError: Not such a file, or another record's; says what is wrong.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            allowed = {f"{name}.npy" for pair in _STACKS.items() for name in (pair[0], pair[1][0])}
            allowed |= {f"{name}.npy" for name in (*ABOUT, "format")}
            strange = sorted(set(names) - allowed) or [name for name in names if names.count(name) > 1]
            if strange:
                raise InputError(f"{source} holds {shortened(repr(strange[0]))}, which does not belong in it")
            about = _read_about(archive, source, record)
            found: dict[int, NDArray[Any]] = {}
            stacks = [_stack(archive, "index", test, source)]
            if "index_levels.npy" in names:
                stacks.append(_eight_bits(archive, source, record, test))
            for place, image in chain(*stacks):
                if place in found:
                    raise InputError(f"{source} holds example {place} twice")
                found[place] = image
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"{source} is not a file of adversarial examples: {shortened(str(error))}") from error
    return AdversarialExamples(about, found)


def _read_about(archive: zipfile.ZipFile, source: str, record: EvaluationRecord) -> dict[str, str]:
    """What a file says of itself, if that is what its record says."""
    written = _text(archive, "format", source) if "format.npy" in archive.namelist() else "1"
    if written != FORMAT:
        raise InputError(f"{source} is in format {shortened(repr(written))}, not {FORMAT}: evaluate and submit again")
    about = {name: _text(archive, name, source) for name in ABOUT}
    for name, stated in about_record(record).items():
        if about[name] != stated:
            said = shortened(about[name])
            raise InputError(f"{source} is of {name} {said}, but its record of {stated}: it is another's")
    return about


def _eight_bits(
    archive: zipfile.ZipFile, source: str, record: EvaluationRecord, test: Split
) -> Iterator[tuple[int, NDArray[Any]]]:
    """The 8-bit examples: the clean images with the file's differences added."""
    most = largest_level(record.eps)
    for place, levels in _stack(archive, "index_levels", test, source):
        wide = levels.astype(np.int16)
        if abs(wide).max() > most:
            raise InputError(
                f"{source}: levels of example {place} reach {abs(wide).max()}, but lie outside ball and box beyond "
                f"{most}, which is eps {record.eps}"
            )
        image = test.images[place].cpu().numpy() + wide
        if image.min() < 0 or image.max() > 255:
            raise InputError(f"{source}: levels of example {place} lead outside ball and box: below 0 or above 255")
        yield place, image.astype(np.uint8)


def _text(archive: zipfile.ZipFile, name: str, source: str) -> str:
    array = _array(archive, name, _LONGEST_TEXT, source)
    if array.dtype.kind != "U" or array.shape != ():
        raise InputError(f"{source}: {name} is not a text")
    return str(array)


def _stack(archive: zipfile.ZipFile, index: str, test: Split, source: str) -> Iterator[tuple[int, NDArray[Any]]]:
    """Places and arrays of one of the two stacks, each place once."""
    (stack, kind), shape, examples = _STACKS[index], test.shape[1:], len(test)
    places = _array(archive, index, 8 * examples + _HEADER, source)
    if places.dtype != np.int64 or places.ndim != 1:
        raise InputError(f"{source}: {index} is not int64 [K]")
    if len(places) and not (places.min() >= 0 and places.max() < examples):
        raise InputError(f"{source}: {index} leads outside the {examples:,} test examples")
    if len(np.unique(places)) < len(places):
        raise InputError(f"{source}: {index} holds an example twice")
    size = np.dtype(kind).itemsize * math.prod(shape)
    images = _array(archive, stack, size * len(places) + _HEADER, source)
    fits = images.shape == (len(places), *shape) or len(places) == images.size == 0
    if images.dtype != np.dtype(kind) or not fits:
        expected = f"{np.dtype(kind).name} {[len(places), *shape]}"
        raise InputError(f"{source}: {stack} is {images.dtype.name} {list(images.shape)}, not {expected}")
    return zip(places.tolist(), images, strict=False)


def _array(archive: zipfile.ZipFile, name: str, limit: int, source: str) -> NDArray[Any]:
    """One array of the archive; its header cannot ask for more memory than the member's bytes take."""
    if archive.getinfo(f"{name}.npy").file_size > limit:
        raise InputError(f"{source}: {name} is larger than the {limit:,} bytes that it can have")
    with archive.open(f"{name}.npy") as member:
        data = member.read(limit)
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise InputError(f"{source}: {name} is in version {version} of NumPy's format, not 1.0")
    dimensions, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or fortran:
        raise InputError(f"{source}: {name} is not a plain array")
    body = data[stream.tell() :]
    if len(body) != math.prod(dimensions) * dtype.itemsize:
        raise InputError(f"{source}: {name} is cut short, or longer than its header says")
    return np.frombuffer(body, dtype).reshape(dimensions)
