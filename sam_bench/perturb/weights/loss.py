"""The loss of one batch as a function of the weights: all that a weight perturbation sees of a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from sam_bench.errors import InputError
from sam_bench.modes import batch_norm_statistics_kept
from sam_bench.perturb.inputs import LossPerExample, cross_entropy
from sam_bench.perturb.weights.parts import Parts

Score = Callable[[Tensor], Tensor]
"""Maps images [B, C, H, W] to logits [B, classes]."""

Losses = Callable[[Score, Tensor, Tensor, Tensor], Tensor]
"""Maps (score, clean images, perturbed images, labels) to a loss per example, [B]: an objective."""


def _cross_entropy(score: Score, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(score(x_adv), y)


def _alone(tensors: Sequence[Tensor]) -> None:
    """The mean over one device."""


class BatchLoss:
    """Differentiates the mean loss of one batch, as often as a method asks, and counts the passes.

    A batch that is too large for the device is differentiated in parts whose gradients add up to that
    of the whole. On several devices each has a shard of the batch; a gradient is averaged over all of
    them unless it only serves an ascent.

    Args:
        model: The network being trained.
        x_adv: Inputs to learn from, float [B, C, H, W].
        y: Labels, int64 [B].
        x: The clean inputs, where they are others.
        losses: The objective; cross-entropy at `x_adv` when not given.
        score: Runs the network, in whatever precision and form training wants; `model` itself when not given.
        passes: Forward and backward passes per example that one evaluation of `losses` takes.
        micro_batch: Examples that are differentiated at a time, as `Parts` has it; all when not given.
        shards: Examples on the device that has the fewest and on the one that has the most; those of
            this one when not given.
        weight: What the mean loss counts in the average over devices: B times the devices over the whole batch.
        local: Context inside which gradients stay on this device.
        sync_ascent: Average also the gradients that serve an ascent.
        average: Replaces tensors by their means over the devices, in place.
        redraw: Called before each part of a pass with the part's number and that of the draw: seeds what dropout and
            stochastic depth draw, so that passes whose gradients or losses are compared have equal masks.
        seed: Decides, with the step, every random draw of a method.
        epoch: Which epoch this is, from 0.
        step: Which step of the run this is, from 0.
        progress: `step` over the number of steps in the run.

    Raises:
        InputError: There are not as many labels as images.

    Attributes:
        parameters: The trainable parameters.
        forward: Forward passes so far, times the share of the batch that was in them.
        backward: Backward passes, likewise.
        weight_gradients: How often the gradient by the weights was computed, likewise; that by some of them
            counts as their share of all weights.
        losses: Loss of each example in the last pass, float [B] or as many as were chosen; detached.
        hits: Examples classified correctly in the first pass, a scalar on the device; where that pass saw
            only some, as many of the whole batch as their share.
        ascent_norm: L2 norm of the gradient that the ascent followed, a scalar on the device; None without one.
    """

    def __init__(
        self,
        model: nn.Module,
        x_adv: Tensor,
        y: Tensor,
        *,
        x: Tensor | None = None,
        losses: Losses = _cross_entropy,
        score: Score | None = None,
        passes: tuple[float, float] = (1, 1),
        micro_batch: int | None = None,
        shards: tuple[int, int] | None = None,
        weight: float = 1.0,
        local: Callable[[], AbstractContextManager[object]] = nullcontext,
        sync_ascent: bool = False,
        average: Callable[[Sequence[Tensor]], None] = _alone,
        redraw: Callable[[int, int], None] | None = None,
        seed: int = 0,
        epoch: int = 0,
        step: int = 0,
        progress: float = 0.0,
    ) -> None:
        if len(x_adv) != len(y):
            raise InputError(f"a batch of {len(x_adv)} images has {len(y)} labels")
        self.model = model
        self.x_adv, self.y, self.x = x_adv, y, x_adv if x is None else x
        self.average, self.seed = average, seed
        self.epoch, self.step, self.progress = epoch, step, progress
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.forward = 0.0
        self.backward = 0.0
        self.weight_gradients = 0.0
        self.losses = torch.empty(0)
        self.hits: Tensor | None = None
        self.ascent_norm: Tensor | None = None
        self._objective, self._score, self._passes = losses, score or model, passes
        self._parts, self._weight = Parts(model, micro_batch, shards or (len(y), len(y))), weight
        self._local, self._sync_ascent, self._redraw = local, sync_ascent, redraw

    def __len__(self) -> int:
        """Examples in the batch, on this device."""
        return len(self.y)

    @property
    def several_passes(self) -> bool:
        """Whether the objective runs more than the perturbed inputs."""
        return self._passes != (1, 1)

    def differentiate(
        self,
        *,
        ascent: bool = False,
        own: bool = False,
        keep_statistics: bool = False,
        rows: Tensor | None = None,
        share: float = 1.0,
        loss: LossPerExample | None = None,
        only: Sequence[nn.Parameter] | None = None,
        draw: int = 0,
    ) -> Tensor:
        """Put the gradient of the mean loss at the present weights into `.grad`, replacing what was there.

        Args:
            ascent: The gradient only decides where the next one is taken: on several devices each may
                use its own.
            own: Each device uses its own whatever was asked for; `average` is the caller's business.
            keep_statistics: Leave BatchNorm's running statistics as they are.
            rows: The examples to use, int64 [M]; all when not given.
            share: What part of the batch `rows` are, the same number on every device: from it follows
                in how many parts they are differentiated, which must not differ between devices.
            loss: Used on the logits at `x_adv` in the place of the objective.
            only: The parameters that get a gradient, at least one; all when not given. The work of the
                others' is saved, except where devices average as they go.
            draw: Which masks of dropout and stochastic depth: passes of one number have the same.

        Returns:
            The mean loss, a detached scalar.
        """
        for parameter in self.parameters:
            parameter.grad = None
        count = len(self) if rows is None else len(rows)
        found: list[Tensor] = []
        hits: list[Tensor] = []
        forward, backward = self._passes if loss is None else (1, 1)
        with batch_norm_statistics_kept(self.model) if keep_statistics else nullcontext():
            for number, (where, last) in enumerate(self._parts.cut(count, share)):
                part = where if rows is None else rows[where]
                stays = not last or own or (ascent and not self._sync_ascent)
                with self._local() if stays else nullcontext():
                    losses = self._evaluate(part, loss, hits, number, draw)
                    # Devices that average wait for every parameter.
                    chosen = None if only is None or not (stays or self._local is nullcontext) else list(only)
                    (losses.sum() * (self._weight / count)).backward(inputs=chosen)
                self.weight_gradients += len(losses) / len(self) * backward * self._share_of_weights(chosen)
                found.append(losses.detach())
        if only is not None:
            kept = set(map(id, only))
            for parameter in self.parameters:
                if id(parameter) not in kept:
                    parameter.grad = None
        self.backward += count / len(self) * backward
        return self._finish(found, hits, count, forward).mean()

    def evaluate(self, *, keep_statistics: bool = False) -> Tensor:
        """Loss of each example at the present weights, float [B]: a forward pass without a gradient.

        Args:
            keep_statistics: Leave BatchNorm's running statistics as they are.
        """
        found: list[Tensor] = []
        hits: list[Tensor] = []
        with torch.no_grad(), batch_norm_statistics_kept(self.model) if keep_statistics else nullcontext():
            for number, (part, _) in enumerate(self._parts.cut(len(self))):
                found.append(self._evaluate(part, None, hits, number))
        return self._finish(found, hits, len(self), self._passes[0])

    def _finish(self, found: list[Tensor], hits: list[Tensor], count: int, forward: float) -> Tensor:
        if self.hits is None and hits:
            self.hits = torch.stack(hits).sum() * len(self) // count
        self.losses = torch.cat(found) if len(found) > 1 else found[0]
        self.forward += count / len(self) * forward
        return self.losses

    def _evaluate(
        self, part: slice | Tensor, loss: LossPerExample | None, hits: list[Tensor], number: int, draw: int = 0
    ) -> Tensor:
        if self._redraw is not None:
            self._redraw(number, draw)
        x, x_adv, y = (_take(each, part) for each in (self.x, self.x_adv, self.y))
        seen: list[Tensor] = []

        def score(images: Tensor) -> Tensor:
            logits = self._score(images)
            seen.append(logits.detach())
            return logits

        losses = self._objective(score, x, x_adv, y) if loss is None else loss(score(x_adv), y)
        if self.hits is None and (loss is None or not self.several_passes):
            hits.append((seen[0].argmax(1) == y).sum())
        return losses

    def _share_of_weights(self, chosen: Sequence[Tensor] | None) -> float:
        if chosen is None:
            return 1.0
        return sum(each.numel() for each in chosen) / sum(each.numel() for each in self.parameters)

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters that received a gradient, and their gradients."""
        pairs = [(parameter, parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        return [parameter for parameter, _ in pairs], [gradient for _, gradient in pairs]


def _take(tensor: Tensor, part: slice | Tensor) -> Tensor:
    if isinstance(part, slice) and part.start == 0 and part.stop >= len(tensor):
        return tensor
    taken = tensor[part]
    # Choosing rows loses the memory format that convolutions are fast in.
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return taken.contiguous(memory_format=torch.channels_last)
    return taken
