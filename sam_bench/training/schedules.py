"""Learning-rate schedules as functions of progress: no state, so a resumed run needs none."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod

from pydantic import Field, field_validator

from sam_bench.registry import Component, Registry


class Schedule(Component):
    """Base of schedules; `warmup` comes first, what the subclass describes takes the rest."""

    warmup: float = Field(default=0.0, ge=0, lt=1, description="share of the run with a linearly rising learning rate")

    def factor(self, progress: float) -> float:
        """What the peak learning rate is multiplied with.

        Args:
            progress: Steps done over steps in all, in [0, 1).
        """
        if progress < self.warmup:
            return progress / self.warmup
        return self.after_warmup((progress - self.warmup) / (1 - self.warmup))

    @abstractmethod
    def after_warmup(self, progress: float) -> float:
        """The factor at `progress` through the time after the warm-up, in [0, 1)."""


SCHEDULES: Registry[Schedule] = Registry(kind="schedule", field="schedule", group="sam_bench.schedules", base=Schedule)


@SCHEDULES.register("constant")
class Constant(Schedule):
    """The peak rate throughout."""

    def after_warmup(self, progress: float) -> float:
        """1."""
        return 1.0


@SCHEDULES.register("piecewise")
class Piecewise(Schedule):
    """Multiplied by gamma at each milestone (the paper: 0.1 at 75 % and 90 % of the epochs)."""

    milestones: tuple[float, ...] = Field(
        default=(0.75, 0.9),
        description="shares of the run, after any warm-up, at which the rate drops; in order, between 0 and 1",
    )
    gamma: float = Field(default=0.1, gt=0, description="factor at each milestone")

    @field_validator("milestones")
    @classmethod
    def _are_shares(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        bounds = (0.0, *milestones, 1.0)
        if any(one >= other for one, other in itertools.pairwise(bounds)):
            told = ",".join(f"{each:g}" for each in milestones)
            raise ValueError(
                f"{told}: they are shares of the run between 0 and 1, each larger than the one before, as 0.5,0.75 is "
                "for epochs 50 and 75 of 100"
            )
        return milestones

    def after_warmup(self, progress: float) -> float:
        """gamma to the number of milestones passed."""
        # A step short of a milestone by rounding alone has reached it.
        passed = sum(progress + 1e-9 >= milestone for milestone in self.milestones)
        return math.pow(self.gamma, passed)


@SCHEDULES.register("cosine")
class Cosine(Schedule):
    """Half a cosine down to zero (Loshchilov, Hutter 2017, without restarts)."""

    def after_warmup(self, progress: float) -> float:
        """From 1 at the start to 0 at the end."""
        return 0.5 * (1 + math.cos(math.pi * progress))


@SCHEDULES.register("one-cycle")
class OneCycle(Schedule):
    """Cosine up from 1/25 of the peak, then cosine down to zero (Smith, Topin 2018)."""

    peak: float = Field(
        default=0.3, gt=0, lt=1, description="share of the run, after any warm-up, at which the rate is highest"
    )

    def after_warmup(self, progress: float) -> float:
        """Up to 1 at `peak`, then down to 0."""
        if progress < self.peak:
            return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * progress / self.peak))
        return 0.5 * (1 + math.cos(math.pi * (progress - self.peak) / (1 - self.peak)))


@SCHEDULES.register("cyclic")
class Cyclic(Schedule):
    """Linear up from zero, then linear down to zero: fast adversarial training's (Wong, Rice, Kolter 2020)."""

    top: float = Field(
        default=0.5, gt=0, lt=1, description="share of the run, after any warm-up, at which the rate is highest"
    )

    def after_warmup(self, progress: float) -> float:
        """Up to 1 at `top`, then down to 0."""
        if progress < self.top:
            return progress / self.top
        return (1 - progress) / (1 - self.top)
