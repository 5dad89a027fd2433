"""How far the nearest adversarial example of each image is: a measurement that needs no radius.

Fast minimum-norm attack (FMN; Pintor et al. 2021, arXiv 2102.12827, algorithm 1). It walks along the gradient of the
margin inside a ball around the image. While the point is misclassified the ball shrinks, and else it grows: the point
stays near the decision boundary, and comes closer to the image along it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sam_bench.attacks.autoattack.losses import margin
from sam_bench.attacks.verify import SMALLEST_BATCH, classes_of, pad
from sam_bench.device import true_float32
from sam_bench.errors import InputError
from sam_bench.modes import attacking
from sam_bench.perturb.ball import lengths
from sam_bench.perturb.inputs import input_gradient
from sam_bench.records import Norm

# The authors' settings, for both norms: first and last length of a step in L2, and change of the ball's radius.
_STEP = 1.0, 0.01
_CHANGE = 0.05, 0.001
_HALVINGS = 8  # of the way back to the image, at the end
_TINY = 1e-12


@true_float32()
def minimum_norms(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "Linf",
    steps: int = 100,
    batch_size: int = 250,
) -> Tensor:
    """The distance from each image to the nearest adversarial example that was found.

    It is an upper bound of the true distance. Nothing in it is random, and an image's distance does not depend on
    the others. Each distance is that of a point in [0, 1] that the model misclassifies, asked once more at the end.

    Args:
        model: Maps float32 [B, C, H, W] in [0, 1] to logits; in any mode, on any device.
        x: Images, float [N, C, H, W] in [0, 1].
        y: Labels, integers [N].
        norm: Of the distance.
        steps: Of the search; each is a pass forward and backward. At least 1.
        batch_size: Images at a time, at least 1.

    Returns:
        float32 [N] on the CPU: 0 where the model is wrong already, infinity where nothing was found.

    Raises:
        InputError: `norm`, `steps`, `batch_size` or the images are out of range.
    """
    if norm not in ("Linf", "L2"):
        raise InputError("must be Linf or L2", field="norm", value=norm)
    for field, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise InputError("must be at least 1", field=field, value=value)
    if len(x) != len(y) or not (x.min() >= 0 and x.max() <= 1):
        raise InputError("x must be images in [0, 1], with a label in y for each")
    where = next((each.device for each in model.parameters()), x.device)
    with attacking(model):
        found = [
            _of_batch(model, each.to(where, torch.float32), labels.to(where), norm, steps).cpu()
            for each, labels in zip(x.split(batch_size), y.long().split(batch_size), strict=True)
        ]
    return torch.cat(found)


def _of_batch(model: nn.Module, x: Tensor, y: Tensor, norm: str, steps: int) -> Tensor:
    """As `minimum_norms`, [B]."""
    distances = torch.zeros(len(x), device=x.device)
    right = (~_misclassified(model, x, y)).nonzero().flatten()
    if len(right):
        clean, labels = x[right], y[right]
        best = _halved(model, clean, labels, _search(model, clean, labels, norm, steps))
        verified = _misclassified(model, best, labels)
        distances[right] = torch.where(verified, lengths(best - clean, norm), torch.inf)
    return distances


def _search(model: nn.Module, x: Tensor, y: Tensor, norm: str, steps: int) -> Tensor:
    """The nearest misclassified points [B, ...]; the images themselves where there is none."""
    dual = "L1" if norm == "Linf" else "L2"
    x_adv, best = x.clone(), x.clone()
    shortest = torch.full((len(x),), torch.inf, device=x.device)
    radius = shortest.clone()
    for number in range(steps):
        share = (1 + math.cos(math.pi * number / steps)) / 2
        logits, gradient = input_gradient(model, pad(x_adv, SMALLEST_BATCH), pad(y, SMALLEST_BATCH), margin)
        logits, gradient = logits[: len(x)], gradient[: len(x)].nan_to_num(0.0, 0.0, 0.0)
        broken, length = classes_of(logits) != y, lengths(x_adv - x, norm)
        nearer = broken & (length < shortest)
        shortest = torch.where(nearer, length, shortest)
        best[nearer] = x_adv[nearer]
        # Until the boundary was crossed once: where it would be if the margin were linear.
        to_boundary = length + margin(logits, y).abs() / lengths(gradient, dual).clamp_min(_TINY)
        change = _CHANGE[1] + (_CHANGE[0] - _CHANGE[1]) * share
        # Beyond that, for on the boundary itself nothing is misclassified; the paper's radius stays there.
        grown = (1 + change) * torch.where(shortest.isinf(), to_boundary, radius)
        radius = torch.where(broken, torch.minimum(radius * (1 - change), shortest), grown)
        size = _STEP[1] + (_STEP[0] - _STEP[1]) * share
        step = -size * _scaled(gradient, 1 / lengths(gradient, "L2").clamp_min(_TINY))
        x_adv = _projected(x_adv + step, x, radius, norm)
    broken = _misclassified(model, x_adv, y) & (lengths(x_adv - x, norm) < shortest)
    best[broken] = x_adv[broken]
    return best


def _halved(model: nn.Module, x: Tensor, y: Tensor, best: Tensor) -> Tensor:
    """Misclassified points nearer to the image on the line to `best`, found by halving."""
    near, far = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        broken = _misclassified(model, x + _scaled(best - x, middle), y)
        far, near = torch.where(broken, middle, far), torch.where(broken, near, middle)
    return torch.where(_scaled(torch.ones_like(x), far) < 1, x + _scaled(best - x, far), best)


@torch.no_grad()
def _misclassified(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return classes_of(model(pad(x, SMALLEST_BATCH))[: len(x)]) != y


def _projected(x_adv: Tensor, x: Tensor, radius: Tensor, norm: str) -> Tensor:
    """The points [B, ...] moved into balls of their own radius [B], and into [0, 1]."""
    delta = x_adv - x
    if norm == "Linf":
        limit = _scaled(torch.ones_like(x), radius)
        delta = torch.maximum(torch.minimum(delta, limit), -limit)
    else:
        delta = _scaled(delta, (radius / lengths(delta, norm).clamp_min(_TINY)).clamp_max(1.0))
    return (x + delta).clamp(0.0, 1.0)


def _scaled(delta: Tensor, factors: Tensor) -> Tensor:
    """Each row of [B, ...] times its factor [B]."""
    return delta * factors.view(-1, *[1] * (delta.dim() - 1))
