"""The loss of one batch as a function of the weights: all that a weight perturbation sees of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sam_bench.errors import InputError
from sam_bench.modes import batch_norm_statistics_kept
from sam_bench.perturb.inputs import LossPerExample, cross_entropy
from sam_bench.perturb.weights.microbatches import Microbatches
from sam_bench.perturb.weights.runner import Runner, Score, StepContext


class LossOfInputs(Protocol):
    """What a batch is scored by; every `Objective` is one."""

    @property
    def passes(self) -> tuple[float, float]:
        """Forward and backward passes per example that one evaluation takes."""

    def losses(self, score: Score, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """The loss of every example, [B]."""


class _CrossEntropy:
    passes = (1.0, 1.0)

    def losses(self, score: Score, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(score(x_adv), y)


@dataclass(frozen=True)
class PassCount:
    """Passes over a batch; one that sees half of the examples counts one half.

    Attributes:
        forward: Forward passes.
        backward: Backward passes.
        weight_gradients: Gradients by the weights; that by some of them counts as their share of all weights.
    """

    forward: float = 0.0
    backward: float = 0.0
    weight_gradients: float = 0.0

    def __add__(self, other: PassCount) -> PassCount:
        """Both together."""
        return PassCount(
            self.forward + other.forward,
            self.backward + other.backward,
            self.weight_gradients + other.weight_gradients,
        )

    def times(self, share: float) -> PassCount:
        """Those over a group of examples, as passes over the batch that the group is this share of."""
        return PassCount(self.forward * share, self.backward * share, self.weight_gradients * share)


@dataclass(frozen=True)
class Backward:
    """What `BatchLoss.backward` found.

    Attributes:
        loss: The mean loss, a detached scalar on the device.
        passes: What it took.
    """

    loss: Tensor
    passes: PassCount


class BatchLoss:
    """Differentiates the mean loss of one batch, as often as a method asks.

    A batch that is too large for the device is differentiated in microbatches, whose gradients add up to that of the
    whole. On several devices each has a shard of the batch; a gradient is averaged over all of them, unless it only
    serves an ascent.

    Args:
        model: The network being trained.
        x_adv: Inputs to learn from, float [B, C, H, W].
        y: Labels, int64 [B]; or each class's share of a mixed label, float [B, classes].
        x: The clean inputs, if they are others.
        objective: The loss; None for cross-entropy at `x_adv`.
        runner: How passes are run; None for the model as it is, on one device.
        at: The place of the step in the run. None if the caller has no run: methods that depend on the step are
            then refused.

    Raises:
        InputError: There are not as many labels as images.

    Attributes:
        parameters: The trainable parameters.
        passes: All passes so far.
        losses: Loss of each example in the last pass, float [B] or as many as were chosen; detached.
        hits: Examples classified correctly in the first pass, a scalar on the device. If that pass saw only some,
            their hits are scaled up to the batch. None where the logits are no [B, classes].
        ascent_norm: L2 norm of the gradient that the ascent followed, a scalar on the device; None without one.
    """

    def __init__(
        self,
        model: nn.Module,
        x_adv: Tensor,
        y: Tensor,
        *,
        x: Tensor | None = None,
        objective: LossOfInputs | None = None,
        runner: Runner | None = None,
        at: StepContext | None,
    ) -> None:
        if len(x_adv) != len(y):
            raise InputError(f"a batch of {len(x_adv)} images has {len(y)} labels")
        self.model, self.x_adv, self.y, self.x = model, x_adv, y, x_adv if x is None else x
        self.runner = runner or Runner()
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.passes = PassCount()
        self.losses = torch.empty(0)
        self.hits: Tensor | None = None
        self.ascent_norm: Tensor | None = None
        self._objective: LossOfInputs = objective or _CrossEntropy()
        self._score: Score = self.runner.score or model
        self._microbatches = Microbatches(model, self.runner.micro_batch, self.runner.shards or (len(y), len(y)))
        self._at = at

    def __len__(self) -> int:
        """Examples in the batch, on this device."""
        return len(self.y)

    @property
    def at(self) -> StepContext:
        """The place of the step in the run.

        Raises:
            InputError: The caller gave none.
        """
        if self._at is None:
            raise InputError(
                "must be given, because this method depends on the step",
                field="at",
                hint="for example StepContext.at(step, epochs=10, steps_per_epoch=len(loader), seed=0)",
            )
        return self._at

    @property
    def begins_run(self) -> bool:
        """Whether this is the first step of a run."""
        return self._at is not None and self._at.step == 0

    @property
    def several_passes(self) -> bool:
        """Whether the objective runs more than the perturbed inputs."""
        return self._objective.passes != (1, 1)

    def backward(
        self,
        *,
        rows: Tensor | None = None,
        share: float = 1.0,
        only: Sequence[nn.Parameter] | None = None,
        loss: LossPerExample | None = None,
        update_bn: bool = True,
        sync: bool = True,
        draw: int = 0,
    ) -> Backward:
        """Put the gradient of the mean loss at the present weights into `.grad`, replacing what was there.

        Args:
            rows: The examples to use, int64 [M]; None for all.
            share: The share of the batch that `rows` are, the same number on every device. The number of
                microbatches follows from it and must not differ between devices.
            only: The parameters that get a gradient, at least one; None for all. The work for the others is saved,
                except if devices average as they go, or if the inputs get a gradient, too.
            loss: Used on the logits at `x_adv` in place of the objective.
            update_bn: Whether BatchNorm's running statistics move.
            sync: Average the gradient over the devices. Pass `batch.runner.sync_ascent` if the gradient only decides
                where the next one is taken.
            draw: Which masks of dropout and stochastic depth: passes of one number have the same.
        """
        for parameter in self.parameters:
            parameter.grad = None
        count = len(self) if rows is None else len(rows)
        found: list[Tensor] = []
        hits: list[Tensor] = []
        no_sync = self.runner.no_sync
        forward, backward = self._objective.passes if loss is None else (1, 1)
        to_weights = getattr(self._objective, "weight_gradients", backward) if loss is None else backward
        weight_gradients = 0.0
        with self._statistics(update_bn):
            for index, (where, last) in enumerate(self._microbatches.cut(count, share)):
                part = where if rows is None else rows[where]
                stays = not last or not sync
                with no_sync() if stays else nullcontext():
                    losses = self._forward(part, loss, hits, index, draw)
                    # Devices that average wait for every parameter; `inputs` would leave out images that follow.
                    whole = self.x_adv.requires_grad or not (stays or no_sync is nullcontext)
                    chosen = None if only is None or whole else list(only)
                    (losses.sum() * (self.runner.weight / count)).backward(inputs=chosen)
                weight_gradients += len(losses) / len(self) * to_weights * self._share_of_weights(chosen)
                found.append(losses.detach())
        if only is not None:
            kept = set(map(id, only))
            for parameter in self.parameters:
                if id(parameter) not in kept:
                    parameter.grad = None
        if sync and self.runner.lends_gradients:  # a method may need them after its next pass
            for found_one, gradient in zip(*self.gradients(), strict=True):
                found_one.grad = gradient.clone()
        seen = count / len(self)
        passes = PassCount(seen * forward, seen * backward, weight_gradients)
        return Backward(self._finish(found, hits, count, passes).mean(), passes)

    def evaluate(self, *, update_bn: bool = True, each: bool = False) -> Tensor:
        """Loss of each example at the present weights, float [B]: a forward pass without a gradient.

        Args:
            update_bn: Whether BatchNorm's running statistics move.
            each: Whether the examples are compared, so that the batch's mean in the place of each is no use.

        Raises:
            InputError: The loss is a mean, and examples are compared.
        """
        found: list[Tensor] = []
        hits: list[Tensor] = []
        with torch.no_grad(), self._statistics(update_bn):
            for index, (part, _) in enumerate(self._microbatches.cut(len(self))):
                found.append(self._forward(part, None, hits, index))
        if each and any(len(losses) > 1 and losses.stride() == (0,) for losses in found):
            raise InputError(
                "must give one loss per example for this method", field="loss_fn", hint="use reduction='none'"
            )
        passes = PassCount(self._objective.passes[0], getattr(self._objective, "slopes", 0))
        return self._finish(found, hits, len(self), passes)

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters that received a gradient, and their gradients."""
        pairs = [(parameter, parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        return [parameter for parameter, _ in pairs], [gradient for _, gradient in pairs]

    def groups(self, size: int) -> list[BatchLoss]:
        """The batch in groups of examples, each a batch of its own whose gradients stay on this device.

        Args:
            size: Examples in a group, at most. There are equally many groups on every device, nearly equal in size.
        """
        shards = self.runner.shards or (len(self), len(self))
        cut = [where for where, _ in Microbatches(self.model, size, shards).cut(len(self))]
        sizes = shards[0] // len(cut), -(-shards[1] // len(cut))
        return [self._group(where, sizes) for where in cut]

    def take(self, groups: Sequence[BatchLoss]) -> None:
        """Count the passes of groups, and what they found, as this batch's."""
        shares = [len(group) / len(self) for group in groups]
        for group, share in zip(groups, shares, strict=True):
            self.passes += group.passes.times(share)
        self.losses = torch.cat([group.losses for group in groups])
        hits = [group.hits for group in groups if group.hits is not None]
        if self.hits is None and hits:
            self.hits = torch.stack(hits).sum()
        norms = [
            group.ascent_norm * share
            for group, share in zip(groups, shares, strict=True)
            if group.ascent_norm is not None
        ]
        self.ascent_norm = torch.stack(norms).sum() if norms else None

    def _group(self, where: slice, sizes: tuple[int, int]) -> BatchLoss:
        redraw = self.runner.redraw

        def redraw_here(microbatch: int, draw: int) -> None:
            if redraw is not None:
                redraw(where.start + microbatch, draw)

        alone = Runner(
            score=self.runner.score,
            micro_batch=self.runner.micro_batch,
            shards=sizes,
            redraw=redraw_here,
            optimizer=self.runner.optimizer,
        )
        x, x_adv, y = (_take(each, where) for each in (self.x, self.x_adv, self.y))
        return BatchLoss(self.model, x_adv, y, x=x, objective=self._objective, runner=alone, at=self._at)

    def _statistics(self, update_bn: bool) -> AbstractContextManager[None]:
        return nullcontext() if update_bn else batch_norm_statistics_kept(self.model)

    def _finish(self, found: list[Tensor], hits: list[Tensor], count: int, passes: PassCount) -> Tensor:
        if self.hits is None and hits:
            self.hits = torch.stack(hits).sum() * len(self) // count
        self.losses = torch.cat(found) if len(found) > 1 else found[0]
        self.passes += passes
        return self.losses

    def _forward(
        self, part: slice | Tensor, loss: LossPerExample | None, hits: list[Tensor], index: int, draw: int = 0
    ) -> Tensor:
        if self.runner.redraw is not None:
            self.runner.redraw(index, draw)
        x, x_adv, y = (_take(each, part) for each in (self.x, self.x_adv, self.y))
        seen: list[Tensor] = []

        def score(images: Tensor) -> Tensor:
            logits = self._score(images)
            seen.append(logits.detach())
            return logits

        losses = self._objective.losses(score, x, x_adv, y) if loss is None else loss(score(x_adv), y)
        if self.hits is None and (loss is None or not self.several_passes):
            logits = seen[0]
            if logits.dim() == 2 and y.shape in (logits.shape, logits.shape[:1]):  # a task of another kind has no hits
                hits.append((logits.argmax(1) == (y if y.dim() == 1 else y.argmax(1))).sum())
        return losses

    def _share_of_weights(self, chosen: Sequence[Tensor] | None) -> float:
        if chosen is None:
            return 1.0
        return sum(each.numel() for each in chosen) / sum(each.numel() for each in self.parameters)


def _take(tensor: Tensor, part: slice | Tensor) -> Tensor:
    if isinstance(part, slice) and part.start == 0 and part.stop >= len(tensor):
        return tensor
    taken = tensor[part]
    # Choosing rows loses the memory format that convolutions are fast in.
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return taken.contiguous(memory_format=torch.channels_last)
    return taken
