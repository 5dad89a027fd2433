"""ResizedCrop: ImageNet's augmentation, a random part of each image brought to one size, and a flip."""

from __future__ import annotations

import math

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from sam_bench.records.fields import Record
from sam_bench.seeds import draw_rows

ATTEMPTS = 10  # tries at a window that lies inside the image, before the middle is taken


class ResizedCrop(Record):
    """What torchvision's RandomResizedCrop and RandomHorizontalFlip do, with draws of our own streams.

    Source: Szegedy et al. 2015 (arXiv 1409.4842), section 6, with today's usual bounds.
    """

    scale: tuple[float, float] = Field(default=(0.08, 1.0), description="least and largest share of the image's area")
    ratio: tuple[float, float] = Field(default=(3 / 4, 4 / 3), description="least and largest width over height")
    flip: bool = Field(default=True, description="mirror left and right with probability 1/2")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Everything random about `count` images, whatever their sizes: float32 [count, 41] in [0, 1)."""
        return draw_rows(lambda shape: torch.rand(shape, generator=generator), (count, 4 * ATTEMPTS + 1), generator)

    def box(self, width: int, height: int, draws: Tensor) -> tuple[int, int, int, int]:
        """The window of one image.

        Args:
            width: Of the image, in pixels.
            height: Of the image, in pixels.
            draws: One row of `draw`.

        Returns:
            (top, left, height, width).
        """
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for share, shape, down, right in draws[:-1].reshape(ATTEMPTS, 4).tolist():
            area = width * height * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + shape * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
        # As wide or as high as the image is, as near to its shape as the bounds allow.
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        return (height - h) // 2, (width - w) // 2, h, w

    def apply(self, image: Image.Image, size: int, draws: Tensor) -> Image.Image:
        """The window that `draws` decide, at `size` x `size`, mirrored if they say so."""
        from torchvision.transforms import functional

        cut: Image.Image = functional.resized_crop(image, *self.box(*image.size, draws), [size, size])
        if self.flip and draws[-1] < 0.5:
            cut = functional.hflip(cut)
        return cut
