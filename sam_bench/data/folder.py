"""A user's images in a FOLDER: train/<class>/*, test/<class>/*, the layout of torchvision's ImageFolder."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sam_bench.data.images import SMALLEST_IMAGE
from sam_bench.errors import InputError, shortened

T = TypeVar("T")

_GREY = {"1", "L", "LA"}
_ONE_SIZE = "give an `image_size` N to bring all to N x N"
_DEEP = ("I", "F")  # 'I', 'I;16', 'I;16B', 'F': more than eight bits a pixel


@dataclass(frozen=True)
class ImageFile:
    """An image as its header describes it."""

    path: Path
    label: int
    size: tuple[int, int]  # width, height
    grey: bool


def require_parts(path: Path, *, test_only: bool) -> list[str]:
    """The parts that are wanted, all of which are there.

    Raises:
        InputError: One is missing.
    """
    parts = ["test"] if test_only else ["train", "test"]
    for part in parts:
        if not (path / part).is_dir():
            other = next((name for name in ("val", "valid", "validation") if (path / name).is_dir()), None)
            hint = f"; rename {path / other} to test" if part == "test" and other else ""
            raise InputError(
                f"{path} has no folder {part!r}; a FOLDER of images holds train/<class>/* and test/<class>/*{hint}"
            )
    return parts


def common_classes(path: Path) -> list[str]:
    """The names of the classes, which train/ and test/ must share (as far as both are there)."""
    found = {part: _class_folders(path / part) for part in ("train", "test") if (path / part).is_dir()}
    for part, classes in found.items():
        if len(classes) < 2:
            has = f"one class folder, {classes[0]!r}" if classes else "no class folders"
            raise InputError(f"{path / part} has {has}; it must hold at least two: {part}/<class>/*")
    if len(found) == 2:
        for part, other in (("train", "test"), ("test", "train")):
            lonely = sorted(set(found[part]) - set(found[other]))
            if lonely:
                names = shortened(", ".join(repr(name) for name in lonely[:5])) + (" …" if len(lonely) > 5 else "")
                raise InputError(
                    f"{path / part} has the class {names}, which {path / other} lacks; both must have the same classes"
                )
    return found["test"]


def _class_folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def scan_images(part: Path, classes: list[str]) -> list[ImageFile]:
    """Every image of one part with its size and kind, read from the files' headers."""
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files: list[ImageFile] = []
    for label, name in enumerate(classes):
        before = len(files)
        for file in _files_below(part / name):
            if file.suffix.lower() not in endings:
                continue
            with reading(file), Image.open(file) as image:
                if image.mode.startswith(_DEEP):
                    raise InputError(f"{file} has more than 8 bits a pixel (mode {image.mode}); save it with 8")
                files.append(ImageFile(file, label, image.size, image.mode in _GREY))
        if len(files) == before:
            raise InputError(f"the class folder {part / name} has no images; put some in, or remove it from both parts")
    return files


def _files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files in a folder and those below it, in order; links are followed, but not back to a folder `above`.

    A link that leads nowhere is among them: an image that was not fetched must not be missing without a word.
    """
    real = folder.resolve()
    if real in above:
        return
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(
            f"the folder {folder} cannot be read ({error.strerror or error}); mend or remove it"
        ) from error
    for entry in entries:
        if entry.is_dir():
            yield from _files_below(entry, above | {real})
        elif entry.is_file() or entry.is_symlink():
            yield entry


def one_size(files: list[ImageFile]) -> int:
    """Height and width of square images that are all of one size.

    Raises:
        InputError: They are not; names two files.
    """
    first = files[0]
    for file in files:
        if file.size != first.size:
            raise InputError(
                f"{first.path} has {_pixels(first)} pixels but {file.path} {_pixels(file)}", hint=_ONE_SIZE
            )
    width, height = first.size
    if width != height:
        raise InputError(f"{first.path} has {_pixels(first)} pixels, which is not square", hint=_ONE_SIZE)
    if width < SMALLEST_IMAGE:
        raise InputError(
            f"{first.path} has {_pixels(first)} pixels; images must have at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE}"
        )
    return width


def open_image(file: Path, *, grey: bool) -> Image.Image:
    """A file's image, decoded, with one channel or three.

    Raises:
        InputError: It cannot be read; names the file.
    """
    with reading(file), Image.open(file) as opened:
        image: Image.Image = opened.convert("L" if grey else "RGB")
    return image


def middle_square(image: Image.Image, size: int, *, resize_to: int | None = None) -> Image.Image:
    """The image with its shorter side at `resize_to` (default `size`), then the middle `size` x `size` of it."""
    resize_to = resize_to or size
    if image.size == (size, size) and resize_to == size:
        return image
    from torchvision.transforms import functional

    cut: Image.Image = functional.center_crop(functional.resize(image, [resize_to]), [size, size])
    return cut


def to_bytes(image: Image.Image) -> Tensor:
    """uint8 [C, H, W] of an image with one channel or three."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn everything Pillow raises on a damaged file into an error that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, which does not matter here
            yield
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = (
            "not an image that Pillow knows"
            if isinstance(error, Image.UnidentifiedImageError)
            else shortened(str(error))
        )
        raise InputError(f"{file} cannot be read as an image ({reason}); mend or remove it") from error


def with_progress(items: Sequence[T], description: str) -> Iterable[T]:
    """The items, with a bar on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description=description, console=Console(stderr=True), transient=True)


def _pixels(file: ImageFile) -> str:
    return f"{file.size[0]}x{file.size[1]}"
