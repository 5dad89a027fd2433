"""What several sources need: resizing bytes, and names made of file names."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_bench.errors import InputError, shortened
from sam_bench.records import NAME_PATTERN

SMALLEST_IMAGE = 4
"""Height and width below which no architecture here works."""


def resize(images: Tensor, size: int) -> Tensor:
    """Bilinear resize of square images, with antialiasing when it shrinks them.

    Computed in float64 and rounded to the nearest byte: the result, and so the fingerprint, is the same
    on every machine.

    Args:
        images: uint8 [N, C, H, W].
        size: Height and width wanted.

    Returns:
        uint8 [N, C, size, size]; the images themselves when they have that size.

    Raises:
        InputError: They do not fit into memory.
    """
    if images.shape[2:] == (size, size):
        return images
    try:
        out = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8, device=images.device)
        for block, target in zip(images.split(1024), out.split(1024), strict=True):
            shrinks = size < block.shape[2]
            resized = F.interpolate(block.double(), (size, size), mode="bilinear", antialias=shrinks)
            # Processors differ in the last bit, so a value halfway between two bytes is first made exactly that.
            resized.mul_(2**20).round_().div_(2**20)
            target.copy_(resized.round_().clamp_(0, 255))
    except RuntimeError as error:
        gigabytes = images.shape[0] * images.shape[1] * size * size / 1e9
        raise InputError(
            f"{len(images):,} images of {size}x{size} need {gigabytes:,.0f} GB of memory and more while they are made",
            hint="give a smaller `image_size`",
        ) from error
    return out


def check_image_size(image_size: int | None) -> None:
    """Refuse a size that no architecture takes.

    Raises:
        InputError: It is below 4 pixels.
    """
    if image_size is not None and image_size < SMALLEST_IMAGE:
        raise InputError(f"is too small: at least {SMALLEST_IMAGE} pixels", field="image_size", value=image_size)


def check_name(name: str, where: str) -> str:
    """`name`, if cards and records can use it as a data set's name.

    Raises:
        InputError: It is not usable; says where it comes from.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputError(
            f"{where}: {shortened(name)!r} is not usable as a data set's name; use letters, digits, '.', '_' and '-', "
            "starting with a letter or digit, at most 100 characters"
        )
    return name


def name_from_file(stem: str, where: str) -> str:
    """A data set's name made of a file's or folder's name: what is not allowed becomes '-'.

    Raises:
        InputError: Nothing usable is left of it.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-").rstrip("-")[:100]
    if not name:
        raise InputError(
            f"{where}: no name for the data set can be made of {stem!r}; rename it, or give the data set a name"
        )
    return name
