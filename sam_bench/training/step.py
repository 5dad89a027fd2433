"""The training step: one input perturbation, one weight perturbation, one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from sam_bench import graphs
from sam_bench.distributed import ALONE, Team
from sam_bench.errors import InputError
from sam_bench.perturb import BatchLoss
from sam_bench.perturb.weights import PassCount, Runner, StepContext
from sam_bench.perturb.weights.base import global_norm
from sam_bench.perturb.weights.microbatches import Microbatches
from sam_bench.records import Precision
from sam_bench.seeds import derive_seed, row_generator
from sam_bench.training.build import BuiltRecipe


@dataclass
class Passes:
    """Passes summed over examples; divided by the size of the training set they are a card's cost."""

    train_forward: float = 0.0
    train_backward: float = 0.0
    weight_gradients: float = 0.0
    attack_forward: float = 0.0
    attack_backward: float = 0.0

    def __add__(self, other: Passes) -> Passes:
        """Both together."""
        return Passes(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class StepResult:
    """What a step found. The tensors are scalars on the device: reading them waits for it, so the caller decides when.

    Attributes:
        loss: Mean loss at the unperturbed weights.
        hits: Examples classified correctly there.
        gradient_norm: L2 norm of the gradient that the optimizer used.
        ascent_norm: That of the gradient that the ascent in the weights followed; None without an ascent.
        passes: What the step took, over the examples of the whole batch.
    """

    loss: Tensor
    hits: Tensor
    gradient_norm: Tensor
    ascent_norm: Tensor | None
    passes: Passes


class TrainingStep:
    """Applies a recipe to one batch.

        x' = inputs.perturb(model, x, y)
        weights.backward(loss at x')          # the gradient at w, or at a perturbed w
        optimizer.step(); average.update()

    That is one step of the optimizer, or several in a row where the input perturbation replays a batch.

    Args:
        model: In train mode, on the device of the batches.
        recipe: What to do.
        precision: "bf16" runs the network's matrix work in bfloat16; weights, statistics and losses
            stay float32.
        compiled: Run the network through `torch.compile`, once for learning and once for the search
            of input perturbations. Batches smaller than the run's run uncompiled: a graph takes a minute to make.
        micro_batch: Examples differentiated at a time, in equally many microbatches on every device; None for
            the whole batch.
        team: The processes that share every batch.
        sync_ascent: On several devices, take SAM's ascent along the gradient of the whole batch
            instead of each device's own part.
        whole: Examples in a whole batch, where that is not the recipe's number.

    Raises:
        InputError: The weight perturbation does not go with the optimizer or with `sync_ascent`.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: BuiltRecipe,
        *,
        precision: Precision,
        compiled: bool = False,
        micro_batch: int | None = None,
        team: Team = ALONE,
        sync_ascent: bool = False,
        whole: int | None = None,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.optimizer = recipe.optimizer.build(model.parameters())
        self.average: AveragedModel | None = recipe.averaging.averaged(model)
        recipe.weights.check_step(self.optimizer, sync_ascent=sync_ascent)
        self._bf16, self._team = precision == "bf16", team
        self._micro_batch, self._sync_ascent = micro_batch, sync_ascent
        self._no_sync: Callable[[], AbstractContextManager[object]] = nullcontext
        learner: nn.Module = model
        if team.size > 1:
            # BatchNorm's statistics are each device's own until the loop averages them.
            learner = DistributedDataParallel(model, broadcast_buffers=False)
            self._no_sync = learner.no_sync
        self._learner, self._searched = self._plain = learner, model
        # Two graphs: the second is traced with the parameters frozen, since one that could give their gradients
        # would compute them too, at twice the price.
        self._compiled = (graphs.compiled(learner), graphs.compiled(model)) if compiled else None
        self._whole = recipe.recipe.batch_size if whole is None else whole

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        at: StepContext,
        first: int = 0,
        total: int | None = None,
        lr_scale: float = 1.0,
        epoch_ended: bool = False,
    ) -> StepResult:
        """Learn from one batch.

        Args:
            x: float32 [B, C, H, W] in [0, 1]: this device's part of the batch.
            y: int64 [B].
            at: The place of the step in the run; its seed and step decide every random draw.
            first: Index of the first example in the whole batch.
            total: Examples in the whole batch; None for those given.
            lr_scale: Multiplies the learning rate.
            epoch_ended: This is the last step of its epoch.
        """
        recipe = self.recipe
        total = total or len(x)
        self._learner, self._searched = self._compiled if self._compiled and total >= self._whole else self._plain
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * recipe.schedule.factor(at.progress) * lr_scale
        result, passes, replays = None, Passes(), recipe.inputs.steps_per_batch
        for replay in range(replays):
            here = replace(at, step=at.step * replays + replay)
            result = self._learn(
                x, y, here, first=first, total=total, epoch_ended=epoch_ended and replay == replays - 1
            )
            passes += result.passes
        assert result is not None
        return replace(result, passes=passes)

    def _learn(self, x: Tensor, y: Tensor, at: StepContext, *, first: int, total: int, epoch_ended: bool) -> StepResult:
        """One step of the optimizer."""
        recipe = self.recipe
        runner = self._runner(at, first=first, total=total, count=len(x))
        x_adv, compared = self._perturbed(x, y, at, first=first, total=total)
        if recipe.inputs.follows_training and recipe.objective.sees_perturbed:
            x_adv = x_adv.detach().requires_grad_()  # its gradient adds up over the passes of the step
        batch = BatchLoss(self.model, x_adv, y, x=compared, objective=recipe.objective, runner=runner, at=at)
        loss = recipe.weights.backward(batch)
        if x_adv.grad is not None:
            recipe.inputs.follow(x_adv.grad, first=first)
        gradient_norm = global_norm(batch.gradients()[1])
        self.optimizer.step()
        if self.average is not None:
            recipe.averaging.update(self.average, self.model, progress=at.progress, epoch_ended=epoch_ended)
        assert batch.hits is not None
        return StepResult(loss, batch.hits, gradient_norm, batch.ascent_norm, self._counted(batch.passes, total))

    def _runner(self, at: StepContext, *, first: int, total: int, count: int) -> Runner:
        # Dropout and stochastic depth draw from the global stream. Seeding it makes the step a function of its
        # context, so that a resumed run equals an uninterrupted one.
        def redraw(*draw: int) -> None:
            torch.manual_seed(derive_seed(at.seed, "step", at.step, first, *draw))

        redraw()
        return Runner(
            score=self._score,
            micro_batch=self._micro_batch,
            shards=self._shards(total),
            weight=count * self._team.size / total,
            no_sync=self._no_sync,
            sync_ascent=self._sync_ascent,
            average=self._team.average_,
            redraw=redraw,
            optimizer=self.optimizer,
        )

    def _perturbed(self, x: Tensor, y: Tensor, at: StepContext, *, first: int, total: int) -> tuple[Tensor, Tensor]:
        """The inputs to learn from, and those that the objective compares them with."""
        inputs, objective = self.recipe.inputs, self.recipe.objective
        if at.step == 0:
            inputs.forget()
        if not objective.sees_perturbed:
            return x, x
        found, starts = [], []
        for rows, _ in Microbatches(self.model, self._micro_batch, self._shards(total)).cut(len(x)):
            place = {"first": first + rows.start, "total": total, "device": x.device}
            if objective.compares_start:
                draws = row_generator(at.seed, "inputs", at.step, **place)
                starts.append(inputs.starting_points(x[rows], generator=draws))
            draws = row_generator(at.seed, "inputs", at.step, **place)
            with self._autocast(x):
                found.append(inputs.perturb(self._searched, x[rows], y[rows], generator=draws))
            if found[-1].shape != x[rows].shape:
                made = f"{list(found[-1].shape)} of images of shape {list(x[rows].shape)}"
                raise InputError(f"input perturbation {inputs.method!r} makes inputs of shape {made}")
        return _joined(found), _joined(starts) if starts else x

    def _shards(self, total: int) -> tuple[int, int]:
        return total // self._team.size, -(-total // self._team.size)

    def _score(self, images: Tensor) -> Tensor:
        first = nullcontext() if self._learner is self._plain[0] else graphs.first_pass(self.model)
        with self._autocast(images), first:
            logits: Tensor = self._learner(images)
        return logits

    def _autocast(self, x: Tensor) -> torch.autocast:
        # Without its cache: SAM's second pass would see the first one's bfloat16 copies of the weights. So would all
        # later steps if a caller's region is around them, as the cache is emptied when the outermost region ends.
        return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self._bf16, cache_enabled=False)

    def _counted(self, learned: PassCount, examples: int) -> Passes:
        forward, backward = self.recipe.search_passes
        return Passes(
            train_forward=learned.forward * examples,
            train_backward=learned.backward * examples,
            weight_gradients=learned.weight_gradients * examples,
            attack_forward=forward * examples,
            attack_backward=backward * examples,
        )


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
