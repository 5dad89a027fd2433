"""What the state of an AutoAttack run belongs to: a model, images, a norm and a radius."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_PROBES = 4  # images that the model is asked about
_SAME = 1e-2  # relative difference that another device or another number of threads may make


@dataclass(frozen=True)
class RunIdentity:
    """What two runs must share for one to go on from the other's state.

    Attributes:
        norm: 'Linf', 'L2' or 'L1'.
        eps: Radius of the ball.
        images: SHA-256 of the images and their labels.
        weights: SHA-256 of the parameters and buffers; None where the model is no module.
        outputs: One figure made of the logits, for each of the first images; None where the seed does not decide it.
        gradients: Norm of that figure's input gradient, for the same images; None where there is none.
    """

    norm: str
    eps: float
    images: str
    weights: str | None
    outputs: tuple[float, ...] | None
    gradients: tuple[float, ...] | None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> RunIdentity:
        """Read what `vars` gave."""
        lists = {name: None if content[name] is None else tuple(content[name]) for name in ("outputs", "gradients")}
        return cls(**{**content, **lists})

    def difference(self, other: RunIdentity) -> str | None:
        """The first thing that `other` has differently, as the end of "a run …"; None where they agree."""
        if self.norm != other.norm:
            return f"in norm {self.norm}, not {other.norm}"
        if self.eps != other.eps:
            return f"at eps {self.eps:g}, not {other.eps:g}"
        if self.images != other.images:
            return "on other images or labels"
        if self.weights != other.weights:
            return "on a model with other weights"
        if not _close(self.outputs, other.outputs):
            return "on a model with equal weights and other logits"
        if not _close(self.gradients, other.gradients):
            return "on a model with equal logits and another input gradient"
        return None


def identity_of(
    model: Any,
    logits: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float,
    device: torch.device | str,
) -> RunIdentity:
    """What a run belongs to.

    Args:
        model: A module, or any callable.
        logits: Gives the model's logits [B, classes].
        x: Inputs, float32 [N, ...] in [0, 1], on any device.
        y: Labels, int64 [N].
        norm: 'Linf', 'L2' or 'L1'.
        eps: Radius of the ball.
        device: Where the model is.
    """
    weights = None
    if isinstance(model, nn.Module):
        # Without names: a wrapper such as DataParallel changes them.
        weights = _sha256([*model.state_dict().values(), *model.buffers()])
    first = x[:_PROBES].to(device)
    # Of every GPU, since the seed moves them all.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count() if first.is_cuda else 0)):
        (outputs, gradients), again = _probe(logits, first), _probe(logits, first)
    steady = _close(outputs, again[0])
    return RunIdentity(
        norm,
        float(eps),
        images=_sha256([x, y]),
        weights=weights,
        outputs=outputs if steady else None,
        gradients=gradients if steady and _close(gradients, again[1]) else None,
    )


def _sha256(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _probe(logits: Callable[[Tensor], Tensor], x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    """A weighted sum of each image's logits, and the norm of its gradient: unlike a loss's, it cannot vanish."""
    torch.manual_seed(0)  # noise of another size is another model
    with torch.enable_grad():
        inputs = x.detach().clone().requires_grad_()
        answer = logits(inputs * 1.0)  # a copy: a model may write into what it is given
        sums = answer.double() @ torch.arange(1, answer.shape[1] + 1, device=x.device, dtype=torch.float64).sin()
        try:
            (gradient,) = torch.autograd.grad(sums.sum(), inputs)
        except RuntimeError:  # a model without a gradient can be attacked by Square
            return tuple(sums.tolist()), None
    return tuple(sums.tolist()), tuple(gradient.double().flatten(1).norm(dim=1).tolist())


def _close(one: tuple[float, ...] | None, other: tuple[float, ...] | None) -> bool:
    """Whether figures agree, relative to the largest of them; what is not known agrees with everything."""
    if one is None or other is None:
        return True
    a, b = torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
    largest = float(torch.cat([a, b]).abs().max())
    return torch.allclose(a, b, rtol=0, atol=_SAME * largest, equal_nan=True)
