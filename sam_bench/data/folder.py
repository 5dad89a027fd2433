"""A user's own images in a FOLDER: train/<class>/*, test/<class>/*, as torchvision's ImageFolder has it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sam_bench.data.images import SMALLEST_IMAGE, name_from_file
from sam_bench.data.splits import Dataset, Split
from sam_bench.errors import InputError

_GREY = {"1", "L", "LA"}
_DEEP = ("I", "F")  # 'I', 'I;16', 'I;16B', 'F': more than eight bits a pixel


@dataclass(frozen=True)
class ImageFile:
    """An image as its header describes it."""

    path: Path
    label: int
    size: tuple[int, int]  # width, height
    grey: bool


def load_folder(path: Path, *, image_size: int | None = None, test_only: bool = False) -> Dataset:
    """Load every image of train/<class>/ and test/<class>/ (and folders below them) into memory.

    Classes are the folders' names in sorted order. Images are grey when all of them are, otherwise
    RGB; transparency and EXIF rotation are ignored, as torchvision does. Hidden files and files that
    are no images by their ending are passed over.

    Args:
        path: The folder.
        image_size: Resize each image's shorter side to this and cut the middle square out. Without
            it, all images must be square and of one size.
        test_only: Do without train/.

    Raises:
        InputError: A part, a class or an image is missing, unreadable or of another size; names it.
    """
    path = Path(path)
    parts = require_parts(path, test_only=test_only)
    classes = common_classes(path)
    files = {part: scan_images(path / part, classes) for part in parts}
    everything = [file for part in parts for file in files[part]]
    grey = all(file.grey for file in everything)
    if image_size is None:
        image_size = one_size(everything)
    return Dataset(
        name=name_from_file(path.resolve().name, str(path)),
        train=None if test_only else _load(files["train"], image_size, grey, "train"),
        test=_load(files["test"], image_size, grey, "test"),
        classes=tuple(classes),
    )


def require_parts(path: Path, *, test_only: bool) -> list[str]:
    """The parts that are wanted, all of which are there.

    Raises:
        InputError: One is missing.
    """
    parts = ["test"] if test_only else ["train", "test"]
    for part in parts:
        if not (path / part).is_dir():
            raise InputError(
                f"{path} has no folder {part!r}; a FOLDER of images holds train/<class>/* and test/<class>/*"
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
                names = ", ".join(repr(name) for name in lonely[:5]) + (" …" if len(lonely) > 5 else "")
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
        for file in sorted((part / name).rglob("*")):
            hidden = any(piece.startswith(".") for piece in file.relative_to(part).parts)
            if hidden or file.suffix.lower() not in endings or not file.is_file():
                continue
            with reading(file), Image.open(file) as image:
                if image.mode.startswith(_DEEP):
                    raise InputError(f"{file} has more than 8 bits a pixel (mode {image.mode}); save it with 8")
                files.append(ImageFile(file, label, image.size, image.mode in _GREY))
        if len(files) == before:
            raise InputError(f"the class folder {part / name} has no images; put some in, or remove it from both parts")
    return files


def one_size(files: list[ImageFile]) -> int:
    """Height and width of square images that are all of one size.

    Raises:
        InputError: They are not; names two files.
    """
    first = files[0]
    for file in files:
        if file.size != first.size:
            raise InputError(
                f"{first.path} has {_pixels(first)} pixels but {file.path} {_pixels(file)}; "
                "give --image-size N to bring all to N x N"
            )
    width, height = first.size
    if width != height:
        raise InputError(
            f"{first.path} has {_pixels(first)} pixels, which is not square; give --image-size N to bring all to N x N"
        )
    if width < SMALLEST_IMAGE:
        raise InputError(
            f"{first.path} has {_pixels(first)} pixels; images must have at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE}"
        )
    return width


def _load(files: list[ImageFile], size: int, grey: bool, part: str) -> Split:
    channels = 1 if grey else 3
    try:
        images = torch.empty((len(files), channels, size, size), dtype=torch.uint8)
    except RuntimeError as error:
        gigabytes = len(files) * channels * size * size / 1e9
        raise InputError(
            f"{len(files)} images of {size}x{size} need {gigabytes:.0f} GB of memory; give a smaller --image-size N"
        ) from error
    for index, file in enumerate(with_progress(files, f"Reading {part} images")):
        images[index] = to_bytes(middle_square(open_image(file.path, grey=grey), size))
    return Split(images, torch.tensor([file.label for file in files], dtype=torch.int64))


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
    from torchvision.transforms import functional

    resize_to = resize_to or size
    if image.size == (size, size) and resize_to == size:
        return image
    cut: Image.Image = functional.center_crop(functional.resize(image, [resize_to]), [size, size])
    return cut


def to_bytes(image: Image.Image) -> Tensor:
    """uint8 [C, H, W] of an image with one channel or three."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Name the file whatever Pillow makes of a damaged one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no concern of the user's
            yield
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = "not an image that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else error
        raise InputError(f"{file} cannot be read as an image ({reason}); mend or remove it") from error


def with_progress(files: list[ImageFile], description: str) -> Iterable[ImageFile]:
    """The files, with a bar on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        return files
    from rich.console import Console
    from rich.progress import track

    return track(files, description=description, console=Console(stderr=True), transient=True)


def _pixels(file: ImageFile) -> str:
    return f"{file.size[0]}x{file.size[1]}"
