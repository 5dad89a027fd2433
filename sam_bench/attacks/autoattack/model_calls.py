"""The model as the attacks call it: padded batches, optional bf16, gradients of the input alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from sam_bench.attacks.autoattack.search_weights import SearchWeights
from sam_bench.attacks.random_state import random_state_kept
from sam_bench.attacks.verify import SMALLEST_BATCH, pad
from sam_bench.device import missing_for_compile, true_float32
from sam_bench.errors import InputError
from sam_bench.graphs import first_pass

Objective = Callable[[Tensor], Tensor]
"""Logits [B, classes] to a value per example [B]."""


def refuse_without_compiler(device: torch.device) -> None:
    """Stop before any work where `torch.compile` cannot be used.

    Raises:
        InputError: Something that it needs for the device is missing.
    """
    missing = missing_for_compile(device)
    if missing is not None:
        raise InputError(f"`compile='on'`: there is no {missing}, which torch.compile needs", hint="leave it out")


_SAME = 0.01
"""Share of the largest logit by which a change of layout, or of what bfloat16 rounds, may move a logit."""


def runs_channels_last(model: nn.Module, x: Tensor, *, device: torch.device, gradients: bool) -> bool:
    """Whether the model takes images with their channels innermost, forward and backward.

    One that cuts patches with `.view` fails on them; one that reads strides gives other logits.

    Args:
        model: In eval mode, parameters frozen.
        x: An example or more, float32 [B, C, H, W].
        device: Where the model is.
        gradients: Look at the backward pass, too.
    """
    plain = pad(x, SMALLEST_BATCH).to(device).contiguous()
    last = plain.contiguous(memory_format=torch.channels_last)
    weights = SearchWeights(model, channels_last=True, bf16=False)
    passes: list[Tensor | None] = []
    for images, laid_out in ((plain, nullcontext()), (last, weights.in_place())):
        with random_state_kept(device), laid_out:
            try:
                passes.append(_pass(model, images, gradients=gradients))
            except torch.OutOfMemoryError:
                raise
            except Exception:  # whatever the model's own code raises: an assertion, as an error of PyTorch's
                passes.append(None)
    before, after = passes
    # What fails in either layout fails for another reason.
    return before is None or (after is not None and _alike(before, after))


def takes_cast_weights(model: nn.Module, x: Tensor, *, device: torch.device) -> bool:
    """Whether the model runs under autocast to bfloat16 with weights that were cast before.

    One that switches autocast off for some of its layers does not.

    Args:
        model: In eval mode, parameters frozen.
        x: An example or more, float32 [B, C, H, W].
        device: Where the model is.
    """
    weights = SearchWeights(model, channels_last=False, bf16=True)
    with torch.no_grad(), random_state_kept(device), weights.in_place():
        try:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                model(pad(x, SMALLEST_BATCH).to(device))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # as above
            return False
    return True


def _pass(model: nn.Module, x: Tensor, *, gradients: bool) -> Tensor:
    x = x.detach().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        logits: Tensor = model(x)
        if gradients:
            torch.autograd.grad(logits.sum(), x)
    return logits.detach()


def _alike(first: Tensor, second: Tensor) -> bool:
    return bool(torch.allclose(first, second, rtol=0, atol=_SAME * float(first.abs().max()), equal_nan=True))


def _noticed(model: nn.Module, *, dynamic: bool) -> Callable[[Tensor], Tensor]:
    """The model through `torch.compile`; it is said where that made nothing of it."""
    compiled = torch.compile(model, dynamic=dynamic)

    def call(x: Tensor) -> Tensor:
        with first_pass(model):
            logits: Tensor = compiled(x)
        return logits

    return call


class ModelCalls:
    """Logits and input gradients.

    Args:
        model: In eval mode, parameters frozen; maps float32 [B, C, H, W] in [0, 1] to logits.
        least_rows: The model is always given at least so many rows, so that what it says about an example does
            not depend on how many share its batch.
        bf16: Run the model under autocast to bfloat16.
        cast_weights: Cast the weights once for that, not in every pass; see `takes_cast_weights`.
        channels_last: Give images with their channels innermost, which is convolved faster; logits change by
            rounding.
        compiled: Run the model through `torch.compile`; logits change by rounding.
        device: Where the model is.

    Raises:
        InputError: Compiling was asked for, and something that it needs is missing.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        least_rows: int,
        device: torch.device,
        bf16: bool = False,
        cast_weights: bool = True,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        if compiled:
            refuse_without_compiler(device)
        self._model, self.least_rows, self._device = model, least_rows, device
        # On a CPU one graph serves batches of any size, and in it, too, an example's numbers do not depend
        # on the others; a GPU sees batches of one size only.
        dynamic = device.type == "cpu"
        self._fast: Callable[[Tensor], Tensor] = _noticed(model, dynamic=dynamic) if compiled else model
        self._bf16, self._channels_last = bf16, channels_last
        # What is compiled lays its weights out itself.
        self._weights = SearchWeights(
            model, channels_last=channels_last and not compiled, bf16=bf16 and cast_weights and not compiled
        )

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of inputs [B, ...]."""
        with self._precision(), self._weights.in_place():
            logits = self._fast(self._padded(x))
        return self._float(logits[: len(x)])

    @torch.no_grad()
    def exact_logits(self, x: Tensor) -> Tensor:
        """The same in the verifier's arithmetic: neither bfloat16 nor TF32, nor compiled."""
        with true_float32():
            logits = self._model(self._padded(x))
        return self._float(logits[: len(x)])

    def gradient(self, x: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """One forward and one backward pass.

        Returns:
            Logits [B, classes], the objective's value [B], its gradient by the input [B, ...].
        """
        x = x.detach().requires_grad_()
        with torch.enable_grad(), self._weights.in_place():
            with self._precision():
                logits = self._fast(self._padded(x))
            logits = self._float(logits[: len(x)])
            value = objective(logits)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return logits.detach(), value.detach(), gradient

    def class_gradients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, classes] and the gradient of each of them [B, classes, ...]: one backward pass a class."""
        x = x.detach().requires_grad_()
        with torch.enable_grad(), self._weights.in_place():
            with self._precision():
                logits = self._model(self._padded(x))  # a compiled pass goes back only once
            logits = self._float(logits[: len(x)])
            classes = logits.shape[1]
            gradients = [
                torch.autograd.grad(logits[:, each].sum(), x, retain_graph=each < classes - 1)[0]
                for each in range(classes)
            ]
        return logits.detach(), torch.stack(gradients, 1)

    def _precision(self) -> AbstractContextManager[object]:
        # Off where it is not asked for: in a caller's block of autocast the search would be in bfloat16, unsaid.
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16)

    def _padded(self, x: Tensor) -> Tensor:
        padded = pad(x, self.least_rows)
        if self._channels_last and padded.dim() == 4:
            padded = padded.contiguous(memory_format=torch.channels_last)
        return padded

    def _float(self, logits: Tensor) -> Tensor:
        return logits.float() if self._bf16 else logits
