"""Random corners of the ball."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from sam_bench.attacks.base import ExampleAttack, Progress, Task
from sam_bench.attacks.draws import CounterDraws
from sam_bench.errors import InputError
from sam_bench.records import Norm


class RandomCorners(ExampleAttack):
    """Every trial moves every pixel by eps, up or down at random. A baseline that needs no gradient, and weak.

    Every field is a setting, as a method's is. What `task.confirm` is given is projected into ball and box and
    classified in float32, so that there is nothing here that could raise the attack's own score.
    """

    trials: int = Field(default=20, ge=1, description="corners tried for each image")

    def check(self, norm: Norm) -> None:
        """Said before anything is attacked."""
        if norm != "Linf":
            raise InputError(f"--norm {norm}: {self.method} has corners in Linf alone")

    def seek(self, model: nn.Module, task: Task) -> list[str]:
        """Example by example: a verdict is on disk when it is known, and does not depend on the batch."""
        # A number from them depends on the seed, the example's place in the data set, the trial and the pixel.
        draws = CounterDraws(task.seed, self.method, task.index)
        done = 0
        for positions in torch.arange(len(task.x)).split(task.batch_size):
            standing = positions
            for trial in range(self.trials):
                x = task.x[standing]
                numbers = draws.uniform(standing, torch.full_like(standing, trial), standing * 0, x.shape[1:], lane=0)
                corners = x + task.ball.eps * (numbers - 0.5).sign()
                standing = standing[~task.confirm(standing, corners, self.method)]
                if not len(standing):
                    break
            for position in standing.tolist():
                task.withstand(position, 1)
            done += len(positions)
            task.progress(Progress(self.method, done, len(task.x)))
        return []
