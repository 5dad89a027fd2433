"""Entropy-SGD."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS, WeightPerturbation, draw_normal, restored
from sam_bench.perturb.weights.loss import BatchLoss
from sam_bench.seeds import generator


@WEIGHT_PERTURBATIONS.register("entropy-sgd")
class EntropySGD(WeightPerturbation):
    """Descent on the local entropy (Chaudhari et al. 2017, arXiv 1611.01838, algorithm 1).

    From `w' = mu = w`, `inner_steps` times

        v <- inner_momentum v + g(w')
        w' <- w' - inner_lr (g(w') + inner_momentum v - scope (w - w')) + sqrt(inner_lr) inner_noise z
        mu <- inner_average mu + (1 - inner_average) w'

    and the gradient that the optimizer gets is `w - mu`: a learning rate of 1 without momentum takes `w`
    to `mu`. `v` begins at zero in each step; the momentum, which the paper's algorithm does not have, is that of
    its authors' code (Nesterov's, as the outer one there). Each inner step sees the share `inner_share` of the
    batch, in an order drawn anew. The paper's setting, a fresh minibatch for every inner step, is a batch of
    `inner_steps` minibatches and a share of 1 / `inner_steps`; it costs one pass per example. BatchNorm's
    statistics see each example once.
    """

    inner_steps: int = Field(default=5, ge=1, description="steps of Langevin dynamics in each step (the paper's L)")
    inner_lr: float = Field(default=0.1, gt=0, description="learning rate of the inner steps")
    inner_momentum: float = Field(default=0.0, ge=0, lt=1, description="Nesterov momentum of the inner steps")
    inner_noise: float = Field(default=1e-4, ge=0, description="scale of the noise in the inner steps")
    inner_average: float = Field(default=0.75, ge=0, lt=1, description="what the running mean keeps at an inner step")
    inner_share: float = Field(
        default=1.0, gt=0, le=1, description="share of the batch that an inner step sees, at least two"
    )
    scope: float = Field(default=0.03, ge=0, description="pull of the inner steps back to w (the paper's gamma)")

    @property
    def passes(self) -> tuple[float, float]:
        """As many as the inner steps see of the batch."""
        return (self.inner_steps * self.inner_share, self.inner_steps * self.inner_share)

    def backward(self, batch: BatchLoss) -> Tensor:
        """`w - mu`."""
        # At least two where there are as many: BatchNorm cannot normalise a single example.
        size = max(min(2, len(batch)), round(self.inner_share * len(batch)))
        sweep = len(batch) // size  # inner steps until every example was seen
        draws = generator(batch.at.seed, "rows", batch.at.step, device=batch.y.device)
        order = torch.empty(0)
        offset: list[Tensor] = []  # w' - w
        with restored(batch.parameters) as before:
            for step in range(self.inner_steps):
                rows = None
                if self.inner_share < 1:
                    if step % sweep == 0:
                        order = torch.randperm(len(batch), generator=draws, device=batch.y.device)
                    rows = order[step % sweep * size :][:size]
                found = batch.backward(rows=rows, share=self.inner_share, update_bn=step < sweep, draw=step)
                parameters, update = batch.gradients()
                if step == 0:
                    loss = found.loss
                    taking = set(map(id, parameters))
                    at_w = [each for each, own in zip(before, batch.parameters, strict=True) if id(own) in taking]
                    mean = [torch.zeros_like(each) for each in at_w]
                    velocity = [torch.zeros_like(each) for each in at_w] if self.inner_momentum else []
                if self.inner_momentum:
                    torch._foreach_mul_(velocity, self.inner_momentum)
                    torch._foreach_add_(velocity, update)
                    torch._foreach_add_(update, velocity, alpha=self.inner_momentum)
                if offset:
                    torch._foreach_add_(update, offset, alpha=self.scope)
                with torch.no_grad():
                    torch._foreach_add_(parameters, update, alpha=-self.inner_lr)
                    if self.inner_noise:
                        noise = draw_normal(parameters, batch.at.seed, batch.at.step, step)
                        torch._foreach_add_(parameters, noise, alpha=math.sqrt(self.inner_lr) * self.inner_noise)
                    offset = list(torch._foreach_sub(parameters, at_w))
                torch._foreach_lerp_(mean, offset, 1 - self.inner_average)
        torch._foreach_neg_(mean)
        for parameter, gradient in zip(parameters, mean, strict=True):
            parameter.grad = gradient
        return loss
