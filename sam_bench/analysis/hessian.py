"""Curvature of the cross-entropy by the weights and by the inputs, from products of the Hessian with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor, nn

from sam_bench.errors import InputError, SamBenchError
from sam_bench.modes import frozen
from sam_bench.perturb.inputs import cross_entropy
from sam_bench.perturb.weights.base import views_like

Product = Callable[[Tensor], Tensor]
"""Maps a vector to the Hessian times that vector."""

_EXHAUSTED = 1e-6  # of the largest entry so far: a smaller remainder is rounding


class WeightHessian:
    """The Hessian of the mean cross-entropy by all trainable parameters, as a product with vectors.

    One batch's graph is in memory at a time. Parameters and their `.grad` stay as they are.

    Args:
        model: In eval mode; maps float [B, C, H, W] to logits.
        x: Inputs, float [N, C, H, W].
        y: Labels, int64 [N].
        batch_size: Examples differentiated at a time.

    Raises:
        InputError: No parameter of the model can be differentiated.

    Attributes:
        size: Number of parameters.
        products: How many products were made.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int) -> None:
        self._model, self._x, self._y, self._batch_size = model, x, y, batch_size
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise InputError("the model has no parameter that can be differentiated")
        self.size = sum(parameter.numel() for parameter in self.parameters)
        self.products = 0

    def __call__(self, vector: Tensor) -> Tensor:
        """The product with a vector [size]; of its dtype, on its device."""
        first = self.parameters[0]
        along = views_like(vector.to(first.device, first.dtype), self.parameters)
        total = [torch.zeros_like(parameter) for parameter in self.parameters]
        for start in range(0, len(self._x), self._batch_size):
            part = slice(start, start + self._batch_size)
            with torch.enable_grad():
                loss = cross_entropy(self._model(self._x[part]), self._y[part]).sum() / len(self._x)
                slope = torch.autograd.grad(
                    loss, self.parameters, create_graph=True, allow_unused=True, materialize_grads=True
                )
                # Parameters that enter the loss linearly have a slope without a graph: their rows are zero.
                curved = [pair for pair in zip(slope, along, strict=True) if pair[0].requires_grad]
                product = torch.autograd.grad(
                    [each for each, _ in curved],
                    self.parameters,
                    [each for _, each in curved],
                    allow_unused=True,
                    materialize_grads=True,
                )
            torch._foreach_add_(total, list(product))
        self.products += 1
        return _flat(total, self.parameters).to(vector.device, vector.dtype)


def _flat(tensors: list[Tensor], parameters: list[nn.Parameter]) -> Tensor:
    """One vector, in the order of elements that `views_like` cuts."""
    flat = torch.empty(sum(each.numel() for each in tensors), dtype=tensors[0].dtype, device=tensors[0].device)
    torch._foreach_copy_(views_like(flat, parameters), tensors)
    return flat


def top_eigenvalues(product: Product, size: int, count: int, *, generator: torch.Generator) -> list[float]:
    """The largest eigenvalues of a symmetric operator, the largest first (ARPACK's implicitly restarted Lanczos).

    Args:
        product: On float64 vectors [size] on the CPU.
        size: Of the vectors.
        count: How many, at most `size`.
        generator: Draws the vector that the search starts from; on the CPU.

    Raises:
        SamBenchError: ARPACK does not find them.
    """
    if count == size:  # ARPACK finds fewer only
        matrix = torch.stack([product(each) for each in torch.eye(size, dtype=torch.float64)])
        every: list[float] = torch.linalg.eigvalsh(matrix).flip(0).tolist()
        return every

    def times(vector: np.ndarray) -> np.ndarray:
        result: np.ndarray = product(torch.from_numpy(vector.ravel().astype(np.float64))).numpy()
        return result

    start = torch.randn(size, generator=generator, dtype=torch.float64).numpy()
    operator = LinearOperator((size, size), matvec=times, dtype=np.float64)
    # The error of an eigenvalue goes with the square of the residual, so that 1e-3 gives about six digits.
    try:
        found = eigsh(operator, k=count, which="LA", v0=start, tol=1e-3, return_eigenvectors=False)
    except ArpackError as error:
        # ARPACK refuses an operator of zeros, such as the Hessian where every logit is saturated.
        if not times(start).any():
            return [0.0] * count
        raise SamBenchError(
            "the Hessian's largest eigenvalues were not found; give a smaller `eigenvalues`, or leave the model out"
        ) from error
    return sorted(map(float, found), reverse=True)


def trace(product: Product, size: int, probes: int, *, generator: torch.Generator) -> tuple[float, float]:
    """Hutchinson's estimate of a symmetric operator's trace, and its standard error.

    Args:
        product: On float64 vectors [size] on the CPU.
        size: Of the vectors.
        probes: Random vectors of signs, at least 2.
        generator: Draws them; on the CPU.
    """
    found = []
    for _ in range(probes):
        probe = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
        found.append(float(probe @ product(probe)))
    return float(np.mean(found)), float(np.std(found, ddof=1) / math.sqrt(probes))


def input_curvature(
    model: nn.Module, x: Tensor, y: Tensor, *, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Slope and curvature of each example's cross-entropy by its input.

    Args:
        model: In eval mode; examples of a batch must not depend on each other.
        x: One batch of inputs, float [B, C, H, W].
        y: Labels, int64 [B].
        steps: Steps of the Lanczos search. A network of ReLUs with K classes has a Hessian of rank K - 1 at most,
            for which K steps are exact up to rounding.
        generator: Draws where the searches start; on the CPU.

    Returns:
        L2 norms of the gradients, [B], and the largest eigenvalues of the Hessians, [B].
    """
    with frozen(model), torch.enable_grad():
        x = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(cross_entropy(model(x), y).sum(), x, create_graph=True)

        def product(vectors: Tensor) -> Tensor:
            along = vectors.to(x.dtype).view_as(x)
            (found,) = torch.autograd.grad(slope, x, along, retain_graph=True)
            return found.flatten(1).to(vectors.dtype)

        start = torch.randn(x.flatten(1).shape, generator=generator, dtype=torch.float64).to(x.device)
        return slope.detach().flatten(1).norm(dim=1), top_eigenvalue_each(product, start, steps)


def top_eigenvalue_each(product: Product, start: Tensor, steps: int) -> Tensor:
    """The largest eigenvalue of each of many symmetric operators (Lanczos with full reorthogonalisation).

    Args:
        product: Maps vectors [B, D], one for each operator, to their products, [B, D].
        start: Where each search starts, [B, D].
        steps: Of the search; D are enough for any operator.

    Returns:
        [B]; never above the largest eigenvalue, up to rounding.
    """
    basis = [start / start.norm(dim=1, keepdim=True)]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for _ in range(min(steps, start.shape[1])):
        image = product(basis[-1])
        alpha = (image * basis[-1]).sum(1)
        # A search that has seen all of its operator goes on with zero vectors, which must not add an eigenvalue 0.
        ended = basis[-1].norm(dim=1) == 0
        diagonal.append(torch.where(ended, diagonal[0], alpha) if diagonal else alpha)
        for _ in range(2):  # once leaves rounding behind
            for known in basis:
                image = image - (image * known).sum(1, keepdim=True) * known
        beta = image.norm(dim=1)
        size = torch.stack([each.abs() for each in (*diagonal, *beside)]).amax(0)
        beta = torch.where(beta > _EXHAUSTED * size, beta, torch.zeros_like(beta))
        basis.append(torch.where(beta[:, None] > 0, image / beta.clamp_min(1e-300)[:, None], torch.zeros_like(image)))
        beside.append(beta)
    matrix = torch.diag_embed(torch.stack(diagonal, 1))
    if len(diagonal) > 1:
        off = torch.stack(beside[:-1], 1)
        matrix = matrix + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    largest: Tensor = torch.linalg.eigvalsh(matrix)[:, -1]
    return largest
