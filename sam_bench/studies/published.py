"""The evaluation script of the published code, as it is: AutoAttack is given normalised images.

Seen in `weizeming/SAM_AT` and in the code of the extension: images are normalised first, and the network without its
normalisation goes to AutoAttack. AutoAttack takes images to lie in [0, 1] and clips every candidate to it. A
normalised image has values from about -2 to 2. So most of what the network sees is clipped away, and the radius means
another length in pixels. For CIFAR-100 the script uses CIFAR-10's mean and standard deviation.

Nothing here is a way to evaluate a model. It shows how much the fault changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sam_bench.attacks.autoattack.suite import attacks_of
from sam_bench.attacks.verify import classes_of
from sam_bench.data import known_stats
from sam_bench.integrations import upstream
from sam_bench.models import NormalizedModel
from sam_bench.modes import attacking
from sam_bench.records import MISCLASSIFIED, ROBUST, ModelCard, Norm, Radius

_BATCH = 128  # the script's
_SEED = 0  # the script has none: AutoAttack then takes the time


def constants(card: ModelCard) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that the script normalises with: the model's own, and CIFAR-10's for CIFAR-100."""
    if card.dataset == "cifar100":
        cifar10 = known_stats("cifar10")
        assert cifar10 is not None
        return cifar10
    return card.architecture.mean, card.architecture.std


def evaluated(model: nn.Module, x: Tensor, y: Tensor, *, card: ModelCard, norm: Norm, eps: Radius) -> dict[str, Any]:
    """What the script finds on a model of ours, with AutoAttack's authors' implementation.

    Args:
        model: A `NormalizedModel` of the zoo; its network is attacked without the normalisation.
        x: Images, float32 [N, C, H, W] in [0, 1], on the model's device.
        y: Labels, int64 [N].
        card: The model's.
        norm: Norm of the ball.
        eps: As published, without regard to the normalisation.

    Returns:
        The fields of a `Fault` that are found here.
    """
    assert isinstance(model, NormalizedModel)
    mean, std = constants(card)
    shape = (1, -1, 1, 1)
    normalised = (x - torch.tensor(mean, device=x.device).view(shape)) / torch.tensor(std, device=x.device).view(shape)
    network = model.net
    with attacking(network), upstream.gradients_kept(network):
        clean = _right(network, normalised, y)
        clipped = _right(network, normalised.clamp(0, 1), y)
        suite = upstream.build(network, norm=norm, eps=float(eps), seed=_SEED, version="standard", device=x.device)
        verdicts = [ROBUST if right else MISCLASSIFIED for right in clean.tolist()]
        robust = clean.clone()
        for attack in attacks_of("standard", ()):
            for rows in robust.nonzero().flatten().split(_BATCH):
                candidates = upstream.run_attack(suite, attack, normalised[rows], y[rows])
                broken = rows[~_right(network, candidates, y[rows])]
                robust[broken] = False
                for index in broken.tolist():
                    verdicts[index] = attack
    return {
        "mean": mean,
        "std": std,
        "engine": upstream.package_and_version(),
        "seed": _SEED,
        "clean": clean.tolist(),
        "clipped": clipped.tolist(),
        "verdicts": verdicts,
    }


@torch.no_grad()
def _right(network: nn.Module, images: Tensor, y: Tensor) -> Tensor:
    """bool [N]: which the network gets right."""
    return torch.cat([classes_of(network(some)) for some in images.split(_BATCH)]) == y
