"""The simplified model in which SAM and adversarial training were compared: one robust feature, many weak ones.

The label y is -1 or +1. Feature 1 equals y with probability p and -y otherwise. The other d features are
N(eta y, 1). A classifier is sign(w . x). W_R = w_1 / (w_2 + ... + w_(d+1)) says how much it relies on the robust
feature. The data are those of Tsipras et al. 2019 (arXiv 1805.12152); W_R is from Wei et al. 2023 (arXiv 2305.05392).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from sam_bench.errors import InputError, SamBenchError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SimplifiedModel:
    """The distribution of the data, with what follows from it in closed form.

    Attributes:
        p: How often the robust feature is right, in (1/2, 1).
        d: How many weak features there are.
        eta: Their mean where the label is +1, above 0.
    """

    p: float
    d: int
    eta: float

    def standard_ratio(self) -> float:
        """W_R of the most accurate classifier: ln(p / (1 - p)) / (2 d eta)."""
        return self.adversarial_ratio(0.0)

    def adversarial_ratio(self, eps: float) -> float:
        """W_R of the classifier most accurate under attack: ln(p / (1 - p)) / (2 d (eta - eps)).

        The attack moves each weak feature by eps against the label, so that their means are eta - eps. Bayes' rule
        for the moved data is linear, with these weights.

        Args:
            eps: Linf radius of the attack on the weak features, 0 <= eps < eta.
        """
        return math.log(self.p / (1 - self.p)) / (2 * self.d * (self.eta - eps))

    def noise_ratio(self, spread: float) -> float:
        """W_R of the classifier most accurate on average over noise in its weights, for large d.

        Each weak feature has weight 1 + N(0, spread^2). The score then has variance
        d (1 + spread^2 (1 + eta^2)) in place of d, and Bayes' threshold moves by the same factor.

        Args:
            spread: Standard deviation of the noise, relative to the weight.
        """
        return self.standard_ratio() * (1 + spread**2 * (1 + self.eta**2))

    def accuracy(self, weights: Tensor, eps: float = 0.0) -> Tensor:
        """Probability that sign(w . x) is right, with the weak features moved by eps against the classifier.

        Args:
            weights: [d + 1, ...], a classifier a column; any scale.
            eps: Linf radius of the attack on the weak features.

        Returns:
            [...], exact: given the robust feature, the score is normal.
        """
        robust, weak = weights[0], weights[1:]
        mean = self.eta * weak.sum(0) - eps * weak.abs().sum(0)
        spread = weak.norm(dim=0)
        normal = torch.special.ndtr
        right: Tensor = self.p * normal((mean + robust) / spread) + (1 - self.p) * normal((mean - robust) / spread)
        return right

    def classifier(self, ratio: float) -> Tensor:
        """Weights [d + 1] with this W_R and equal weights 1/d on the weak features."""
        return torch.tensor([ratio, *[1 / self.d] * self.d], dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n examples times their labels, float64 [n, d + 1]: a classifier is right where w . (y x) > 0."""
        robust = (torch.rand(n, 1, generator=generator, dtype=torch.float64) < self.p).double() * 2 - 1
        weak = torch.randn(n, self.d, generator=generator, dtype=torch.float64) + self.eta
        return torch.cat([robust, weak], 1)


@dataclass(frozen=True)
class Learner:
    """How one classifier is learned.

    Attributes:
        eps: Linf radius on the weak features that adversarial training learns against; 0: none.
        rho: Radius of SAM's one-step ascent along the gradient of all examples together; 0: none.
        rho_each: Radius of SAM's ascent for each example by itself (m-sharpness with m = 1); 0: none.
    """

    eps: float = 0.0
    rho: float = 0.0
    rho_each: float = 0.0


STEPS, RATE, MOMENTUM = 1000, 0.5, 0.9  # of SAM on the whole batch

_LEVEL = 1e-8  # a slope by any weight up to this is zero; at the start it is about 1
_AT_REST = 1e-6  # a slope up to this share of the one at the start: W_R is right to four digits


def learn(examples: Tensor, learners: list[Learner]) -> Tensor:
    """Logistic regression, each learner on all of the examples.

    SAM on the whole batch has no loss of its own and goes down step by step. The others end where their loss is lowest.

    Args:
        examples: As `SimplifiedModel.sample` gives them, [n, d + 1].
        learners: What to learn with; one that has `rho` has nothing else.

    Returns:
        Weights [d + 1, learners].

    Raises:
        InputError: A classifier gets all of the examples right, so that no loss has a lowest point.
        SamBenchError: The search for it failed.
    """
    return torch.stack(
        [_descended(examples, each.rho) if each.rho else _lowest(examples, each) for each in learners], 1
    )


def _lowest(examples: Tensor, learner: Learner) -> Tensor:
    """Where a learner's loss is lowest, [d + 1]."""
    # A weak weight is the difference of two that are at least 0: their sum, which the attack costs, has no kink.
    robust, weak = examples[:, :1], examples[:, 1:]
    parts = torch.cat([robust, weak - learner.eps, -weak - learner.eps], 1).numpy()
    # For one example the gradient points against y x: the ascent takes rho ||x|| off its margin.
    taken = learner.rho_each * examples.norm(dim=1).numpy()

    def loss(weights: Floats) -> tuple[float, Floats]:
        margin = parts @ weights - taken
        return float(np.logaddexp(0, -margin).mean()), -(expit(-margin) @ parts) / len(parts)

    sizes = parts.shape[1]
    found = minimize(
        loss,
        np.zeros(sizes),
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None), *[(0, None)] * (sizes - 1)],
        options={"ftol": 0, "gtol": _LEVEL},
    )
    if (parts @ found.x).min() > 0:
        raise InputError(
            "is too few: a classifier gets every example right, so that training has no end",
            field="samples",
            value=len(parts),
            hint="give more, or a smaller `d` or `eta`",
        )
    if not found.success:
        raise SamBenchError("the lowest loss was not found; give more `samples`, or a smaller `d` or `eta`")
    first, up, down = torch.from_numpy(found.x).split([1, weak.shape[1], weak.shape[1]])
    return torch.cat([first, up - down])


def _descended(examples: Tensor, rho: float) -> Tensor:
    """SAM on the whole batch by gradient descent from zero, [d + 1].

    The learning rate falls to zero along half a cosine, so that SAM ends at a point and not in a cycle.
    """
    weights = torch.zeros(examples.shape[1], dtype=examples.dtype)
    velocity = torch.zeros_like(weights)
    for step in range(STEPS):
        slope = _slope(examples, weights)
        slope = _slope(examples, weights + rho * slope / slope.norm().clamp_min(1e-12))
        velocity = MOMENTUM * velocity + slope
        weights = weights - RATE * (1 + math.cos(math.pi * step / STEPS)) / 2 * velocity
    return weights


def _slope(examples: Tensor, weights: Tensor) -> Tensor:
    """Gradient of the mean logistic loss at weights [d + 1]."""
    return -torch.sigmoid(-(examples @ weights)) @ examples / len(examples)


def at_rest(examples: Tensor, weights: Tensor) -> bool:
    """Whether weights [d + 1] of SAM on the whole batch are where it ends, which is where the loss is lowest."""
    start = _slope(examples, torch.zeros_like(weights))
    return bool(_slope(examples, weights).norm() <= _AT_REST * start.norm())


def ratio(weights: Tensor) -> Tensor:
    """W_R of each column of weights [d + 1, ...]."""
    return weights[0] / weights[1:].sum(0)


def recalled_sam_ratio(standard: float, rho: float) -> float:
    """W_R of SAM as the statement of Wei et al. 2023 is recalled: W_R (1 + 2/3 rho^2). Not derived here."""
    return standard * (1 + 2 / 3 * rho**2)


def recalled_rho(eps: float, eta: float) -> float:
    """The rho that matches an eps as the rule is recalled, 2 + 3 / rho^2 = 2 eta / eps. Not derived here.

    It is where `recalled_sam_ratio` equals W_R of adversarial training.
    """
    return math.sqrt(3 * eps / (2 * (eta - eps)))
