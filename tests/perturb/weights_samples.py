"""Small networks, their data, and a look at the weights in each pass."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sam_bench.perturb import WEIGHT_PERTURBATIONS, BatchLoss, WeightPerturbation
from sam_bench.perturb.inputs import cross_entropy
from sam_bench.perturb.weights import Runner, StepContext
from sam_bench.perturb.weights.ascent import Ascent
from sam_bench.records import ComponentSpec
from sam_bench.seeds import generator

DEVIATIONS: dict[str, float] = {}

# Settings with which a method perturbs a batch that it sees again and again: Friendly SAM takes off all of its mean.
MOVING: dict[str, dict[str, Any]] = {"fsam-friendly": {"mean_weight": 0.5}}

ASCENTS = [cls.method for cls in WEIGHT_PERTURBATIONS if issubclass(cls, Ascent)]


def net(
    *, batch_norm: bool = False, dtype: torch.dtype = torch.float64, bias: bool = True, width: int = 16, seed: int = 1
) -> nn.Sequential:
    torch.manual_seed(seed)
    norm: nn.Module = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Linear(6, width, bias), norm, nn.Tanh(), nn.Linear(width, 3, bias)).to(dtype)


def data(seed: int = 0, dtype: torch.dtype = torch.float64, count: int = 12) -> tuple[Tensor, Tensor]:
    draws = generator(seed)
    return torch.randn(count, 6, generator=draws, dtype=dtype), torch.randint(3, (count,), generator=draws)


def build(method: str, **settings: Any) -> WeightPerturbation:
    return WEIGHT_PERTURBATIONS.build(ComponentSpec(method=method, **settings))


def plain_gradient(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(cross_entropy(model(x), y).mean(), list(model.parameters())))


def batch_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    seed: int = 0,
    epoch: int = 0,
    step: int = 0,
    progress: float = 0.5,
    **how: Any,
) -> BatchLoss:
    """The loss at a step of a run; `how` is a `Runner`'s. Its optimizer has taken no step and has no momentum yet."""
    runner = Runner(**{"optimizer": torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), **how})
    return BatchLoss(model, x, y, runner=runner, at=StepContext(seed, epoch, step, progress))


def used_gradient(
    perturbation: WeightPerturbation, model: nn.Module, x: Tensor, y: Tensor, **where: Any
) -> list[Tensor]:
    """The gradient that the optimizer would get, copied."""
    perturbation.backward(batch_loss(model, x, y, **where))
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def stepped(perturbation: WeightPerturbation, model: nn.Module, x: Tensor, y: Tensor, **where: Any) -> Tensor:
    """All weights after a step of plain SGD at learning rate 1; the model's own stay as they are."""
    batch, optimizer = one_step(model, x, y, **where)
    perturbation.backward(batch)
    optimizer.step()
    return flat(batch.parameters)


def one_step(model: nn.Module, x: Tensor, y: Tensor, **where: Any) -> tuple[BatchLoss, torch.optim.Optimizer]:
    """The loss of a copy of a model, and plain SGD at learning rate 1 for its weights."""
    after = copy.deepcopy(model)
    optimizer = torch.optim.SGD(after.parameters(), 1.0)
    return batch_loss(after, x, y, optimizer=optimizer, **where), optimizer


def moves(perturbation: WeightPerturbation, model: nn.Module, x: Tensor, y: Tensor, **where: Any) -> list[list[Tensor]]:
    """How far each pass of a step is from the first one's weights, tensor by tensor."""
    seen: list[list[Tensor]] = []

    def score(images: Tensor) -> Tensor:
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        logits: Tensor = model(images)
        return logits

    perturbation.backward(batch_loss(model, x, y, score=score, **where))
    return [[now - start for now, start in zip(weights, seen[0], strict=True)] for weights in seen[1:]]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def deviation(oracle: str, found: Tensor, expected: Tensor) -> float:
    """Largest difference from what an oracle says; kept, for the summary, where it is the largest yet."""
    largest = (found - expected).abs().max().item()
    DEVIATIONS[oracle] = max(largest, DEVIATIONS.get(oracle, 0.0))
    return largest


def largest_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


class OneTensor(nn.Module):
    """A network whose parameters are one vector: what is per tensor elsewhere is global here."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.vector = nn.Parameter(flat(list(inner.parameters())))
        self._inner = [inner]

    def forward(self, x: Tensor) -> Tensor:
        shapes = {name: parameter.shape for name, parameter in self._inner[0].named_parameters()}
        pieces = self.vector.split([shape.numel() for shape in shapes.values()])
        named = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
        logits: Tensor = functional_call(self._inner[0], named, (x,))
        return logits
