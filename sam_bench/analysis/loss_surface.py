"""The mean loss on a grid of points around a model's weights, or around its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from sam_bench.perturb.inputs import cross_entropy
from sam_bench.perturb.weights.base import restored


def mean_loss(module: nn.Module, x: Tensor, y: Tensor, *, batch_size: int) -> float:
    """Mean cross-entropy of inputs float [N, C, H, W] with labels int64 [N]."""
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            total += float(cross_entropy(module(x[part]).double(), y[part]).sum())
    return total / len(x)


def filter_normalised(parameters: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """A random direction in weight space that has the weights' own scale (Li et al. 2018, arXiv 1712.09913, section 4).

    Each filter of the direction has the norm of that filter of the network. Biases and the parameters of
    normalisation layers do not move.

    Args:
        parameters: A filter is an entry of the first dimension.
        generator: Draws normal noise; on the CPU.

    Returns:
        A tensor for each parameter, of its shape, dtype and device.
    """
    directions = []
    for parameter in parameters:
        drawn = torch.randn(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)
        if parameter.dim() < 2:
            directions.append(torch.zeros_like(drawn))
            continue
        wide = (-1, *[1] * (parameter.dim() - 1))
        norms, drawn_norms = (each.detach().flatten(1).norm(dim=1) for each in (parameter, drawn))
        directions.append(drawn * (norms / drawn_norms.clamp_min(1e-12)).view(wide))
    return directions


def weight_surface(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    directions: tuple[Sequence[Tensor], Sequence[Tensor]],
    coordinates: Sequence[float],
    *,
    batch_size: int,
    told: Callable[[int], None] = lambda points: None,
) -> list[list[float]]:
    """The mean loss at the weights plus a times one direction plus b times the other.

    The weights are back bit for bit afterwards.

    Args:
        module: In eval mode, so that BatchNorm keeps its running statistics.
        x: Inputs, float [N, C, H, W].
        y: Labels, int64 [N].
        directions: For each parameter of the module, in order, a tensor; twice.
        coordinates: The values of a and of b.
        batch_size: Examples at a time.
        told: Called with the number of points that are done.

    Returns:
        A row for each a, in it a value for each b.
    """
    parameters: list[Tensor] = list(module.parameters())
    rows: list[list[float]] = [[] for _ in coordinates]
    with restored(parameters) as before:
        for at, (row, a, b) in enumerate(_grid(coordinates)):
            with torch.no_grad():
                torch._foreach_copy_(parameters, before)
                for factor, direction in zip((a, b), directions, strict=True):
                    torch._foreach_add_(parameters, list(direction), alpha=factor)
            rows[row].append(mean_loss(module, x, y, batch_size=batch_size))
            told(at + 1)
    return rows


def input_surface(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    directions: tuple[Tensor, Tensor],
    coordinates: Sequence[float],
    *,
    batch_size: int,
) -> list[list[float]]:
    """The mean loss at each input plus a times its one direction plus b times its other.

    Points are not clipped to [0, 1], so that a surface shows the network and not the box.

    Args:
        module: In eval mode.
        x: Inputs, float [N, C, H, W].
        y: Labels, int64 [N].
        directions: Two tensors of the inputs' shape.
        coordinates: The values of a and of b.
        batch_size: Examples at a time.

    Returns:
        A row for each a, in it a value for each b.
    """
    rows: list[list[float]] = [[] for _ in coordinates]
    for row, a, b in _grid(coordinates):
        moved = x + a * directions[0] + b * directions[1]
        rows[row].append(mean_loss(module, moved, y, batch_size=batch_size))
    return rows


def _grid(coordinates: Sequence[float]) -> Iterator[tuple[int, float, float]]:
    for row, a in enumerate(coordinates):
        for b in coordinates:
            yield row, a, b
