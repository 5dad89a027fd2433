"""The training step: one input perturbation, one weight perturbation, one optimizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sam_bench.perturb import BatchLoss
from sam_bench.records import Precision
from sam_bench.seeds import derive_seed, generator
from sam_bench.training.method import Method


@dataclass
class Passes:
    """Passes summed over examples; divided by the size of the training set they are a card's cost."""

    train_forward: float = 0.0
    train_backward: float = 0.0
    attack_forward: float = 0.0
    attack_backward: float = 0.0


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
        compiled: Run the weights' side through `torch.compile`; input perturbations stay eager.
    """

    def __init__(
        self, model: nn.Module, method: Method, *, seed: int, precision: Precision, compiled: bool = False
    ) -> None:
        self.model = model
        # Static shapes: the smaller last batch of an epoch gets a graph of its own, and the others
        # keep kernels made for their size.
        self._forward = torch.compile(model, dynamic=False) if compiled else model
        self.method = method
        self.optimizer = method.optimizer.build(model.parameters())
        self.average: AveragedModel | None = method.averaging.averaged(model)
        self.passes = Passes()
        self._seed = seed
        self._bf16 = precision == "bf16"

    def __call__(self, x: Tensor, y: Tensor, *, step: int, progress: float) -> tuple[Tensor, Tensor]:
        """Learn from one batch.

        Args:
            x: float32 [B, C, H, W] in [0, 1].
            y: int64 [B].
            step: Number of this step in the run, from 0.
            progress: `step` over the number of steps in the run.

        Returns:
            The mean loss at the unperturbed weights and the number of examples classified correctly
            there, both scalars on the device: reading them would synchronise, so the caller decides when.
        """
        method, model = self.method, self.model
        # Dropout and stochastic depth draw from the global stream; seeding it here makes the step a
        # function of its number, which is what makes a resumed run equal an uninterrupted one.
        torch.manual_seed(derive_seed(self._seed, "step", step))
        for group in self.optimizer.param_groups:
            group["lr"] = method.optimizer.lr * method.schedule.factor(progress)

        with self._autocast(x):
            draws = generator(self._seed, "inputs", step, device=x.device)
            x_adv = method.inputs.perturb(model, x, y, generator=draws)

        correct: list[Tensor] = []

        def loss() -> Tensor:
            # One autocast region a pass: inside a region the bfloat16 copies of the weights are
            # cached, and SAM's second pass would be computed with those of the first.
            with self._autocast(x):
                logits = self._forward(x_adv)
            if not correct:
                correct.append((logits.detach().argmax(1) == y).sum())
            return method.objective.losses(logits, y).mean()

        batch = BatchLoss(model, loss)
        value = method.weights.differentiate(batch)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(model)
        self._count(batch, len(x))
        return value, correct[0]

    def _autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self._bf16)

    def _count(self, batch: BatchLoss, examples: int) -> None:
        forward, backward = self.method.inputs.passes
        self.passes.attack_forward += forward * examples
        self.passes.attack_backward += backward * examples
        self.passes.train_forward += batch.forward * examples
        self.passes.train_backward += batch.backward * examples
