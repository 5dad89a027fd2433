"""What tells a caller's module from others: its weights and buffers, and its logits and gradients on a few images.

A normalisation may stand in plain attributes, or in buffers that no state dict has. A wrapper may replace the
gradient, as an adaptive attack does. A defence may add noise, whose size is a plain attribute. Such modules are other
models, and have other verdicts, with equal weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sam_bench import zoo as zoos
from sam_bench.attacks.random_state import random_state_kept, seed_generators
from sam_bench.device import true_float32
from sam_bench.models.check import some_images
from sam_bench.modes import attacking

_STEPS = 500  # a figure is rounded to one in so many of the largest: three significant digits
_NOISE = 1e-5  # by which two passes may differ, relative to the largest figure: a device's sums in another order


def identified(module: nn.Module, shape: tuple[int, int, int]) -> tuple[str, int | None]:
    """A SHA-256 that tells a module from others, and the width of its logits.

    The figures that stand for logits and gradients are few and rounded, so that they are the same on every run and
    with any number of threads. A module that draws is asked with the same draws each time, which differ between kinds
    of devices. What differs from pass to pass all the same is left out, and so is a pass that fails.

    Args:
        module: Takes float32 [B, C, H, W] in [0, 1]; its mode is given back.
        shape: Of one image, (C, H, W).

    Returns:
        64 hexadecimal digits; the width, None where the module gives no logits.
    """
    first, second = _logits(module, shape), _logits(module, shape)
    # After the passes: what a module fills in at its first one is there then, and stays.
    buffers = dict(module.named_buffers())  # a state dict lacks those that are not persistent
    sha256 = zoos.state_dict_sha256({**buffers, **module.state_dict()})
    if first is None or second is None:
        return sha256, None
    for passes in ((first, second), (_gradient(module, shape), _gradient(module, shape))):
        if (told := _rounded(*map(_figures, passes))) is not None:
            sha256 = hashlib.sha256(f"{sha256} {told}".encode()).hexdigest()
    return sha256, first.shape[1]


def _logits(module: nn.Module, shape: tuple[int, int, int]) -> Tensor | None:
    """Logits [4, K] of four fixed images, float64 on the CPU."""
    try:
        with _asked(module, shape) as images, torch.no_grad():
            logits = module(images)
    except Exception:  # the check of the model says what is wrong
        return None
    return logits.double().cpu() if isinstance(logits, Tensor) and logits.ndim == 2 else None


def _gradient(module: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    """Gradient of the figures of the logits with respect to four fixed images, [4, D].

    NaN where the module has none.
    """
    try:
        with _asked(module, shape) as images, torch.enable_grad():
            (gradient,) = torch.autograd.grad(_figures(module(images.requires_grad_())).sum(), images)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # an attack that needs a gradient says so
        return torch.full((1, 1), torch.nan)
    return gradient.flatten(1)


@contextmanager
def _asked(module: nn.Module, shape: tuple[int, int, int]) -> Iterator[Tensor]:
    """The four images, while the module is asked about them; what it draws is the same each time."""
    images = some_images(module, shape)
    with attacking(module), true_float32(), random_state_kept(images.device):
        seed_generators(0)
        yield images


def _figures(rows: Tensor) -> Tensor:
    """A weighted sum of each row: of many roundings of single values, one would fall the other way too often."""
    return rows.cpu().double() @ torch.arange(1, rows.shape[1] + 1, dtype=torch.float64).sin()


def _rounded(figures: Tensor, again: Tensor) -> str | None:
    """The largest figure, and all as shares of it; None where another pass gives others."""
    largest = float(figures.abs().max())
    if not float((figures - again).abs().max()) <= _NOISE * largest:  # so that NaN is left out, too
        return None
    shares = (figures / (largest or 1.0) * _STEPS).round()
    return f"{largest:.2e} {shares.int().tolist()}"
