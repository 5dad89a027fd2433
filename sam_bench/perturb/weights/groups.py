"""m-sharpness: an ascent for each group of m examples instead of one for the batch."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sam_bench.errors import InputError
from sam_bench.perturb.weights.ascent import Ascent
from sam_bench.perturb.weights.loss import BatchLoss
from sam_bench.records import ComponentSpec


class GroupedAscent(Ascent):
    """Base of the ascents that can be taken group by group (Foret et al. 2021, arXiv 2010.01412, section 4.1).

    With `m`, the batch is cut into groups of about m examples. Each group ascends along its own gradient and is
    differentiated at its own perturbed weights. The mean of these gradients, weighted by the groups' sizes, is the
    optimizer's. A group is what a device is in a run on several: it has its own BatchNorm statistics, too.

    Methods that keep gradients or masks from one step to the next are no such ascents: there would be one for each
    group.
    """

    m: int | None = Field(
        default=None,
        ge=1,
        description="examples that share an ascent (m-sharpness), with BatchNorm at least two; all of a device's if "
        "not given",
    )

    def spec(self) -> ComponentSpec:
        """The component as a recipe stores it, without an `m` that is not given: older cards know no such setting."""
        settings = self.model_dump(mode="json")
        return ComponentSpec(method=self.method, **{k: v for k, v in settings.items() if k != "m" or v is not None})

    def check_step(self, optimizer: torch.optim.Optimizer | None, *, sync_ascent: bool) -> None:
        """Refuse groups that would have to ascend along the gradient of the whole batch.

        Raises:
            InputError: Both `m` and `sync_ascent` are given.
        """
        if self.m is not None and sync_ascent:
            raise InputError(
                "does not go with `sync_ascent`: each group of examples ascends along its own gradient, not the whole "
                "batch's",
                field="m",
                value=self.m,
                hint="leave one of them out",
            )

    def ascending_step(self, batch: BatchLoss) -> Tensor:
        """An ascent for each group of examples, or one for all."""
        groups = [] if self.m is None else batch.groups(self.m)
        if len(groups) < 2:
            return self.perturbed_step(batch)
        found: list[Tensor] = []
        total: list[Tensor] = []
        with batch.runner.no_sync():
            for group in groups:
                found.append(self.perturbed_step(group))
                parameters, gradients = group.gradients()
                torch._foreach_mul_(gradients, batch.runner.weight * len(group) / len(batch))
                if total:
                    torch._foreach_add_(total, gradients)
                else:
                    total = gradients
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient
        batch.runner.average(total)
        batch.take(groups)
        sizes = [len(group) / len(batch) for group in groups]
        return torch.stack([loss * size for loss, size in zip(found, sizes, strict=True)]).sum()
