"""AutoAttack's doubts about its own result, in sentences that say what they mean and what to do.

Each begins with a code that stays the same: `randomized`, `probabilities`, `dynamic`,
`zero-gradients`, `square-better`, `few-classes`; `upstream` marks one we do not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# What upstream's sentence contains, and ours. The share of examples is taken from upstream's.
_KNOWN: list[tuple[str, str]] = [
    (
        r"randomized defense",
        "randomized: the model gives different outputs for the same input, so the accuracy shown is too high; "
        "run version rand, which averages over the randomness",
    ),
    (
        r"probability distribution",
        "probabilities: the model's outputs are non-negative and sum to one, which flattens the gradients the "
        "attacks follow; give the model without its softmax",
    ),
    (
        r"dynamic defense",
        "dynamic: the model computes gradients in its forward pass, which AutoAttack does not attack through; "
        "only an attack adapted to this defence can tell how robust it is",
    ),
    (
        r"zero gradient",
        "zero-gradients: on some inputs the gradient is exactly zero (saturation or quantisation), where "
        "gradient-based attacks stand still; trust the accuracy only if Square or a transfer attack confirms it",
    ),
    (
        r"Square Attack has decreased .*? of (?P<drop>[\d.]+%)",
        "square-better: Square, which uses no gradients, lowered the accuracy by a further {drop} of the correctly "
        "classified examples, a sign of masked gradients; run Square longer or an attack adapted to the model",
    ),
]


def explain(messages: Iterable[str]) -> list[str]:
    """Upstream's warnings in our words, each once, in the order they came.

    Args:
        messages: What upstream's checks said.
    """
    return list(dict.fromkeys(map(_explain_one, messages)))


def _explain_one(message: str) -> str:
    for pattern, sentence in _KNOWN:
        found = re.search(pattern, message)
        if found:
            return sentence.format(**found.groupdict())
    return f"upstream: {' '.join(message.split())}"


def few_classes(classes: int, attacks: list[str]) -> str:
    """The doubt about targeted attacks that cannot have all their targets."""
    return (
        f"few-classes: with {classes} classes {' and '.join(attacks)} aim at all {classes - 1} others instead of the "
        "usual 9, so this is AutoAttack as far as it goes here; say so where numbers are compared"
    )
