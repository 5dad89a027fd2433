"""A first look at a model before hours are spent on attacking it."""

from __future__ import annotations

import warnings
from itertools import chain

import torch
from torch import Tensor, nn

from sam_bench.errors import InputError, first_line
from sam_bench.modes import attacking


def check_model(
    module: nn.Module, num_classes: int, input_shape: tuple[int, int, int], *, name: str = "the model"
) -> None:
    """Run one small batch, in eval mode, and refuse a model that no attack can be run against.

    A model that changes its input is given copies everywhere here; a warning says so.

    Args:
        module: Takes float images [batch, C, H, W] in [0, 1]; its mode is given back.
        num_classes: The width the logits must have.
        input_shape: (C, H, W).
        name: What messages call the model.

    Raises:
        InputError: It fails on such images, or returns something other than finite floating-point
            logits [batch, num_classes].
    """
    batch = some_images(module, input_shape)
    shown = "x".join(str(size) for size in input_shape)
    try:
        with attacking(module) as inputs, torch.no_grad():
            logits = module(batch)
    except Exception as error:
        raise InputError(f"{name} fails on {shown} images in [0, 1]: {first_line(error)}") from error
    if not isinstance(logits, Tensor):
        raise InputError(f"{name} returns {type(logits).__name__}, not a tensor of logits [batch, {num_classes}]")
    got = list(logits.shape)
    if logits.ndim != 2 or got[0] != len(batch):
        raise InputError(f"{name} returns shape {got} for {len(batch)} images, expected [{len(batch)}, {num_classes}]")
    if got[1] != num_classes:
        raise InputError(f"{name} returns logits of shape [B,{got[1]}], expected {num_classes} classes")
    if not logits.is_floating_point():
        raise InputError(f"{name} returns {logits.dtype}, expected floating-point logits, not predictions")
    if not bool(torch.isfinite(logits).all()):
        what = "NaN" if bool(torch.isnan(logits).any()) else "infinite values"
        raise InputError(f"{name} returns {what} among its logits for images in [0, 1]: its weights have diverged?")
    if inputs.changed:
        warnings.warn(
            f"{name} changes its input in place, as x.sub_(mean) does; it is given copies here, but other code may "
            "attack other images than it means to: write x = x - mean",
            stacklevel=2,
        )


def check_input_gradient(
    module: nn.Module, input_shape: tuple[int, int, int], *, attack: str, name: str = "the model"
) -> None:
    """Refuse a model whose logits have no gradient with respect to the input; arguments as for `check_model`.

    A gradient that is zero is one: attacks that stand still there say so.

    Args:
        attack: What needs the gradient.

    Raises:
        InputError: A backward pass fails, as it does after a forward pass under `torch.no_grad()`.
    """
    batch = some_images(module, input_shape).requires_grad_()
    try:
        with attacking(module), torch.enable_grad():
            torch.autograd.grad(module(batch).sum(), batch)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise InputError(
            f"{name} has no gradient with respect to its input, which {attack} follows ({first_line(error)}): use "
            "`attack='autoattack'` `version='custom'` `suite='square'`"
        ) from error


def some_images(module: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    """Four images where the module is, always the same: black, white and two of noise; float32 [4, C, H, W]."""
    first = next(chain(module.parameters(), module.buffers()), None)
    # Noise between a black and a white image: the box's corners are where overflow shows.
    batch = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    batch[0], batch[1] = 0.0, 1.0
    return batch if first is None else batch.to(first.device)
