"""Random corners of the ball."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import nn

from sam_bench.attacks import Event, ExampleAttack, Examples, Progress, Verifier
from sam_bench.attacks.rng import CounterRNG
from sam_bench.errors import InputError
from sam_bench.perturb.ball import Ball
from sam_bench.records import ROBUST, Norm


class RandomCorners(ExampleAttack):
    """Every trial moves every pixel by eps, up or down at random: a weak baseline that needs no gradient.

    Every field is a setting. The verifier projects each candidate into ball and box and classifies it in float32, so
    that nothing here can raise the attack's own score.
    """

    trials: int = Field(default=20, ge=1, description="corners tried for each image")

    def check(self, norm: Norm) -> None:
        """Only Linf has corners; this is said before anything is attacked."""
        if norm != "Linf":
            raise InputError(f"`norm={norm!r}`: {self.method} has corners in Linf alone")

    def events(
        self,
        model: nn.Module,
        examples: Examples,
        verifier: Verifier,
        *,
        ball: Ball,
        seed: int,
        batch_size: int,
        device: torch.device,
    ) -> Iterator[Event]:
        """Yield a verdict as soon as it is known; it does not depend on the batch."""
        # A number depends on the seed, the example's place in the data set, the trial and the pixel.
        rng, done = CounterRNG(seed, self.method, examples.index), 0
        for rows in torch.arange(len(examples)).split(batch_size):
            robust = rows
            for trial in range(self.trials):
                x = examples.x[robust]
                numbers = rng.uniform(robust, torch.full_like(robust, trial), robust * 0, x.shape[1:], stream=0)
                broken = verifier.check(robust, x + ball.eps * (numbers - 0.5).sign())
                yield from examples.verdicts(robust[broken], self.method)
                robust = robust[~broken]
                if not len(robust):
                    break
            yield from examples.verdicts(robust, ROBUST)
            done += len(rows)
            yield Progress(self.method, done, len(examples))
