"""The training step: one input perturbation, one weight perturbation, one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from sam_bench.distributed import ALONE, Team
from sam_bench.perturb import BatchLoss
from sam_bench.perturb.weights.base import global_norm
from sam_bench.perturb.weights.parts import Parts
from sam_bench.records import Precision
from sam_bench.seeds import derive_seed, row_generator
from sam_bench.training import graphs
from sam_bench.training.method import Method


@dataclass
class Passes:
    """Passes summed over examples; divided by the size of the training set they are a card's cost."""

    train_forward: float = 0.0
    train_backward: float = 0.0
    weight_gradients: float = 0.0
    attack_forward: float = 0.0
    attack_backward: float = 0.0


@dataclass(frozen=True)
class StepResult:
    """What a step saw: scalars on the device. Reading them would synchronise, so the caller decides when.

    Attributes:
        loss: Mean loss at the unperturbed weights.
        hits: Examples classified correctly there.
        gradient_norm: L2 norm of the gradient that the optimizer used.
        ascent_norm: That of the gradient that the ascent in the weights followed; None without an ascent.
    """

    loss: Tensor
    hits: Tensor
    gradient_norm: Tensor
    ascent_norm: Tensor | None


class TrainingStep:
    """Applies a method to one batch.

        x' = inputs.perturb(model, x, y)
        weights.differentiate(loss at x')     # the gradient at w, or at a perturbed w
        optimizer.step(); average.update()

    Args:
        model: In train mode, on the device of the batches.
        method: What to do.
        seed: Decides every draw of every step, together with the step's number.
        precision: "bf16" runs the network's matrix work in bfloat16; weights, statistics and losses
            stay float32.
        compiled: Run the network through `torch.compile`, once for learning and once for the search
            of input perturbations.
        micro_batch: Examples differentiated at a time, on every device in as many parts as on the
            others; all when not given.
        team: The processes that share every batch.
        sync_ascent: On several devices, take SAM's ascent along the gradient of the whole batch
            instead of each device's own part.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        *,
        seed: int,
        precision: Precision,
        compiled: bool = False,
        micro_batch: int | None = None,
        team: Team = ALONE,
        sync_ascent: bool = False,
    ) -> None:
        self.model = model
        self.method = method
        self.optimizer = method.optimizer.build(model.parameters())
        self.average: AveragedModel | None = method.averaging.averaged(model)
        self.passes = Passes()
        self._seed, self._bf16, self._team = seed, precision == "bf16", team
        self._micro_batch, self._sync_ascent = micro_batch, sync_ascent
        self._local: Callable[[], AbstractContextManager[object]] = nullcontext
        learner: nn.Module = model
        if team.size > 1:
            # BatchNorm's statistics are each device's own until the loop averages them.
            learner = DistributedDataParallel(model, broadcast_buffers=False)
            self._local = learner.no_sync
        self._learner = graphs.compiled(learner) if compiled else learner
        # A graph of its own, traced with the parameters frozen: one that could give their gradients
        # would compute them too, at twice the price.
        self._searched = graphs.compiled(model) if compiled else model

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        step: int,
        progress: float,
        epoch: int = 0,
        first: int = 0,
        total: int | None = None,
        lr_scale: float = 1.0,
        epoch_ended: bool = False,
    ) -> StepResult:
        """Learn from one batch.

        Args:
            x: float32 [B, C, H, W] in [0, 1]: this device's part of the batch.
            y: int64 [B].
            step: Number of this step in the run, from 0.
            progress: `step` over the number of steps in the run.
            epoch: The epoch it belongs to, from 0.
            first: Place of the first example in the whole batch.
            total: Examples in the whole batch; those given when there is no more.
            lr_scale: Multiplies the learning rate.
            epoch_ended: This is the last step of its epoch.
        """
        method = self.method
        total = total or len(x)

        # Dropout and stochastic depth draw from the global stream; seeding it makes the step a function of
        # its number, which is what makes a resumed run equal an uninterrupted one.
        def redraw(*place: int) -> None:
            torch.manual_seed(derive_seed(self._seed, "step", step, first, *place))

        redraw()
        for group in self.optimizer.param_groups:
            group["lr"] = method.optimizer.lr * method.schedule.factor(progress) * lr_scale
        batch = BatchLoss(
            self.model,
            self._perturbed(x, y, step=step, first=first, total=total),
            y,
            x=x,
            losses=method.objective.losses,
            score=self._score,
            passes=method.objective.passes,
            micro_batch=self._micro_batch,
            shards=self._shards(total),
            weight=len(x) * self._team.size / total,
            local=self._local,
            sync_ascent=self._sync_ascent,
            average=self._team.average_,
            redraw=redraw,
            seed=self._seed,
            epoch=epoch,
            step=step,
            progress=progress,
        )
        loss = method.weights.differentiate(batch)
        gradient_norm = global_norm(batch.gradients()[1])
        self.optimizer.step()
        if self.average is not None:
            method.averaging.update(self.average, self.model, progress=progress, epoch_ended=epoch_ended)
        self._count(batch, total)
        assert batch.hits is not None
        return StepResult(loss, batch.hits, gradient_norm, batch.ascent_norm)

    def _perturbed(self, x: Tensor, y: Tensor, *, step: int, first: int, total: int) -> Tensor:
        if not self.method.objective.sees_perturbed:
            return x
        found = []
        for rows, _ in Parts(self.model, self._micro_batch, self._shards(total)).cut(len(x)):
            draws = row_generator(self._seed, "inputs", step, first=first + rows.start, total=total, device=x.device)
            with self._autocast(x):
                found.append(self.method.inputs.perturb(self._searched, x[rows], y[rows], generator=draws))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _shards(self, total: int) -> tuple[int, int]:
        return total // self._team.size, -(-total // self._team.size)

    def _score(self, images: Tensor) -> Tensor:
        # One autocast region a pass: inside a region the bfloat16 copies of the weights are
        # cached, and SAM's second pass would be computed with those of the first.
        with self._autocast(images):
            logits: Tensor = self._learner(images)
        return logits

    def _autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self._bf16)

    def _count(self, batch: BatchLoss, examples: int) -> None:
        forward, backward = self.method.search_passes
        self.passes.attack_forward += forward * examples
        self.passes.attack_backward += backward * examples
        self.passes.train_forward += batch.forward * examples
        self.passes.train_backward += batch.backward * examples
        self.passes.weight_gradients += batch.weight_gradients * examples
