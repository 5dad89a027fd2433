"""The threat model: an Lp ball around a clean input, cut with the box of valid images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sam_bench.errors import InputError, unknown_name
from sam_bench.perturb.l1 import l1_correction
from sam_bench.records import Norm, Radius
from sam_bench.seeds import draw_rows

USUAL_EPS: dict[Norm, Radius] = {"Linf": Radius("8/255"), "L2": Radius("0.5"), "L1": Radius("12")}
"""The radius that is attacked with where none is given: what papers use on CIFAR-10 in each norm."""

_LARGEST_SENSIBLE: dict[Norm, float] = {"Linf": 1.0, "L2": 10.0, "L1": 1000.0}
_TINY = 1e-12  # keeps a division by the norm of a zero vector finite


def _l2(flat: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return norms.clamp_min(_TINY)


def lengths(delta: Tensor, norm: str) -> Tensor:
    """Norms [B] of the rows of [B, ...]."""
    order = {"Linf": math.inf, "L2": 2.0, "L1": 1.0}[norm]
    norms: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=order, dim=1)
    return norms


def uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform draws from [0, 1) for rows of a batch, of `like`'s type and device; see `seeds.draw_rows`."""

    def draw(size: Sequence[int]) -> Tensor:
        return torch.rand(size, generator=generator, device=like.device, dtype=like.dtype)

    return draw_rows(draw, shape, generator)


def normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal draws for rows of a batch, of `like`'s type and device; see `seeds.draw_rows`."""

    def draw(size: Sequence[int]) -> Tensor:
        return torch.randn(size, generator=generator, device=like.device, dtype=like.dtype)

    return draw_rows(draw, shape, generator)


@dataclass(frozen=True)
class Ball:
    """The allowed inputs around a clean one: within eps in the norm, and within [0, 1].

    Args:
        norm: "Linf", "L2" or "L1"; in L1 there are projections only, no steps and no random points.
        eps: Radius, in the units of inputs in [0, 1].

    Raises:
        InputError: There is no such norm, or the radius is negative or not finite.
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        """Another spelling of a norm, such as "linf", would be taken for L2 by whoever asks for the others first."""
        if self.norm not in _LARGEST_SENSIBLE:
            raise unknown_name("norm", str(self.norm), _LARGEST_SENSIBLE)
        if isinstance(self.eps, str) or not 0 <= self.eps < math.inf:
            raise InputError("must be a finite number of at least 0", field="eps", value=self.eps)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """`x_adv` moved into the ball around `x` and clipped to the box; in L1 to the nearest point of both.

        Args:
            x_adv: Candidates, float [B, ...].
            x: Clean inputs in [0, 1], same shape.

        Returns:
            float [B, ...]; equal to `x_adv` where that was allowed already, up to rounding.
        """
        delta = x_adv - x
        if self.norm == "Linf":
            delta = delta.clamp(-self.eps, self.eps)
        elif self.norm == "L1":
            flat = (delta + l1_correction(delta, x, self.eps)).flatten(1)
            # From far outside, rounding leaves more than the radius.
            delta = (flat * (self.eps / flat.abs().sum(1, keepdim=True).clamp_min(_TINY)).clamp_max(1.0)).view_as(delta)
        else:
            # Clipping to the box afterwards moves coordinates towards x only, so the norm cannot grow.
            flat = delta.flatten(1)
            delta = (flat * (self.eps / _l2(flat)).clamp_max(1.0)).view_as(delta)
        return (x + delta).clamp(0.0, 1.0)

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Which candidates lie in ball and box, bool [B]; float32's rounding is allowed for, NaN lies nowhere.

        Args:
            x_adv: Candidates, float [B, ...].
            x: Clean inputs in [0, 1], same shape.
        """
        distance = lengths(x_adv.double() - x.double(), self.norm)
        in_box = ((x_adv >= 0.0) & (x_adv <= 1.0)).flatten(1).all(1)
        contained: Tensor = in_box & (distance <= self.eps * (1 + 1e-5) + 1e-6)
        return contained

    def step(self, x_adv: Tensor, x: Tensor, gradient: Tensor, size: float) -> Tensor:
        """One step of steepest ascent in the norm, then projection (Madry et al. 2018, section 2.1)."""
        return self.project(x_adv + size * self.direction(gradient), x)

    def usable(self, gradient: Tensor) -> Tensor:
        """The slope [B, ...] without what cannot be followed: 0 for NaN, so that the other coordinates still move.

        An infinite slope is 0, too, which no norm can scale; in Linf, where the sign alone counts, it keeps that.
        """
        infinite = 1.0 if self.norm == "Linf" else 0.0
        return gradient.nan_to_num(nan=0.0, posinf=infinite, neginf=-infinite)

    def direction(self, gradient: Tensor) -> Tensor:
        """The unit step that raises a linear function of slope `gradient` the most, where it can; float [B, ...].

        Raises:
            InputError: In L1, where that step moves one coordinate only and stands still at the box.
        """
        if self.norm == "Linf":
            return gradient.sign().nan_to_num_(nan=0.0)  # in place: this is done in every step of a search
        self._refuse_l1()
        flat = self.usable(gradient).flatten(1)
        # Where a network is sure, the slope is so short that its squares vanish: its largest entry is made 1 first.
        short = torch.linalg.vector_norm(flat, dim=1, keepdim=True) < _TINY
        largest = flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
        flat = flat / torch.where(short, largest, 1.0)
        return (flat / _l2(flat)).view_as(gradient)

    def sample(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A random point of the ball around each input, clipped to the box.

        Linf: uniform in the cube. L2: uniform direction and uniform radius.

        Args:
            x: Clean inputs in [0, 1], float [B, ...].
            generator: On the same device as `x`.

        Raises:
            InputError: In L1; see `direction`.
        """
        self._refuse_l1()
        if self.norm == "Linf":
            noise = uniform(x.shape, x, generator) * 2 - 1
            return (x + self.eps * noise).clamp(0.0, 1.0)
        flat = normal(x.shape, x, generator).flatten(1)
        radius = uniform((len(x), 1), x, generator)
        return (x + (self.eps * radius * flat / _l2(flat)).view_as(x)).clamp(0.0, 1.0)

    def _refuse_l1(self) -> None:
        if self.norm == "L1":
            raise InputError(
                "norm L1 has no steps for PGD, FGSM and adversarial training, because steepest ascent moves one "
                "coordinate at a time there; attack with autoattack or autoattack-screen, or choose Linf or L2"
            )


def check_eps(
    norm: Norm,
    eps: Radius,
    *,
    allow_large: bool = False,
    field: str = "eps",
    hint: str = "add `allow_large_eps=True` to insist",
) -> None:
    """Refuse a radius that was surely meant in units of 1/255.

    Args:
        norm: The ball's.
        eps: Its radius.
        allow_large: Accept it all the same.
        field: The field it was given for.
        hint: What to do if it was meant.

    Raises:
        InputError: `eps` is at least 1 in Linf, where the ball holds every image, 10 in L2, or 1000 in L1.
    """
    if allow_large or eps < _LARGEST_SENSIBLE[norm]:
        return
    fraction = f"{eps}/255" if "/" not in str(eps) else str(eps)
    raise InputError(
        f"is too large for {norm}: inputs are in [0, 1], so you probably mean {fraction}",
        field=field,
        value=str(eps),
        hint=hint,
    )
