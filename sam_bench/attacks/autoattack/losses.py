"""What the attacks maximise: cross-entropy, the difference-of-logits ratio, and its targeted form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_TINY = 1e-12


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy per example; logits [B, classes], labels int64 [B], value [B]."""
    return F.cross_entropy(logits, label, reduction="none")


def dlr(logits: Tensor, label: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, equation 6), invariant to shift and scale; [B].

    Positive where the example is misclassified.
    """
    ordered, order = logits.sort(dim=1)
    first = (order[:, -1] == label).to(logits.dtype)
    own = logits.gather(1, label[:, None]).squeeze(1)
    other = ordered[:, -2] * first + ordered[:, -1] * (1.0 - first)
    return -(own - other) / (ordered[:, -1] - ordered[:, -3] + _TINY)


def dlr_targeted(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """The same towards one class (Croce and Hein 2020, equation 7); needs four classes; [B]."""
    ordered = logits.sort(dim=1)[0]
    own = logits.gather(1, label[:, None]).squeeze(1)
    wanted = logits.gather(1, target[:, None]).squeeze(1)
    return -(own - wanted) / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + _TINY)


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """The label's logit less the largest other; negative where the example is misclassified; [B]."""
    own = logits.gather(1, label[:, None])
    others = logits.scatter(1, label[:, None], -torch.inf)
    return own.squeeze(1) - others.max(dim=1)[0]
