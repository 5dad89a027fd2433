"""Claims as a plan states them, each with the rule that turns an interval into a verdict."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sam_bench.analysis.statistics import Interval
from sam_bench.records import Radius

Verdict = Literal["supported", "not supported", "inconclusive"]
"""What a study says of a claim."""

CLEAN = "clean"
"""In the place of an evaluation's name: accuracy without an attack."""


class _Stated(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Family(_Stated):
    """A side that is a curve: the family's robust accuracy at the clean accuracy of the other side."""

    family: str


class _Comparison(_Stated):
    """A difference of two sides, judged by its interval.

    Args:
        a: A row.
        b: A row or a family; it is taken off `a`.
        of: An evaluation, or `clean`.
        eps: Radii of the evaluation; none for clean accuracy and for distances.
        where: The rule must hold at `all` radii or at `any`.
    """

    a: str
    b: str | Family
    of: str
    eps: tuple[Radius, ...] = ()
    where: Literal["all", "any"] = "all"

    @model_validator(mode="after")
    def _radii_fit(self) -> _Comparison:
        if self.of == CLEAN and self.eps:
            raise ValueError("eps: clean accuracy has no radius; leave it out")
        if isinstance(self.b, Family) and not self.eps:
            raise ValueError("eps: a comparison with a family is made at radii; give at least one")
        return self

    @property
    @abstractmethod
    def asks(self) -> str:
        """What an interval must do, as the end of a sentence: `lie above 0`."""

    @abstractmethod
    def judge(self, interval: Interval) -> Verdict:
        """What the interval says."""


class More(_Comparison):
    """`a` is larger than `b` by more than `least`."""

    rule: Literal["more"]
    least: float

    @property
    def asks(self) -> str:
        return f"lie above {self.least:g}"

    def judge(self, interval: Interval) -> Verdict:
        return _beyond(interval, self.least)


class NoLess(_Comparison):
    """`a` is smaller than `b` by less than `margin`, if at all."""

    rule: Literal["no-less"]
    margin: float = Field(ge=0)

    @property
    def asks(self) -> str:
        return f"lie above {-self.margin:g}"

    def judge(self, interval: Interval) -> Verdict:
        return _beyond(interval, -self.margin)


class Equal(_Comparison):
    """`a` and `b` differ by at most `margin`."""

    rule: Literal["equal"]
    margin: float = Field(gt=0)

    @property
    def asks(self) -> str:
        return f"lie within ±{self.margin:g}"

    def judge(self, interval: Interval) -> Verdict:
        if -self.margin <= interval.low and interval.high <= self.margin:
            return "supported"
        outside = interval.low > self.margin or interval.high < -self.margin
        return "not supported" if outside else "inconclusive"


class Passes(_Stated):
    """A training of `a` takes `ratio` times the passes of one of `b`."""

    rule: Literal["passes"]
    a: str
    b: str
    ratio: float = Field(gt=0)


Comparison = More | NoLess | Equal
Part = Annotated[More | NoLess | Equal | Passes, Field(discriminator="rule")]


class Claim(_Stated):
    """A sentence, and what must hold for it; see the comments in `wei2023.yaml`."""

    text: str
    parts: tuple[Part, ...] = Field(min_length=1)


def _beyond(interval: Interval, threshold: float) -> Verdict:
    if interval.low > threshold:
        return "supported"
    return "not supported" if interval.high < threshold else "inconclusive"
