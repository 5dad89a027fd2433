"""Random crop and flip of a whole batch at once, each example with its own random numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_bench.device import send
from sam_bench.errors import InputError
from sam_bench.records import Augmentation
from sam_bench.seeds import draw_rows


def check_augmentation(augmentation: Augmentation, image_size: int) -> None:
    """Refuse an augmentation that images of this size cannot have.

    Raises:
        InputError: Reflection needs more pixels than an image has; names the field.
    """
    padding = augmentation.crop_padding
    if augmentation.padding_mode == "reflect" and padding >= image_size:
        raise InputError(
            f"`crop_padding`: {padding} pixels cannot be reflected in images of "
            f"{image_size}x{image_size}; use at most {image_size - 1}, or padding_mode 'zeros'"
        )


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Crop and flip each image at random, like torchvision's RandomCrop and RandomHorizontalFlip.

    Args:
        images: [B, C, H, W], any type and device.
        augmentation: What is done.
        generator: A CPU generator: the draws are the same whatever the images' device.

    Returns:
        A new batch of the same shape, type and device.
    """
    count, padding = len(images), augmentation.crop_padding
    # Both are always drawn: switching one off leaves the other's random numbers as they were.
    offsets = draw_rows(
        lambda shape: torch.randint(0, 2 * padding + 1, tuple(shape), generator=generator), (count, 2), generator
    )
    flips = draw_rows(
        lambda shape: torch.randint(0, 2, tuple(shape), generator=generator, dtype=torch.bool), (count,), generator
    )
    if not augmentation.flip:
        flips = torch.zeros_like(flips)
    return crop_and_flip(images, offsets, flips, padding=padding, padding_mode=augmentation.padding_mode)


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, *, padding: int, padding_mode: str) -> Tensor:
    """Pad by `padding`, cut each image's own H x W window out, then mirror those marked.

    Args:
        images: [B, C, H, W], any type and device.
        offsets: int64 [B, 2] on any device: top and left of the window, from 0 to 2 * padding.
        flips: bool [B] on any device: mirror left and right.
        padding: Pixels added on every side.
        padding_mode: 'reflect' (without repeating the edge) or 'zeros'.

    Returns:
        A new batch of the same shape, type and device.
    """
    device, (count, channels, height, width) = images.device, images.shape
    offsets, flips = send(offsets, device), send(flips, device)
    rows = offsets[:, :1] + torch.arange(height, device=device)  # [B, H], indices into the padded image
    columns = offsets[:, 1:] + torch.arange(width, device=device)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    if padding_mode == "reflect":
        rows, columns = _reflected(height, padding, device)[rows], _reflected(width, padding, device)[columns]
    elif padding:
        images = F.pad(images, (padding, padding, padding, padding))
    # One gather does crop, reflection and flip; the index is shared by the channels.
    index = rows[:, :, None] * images.shape[3] + columns[:, None, :]
    index = index.reshape(count, 1, height * width).expand(-1, channels, -1)
    return images.reshape(count, channels, -1).gather(2, index).reshape(count, channels, height, width)


def _reflected(length: int, padding: int, device: torch.device) -> Tensor:
    """For each index of a padded axis, the pixel it shows: 2 1 | 0 1 2 3 | 2 1."""
    index = torch.arange(-padding, length + padding, device=device).abs()
    return torch.minimum(index, 2 * (length - 1) - index)
