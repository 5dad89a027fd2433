"""What makes an accuracy doubtful: the triggers of AutoAttack's own checks, with the words of `warnings`.

One is ours: whether an answer depends on the other examples of its batch. Unlike upstream's, the check for
dynamic models counts anew for each model and gives debuggers and coverage tools their trace function back.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from sam_bench.attacks.events import AttackWarning, Examples
from sam_bench.attacks.verify import SMALLEST_BATCH, pad
from sam_bench.attacks.warnings import warning

_RANDOM_PASSES = 5
_RANDOM_DIFFERENCE = 1e-4
_PROBABILITY_SLACK = 1e-5
_DIFFERENTIATES = frozenset({"grad", "backward", "_make_grads"})


@torch.no_grad()
def model_warnings(
    model: nn.Module,
    examples: Examples,
    *,
    batch_size: int,
    device: torch.device,
    random_expected: bool = False,
) -> list[AttackWarning]:
    """What can be told from a few passes of the model over the first batch.

    Args:
        model: As for `Attack.events`.
        examples: What is to be attacked.
        batch_size: Examples at a time.
        device: Where the model is.
        random_expected: Leave out the check for randomness, as version rand does.
    """
    found = []
    x, y = (pad(each[:batch_size], SMALLEST_BATCH).to(device) for each in (examples.x, examples.y))
    outputs = [] if random_expected else [model(x) for _ in range(_RANDOM_PASSES)]
    random = random_expected or _are_random(outputs, y)
    if random and not random_expected:
        found.append(warning("randomized"))
    kept = len(x) if random else len(x) // 2
    # The others become black or white, whichever is farther from them. A random model is passed what upstream passes.
    logits = model(torch.cat([x[:kept], torch.full_like(x[kept:], float(x.mean() < 0.5))]))
    if not random and _farthest([outputs[-1][:kept], logits[:kept]]) > _RANDOM_DIFFERENCE:
        found.append(warning("batch-dependent"))
    if _are_probabilities(logits):
        found.append(warning("probabilities"))
    if _is_dynamic(model, x):
        found.append(warning("dynamic"))
    return found


def _are_random(outputs: list[Tensor], y: Tensor) -> bool:
    counts = {int((output.argmax(1) == y).sum()) for output in outputs}
    return len(counts) > 1 or _farthest(outputs) > _RANDOM_DIFFERENCE


def _farthest(outputs: list[Tensor]) -> float:
    """The largest distance between two logits of one example, each scaled to length 1."""
    unit = torch.stack([output / (output.norm(dim=1, keepdim=True) + 1e-10) for output in outputs])
    return float((unit[:, None] - unit[None]).norm(dim=-1).max())


def _are_probabilities(logits: Tensor) -> bool:
    slack = _PROBABILITY_SLACK
    in_range = bool(logits.max() < 1 + slack) and bool(logits.min() > -slack)
    return in_range and bool(((logits.sum(1) - 1).abs() < slack).all())


def _is_dynamic(model: nn.Module, x: Tensor) -> bool:
    """Whether the forward pass calls anything named like PyTorch's differentiation."""
    called: set[str] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_name in _DIFFERENTIATES:
            called.add(frame.f_code.co_name)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with torch.enable_grad():
            model(x)
    finally:
        sys.settrace(before)
    return bool(called)
