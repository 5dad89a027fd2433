"""The file of an evaluation's adversarial examples, beside its record: a NumPy archive without pickled objects.

`index` int64 [K] are places in the data set and `x_adv` float32 [K, C, H, W] the examples there, in [0, 1]. A file
that was made compact has those that are still adversarial as 8-bit images in `index_uint8` and `x_adv_uint8`.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sam_bench.errors import InputError, shortened
from sam_bench.evaluation.problem import Problem
from sam_bench.records import EvaluationRecord, atomic_file

ABOUT = ("attack", "checkpoint_sha256", "dataset_fingerprint", "norm", "eps")
"""What a file says of the evaluation that it belongs to."""

_STACKS = {"index": ("x_adv", "<f4"), "index_uint8": ("x_adv_uint8", "|u1")}
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
        _write(file, _about(problem), {place: image.numpy() for place, image in found.items()})


def packed(examples: AdversarialExamples) -> bytes:
    """The bytes of a file with these examples."""
    file = io.BytesIO()
    _write(file, examples.about, examples.x_adv)
    return file.getvalue()


def _write(file: IO[bytes], about: Mapping[str, str], found: Mapping[int, NDArray[Any]]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in about.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(text), allow_pickle=False)
        for index, (stack, kind) in _STACKS.items():
            places = [place for place in sorted(found) if (found[place].dtype == np.uint8) == (kind == "|u1")]
            if not places and kind == "|u1":
                continue  # as an evaluation writes it
            with archive.open(f"{index}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(places, dtype=np.int64), allow_pickle=False)
            with archive.open(f"{stack}.npy", "w", force_zip64=True) as member:
                _write_stack(member, [found[place] for place in places], kind)


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


def read_adversarial(content: bytes, source: str, *, examples: int, shape: tuple[int, int, int]) -> AdversarialExamples:
    """Read a file that others may have written: nothing in it is run, and no more is unpacked than belongs in it.

    Args:
        content: The file's bytes.
        source: What the file is called in messages.
        examples: How many test examples there are.
        shape: Of one image, (C, H, W).

    Raises:
        InputError: Not such a file; says what is wrong.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            allowed = {f"{name}.npy" for pair in _STACKS.items() for name in (pair[0], pair[1][0])}
            allowed |= {f"{name}.npy" for name in ABOUT}
            strange = sorted(set(names) - allowed) or [name for name in names if names.count(name) > 1]
            if strange:
                raise InputError(f"{source} holds {shortened(repr(strange[0]))}, which does not belong in it")
            about = {name: _text(archive, name, source) for name in ABOUT}
            found: dict[int, NDArray[Any]] = {}
            for index, (stack, kind) in _STACKS.items():
                if f"{index}.npy" in names or kind == "<f4":
                    for place, image in _stack(archive, index, stack, kind, examples, shape, source):
                        if place in found:
                            raise InputError(f"{source} holds example {place} twice")
                        found[place] = image
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"{source} is not a file of adversarial examples: {shortened(str(error))}") from error
    return AdversarialExamples(about, found)


def _text(archive: zipfile.ZipFile, name: str, source: str) -> str:
    array = _array(archive, name, _LONGEST_TEXT, source)
    if array.dtype.kind != "U" or array.shape != ():
        raise InputError(f"{source}: {name} is not a text")
    return str(array)


def _stack(
    archive: zipfile.ZipFile,
    index: str,
    stack: str,
    kind: str,
    examples: int,
    shape: tuple[int, int, int],
    source: str,
) -> list[tuple[int, NDArray[Any]]]:
    """Places and images of one of the two stacks."""
    places = _array(archive, index, 8 * examples + _HEADER, source)
    if places.dtype != np.int64 or places.ndim != 1:
        raise InputError(f"{source}: {index} is not int64 [K]")
    if len(places) and not (places.min() >= 0 and places.max() < examples):
        raise InputError(f"{source}: {index} leads outside the {examples:,} test examples")
    size = np.dtype(kind).itemsize * math.prod(shape)
    images = _array(archive, stack, size * len(places) + _HEADER, source)
    if images.dtype != np.dtype(kind) or (images.shape != (len(places), *shape) and len(places)):
        expected = f"{np.dtype(kind).name} {[len(places), *shape]}"
        raise InputError(f"{source}: {stack} is {images.dtype.name} {list(images.shape)}, not {expected}")
    return list(zip(places.tolist(), images, strict=False))


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
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or fortran:
        raise InputError(f"{source}: {name} is not a plain array")
    body = data[stream.tell() :]
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise InputError(f"{source}: {name} is cut short, or longer than its header says")
    return np.frombuffer(body, dtype).reshape(shape)
