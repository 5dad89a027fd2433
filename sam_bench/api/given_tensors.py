"""Images, labels and a model as a script has them: tensors and a function, where we have splits and modules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from sam_bench.errors import InputError


@dataclass(frozen=True)
class Inputs:
    """Images that may be any numbers in [0, 1]; a data set of ours has bytes."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of images and labels."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


class Called(nn.Module):
    """A function as a module.

    Args:
        function: Maps inputs to logits.
        device: Where it takes its inputs: unlike a module's, its weights cannot be asked.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], device: torch.device) -> None:
        super().__init__()
        self._function, self._device = function, device

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x.to(self._device))


def check_tensors(x: Tensor, y: Tensor, bs: int) -> None:
    """Refuse what is no float [N, C, H, W] with N integers from 0 as labels, N at least 1, and no images at a time.

    Raises:
        InputError: Says what was given.
    """
    for name, given in (("x_orig", x), ("y_orig", y)):
        if not isinstance(given, Tensor):
            raise InputError(f"must be a tensor, not {type(given).__name__}", field=name)
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"x_orig must be float [N, C, H, W] in [0, 1], not {x.dtype} {list(x.shape)}")
    if not len(x):
        raise InputError("x_orig must hold at least one image")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise InputError(f"y_orig must be {len(x)} integers, not {y.dtype} {list(y.shape)}")
    if y.min() < 0:  # such an image would count as misclassified
        raise InputError(f"y_orig must be classes from 0 on, but holds {int(y.min())}")
    if bs < 1:
        raise InputError("must be at least 1", field="bs", value=bs)
