"""Reasons to doubt the accuracy shown, in sentences that say what they mean and what to do.

The codes stay the same: `randomized`, `probabilities`, `dynamic`, `changes-input`, `batch-dependent`,
`zero-gradients`, `nan-gradients`, `nan-logits`, `nan-candidates`, `square-better`, `few-classes`, `upper-bound`,
`sampled`, `bf16`, `second-opinion`; `upstream` marks one we do not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sam_bench.attacks.events import AttackWarning
from sam_bench.records import Sampled, accuracies

_SENTENCES = {
    "randomized": "the model gives different outputs for the same input, so the accuracy shown means little, as an "
    "attack may have missed it or met it by chance; run autoattack in version rand, which averages over the randomness",
    "probabilities": "the model's outputs are non-negative and sum to one, which flattens the gradients the "
    "attacks follow; give the model without its softmax",
    "dynamic": "the model computes gradients in its forward pass, which no attack here attacks through; "
    "only an attack adapted to this defence can tell how robust it is",
    "changes-input": "the model writes into its input, as x.sub_(mean) does; it was given copies here, so that its "
    "verdicts are those of the same model written out of place, but code that gives it none attacks other images",
    "batch-dependent": "the model's answer to an image depends on the other images of its batch, as after a BatchNorm "
    "without running statistics, so the accuracy changes with the batch size and the order; give the model fixed "
    "statistics",
    "zero-gradients": "on some inputs the gradient is exactly zero (saturation or quantisation), where "
    "gradient-based attacks stand still; trust the accuracy only if Square or a transfer attack confirms it",
    "nan-gradients": "on some inputs the gradient is NaN or infinite, as that of a square root is at 0, where attacks "
    "that follow it stand still or miss the way; trust the accuracy only if Square or a transfer attack confirms it, "
    "and mend the model",
    "nan-logits": "on some inputs the model's logits have NaN in them, which counts as a wrong answer whatever the "
    "label; mend the model before its accuracy is compared with others",
    "nan-candidates": "the attack proposed images with NaN or infinite pixels, and these may stay where they are, so "
    "it may have missed what it looks for; mend the attack before its accuracy is believed",
    "square-better": "Square, which uses no gradients, lowered the accuracy by a further {drop} of all "
    "examples, a sign of masked gradients; run Square longer or an attack adapted to the model",
    "upper-bound": "only {attacks} ran, so AutoAttack itself may find this model less robust, never more; "
    "do not rank this number against AutoAttack's",
    "sampled": "FAB-T and Square ran on a random sample of what APGD left, so AutoAttack itself may find this model "
    "less robust, by no more than the record says at its level; do not rank this number against AutoAttack's",
    "bf16": "adversarial examples were searched for in bfloat16 (each one found was checked in float32), which finds "
    "fewer of them than AutoAttack; do not rank this number against AutoAttack's",
    "second-opinion": "{other} broke a further {gap} of all examples, which {attack} had left standing, so the "
    "accuracy shown is too high; attack this model with what is adapted to it",
}

_SQUARE_GAIN = 0.002
"""How much lower Square may leave the accuracy than all attacks with gradients, as its authors have it."""

_GAP = 0.005
"""How much lower a second attack may leave the accuracy without a warning."""

# What upstream's sentence contains. The share of examples is taken from it.
_KNOWN = [
    (r"randomized defense", "randomized"),
    (r"probability distribution", "probabilities"),
    (r"dynamic defense", "dynamic"),
    (r"zero gradient", "zero-gradients"),
    (r"Square Attack has decreased .*? of (?P<drop>[\d.]+%)", "square-better"),
]


def warning(code: str, **values: str) -> AttackWarning:
    """A warning in full.

    Args:
        code: One of the codes above.
        values: What its sentence leaves open: `drop` for `square-better`, `attacks` for `upper-bound`, `attack`,
            `other` and `gap` for `second-opinion`.
    """
    return AttackWarning(code, _SENTENCES[code].format(**values))


def explain(messages: Iterable[str]) -> list[AttackWarning]:
    """Upstream's warnings in our words, each once, in the order they came.

    Args:
        messages: What upstream's checks said.
    """
    return list(dict.fromkeys(map(_explain_one, messages)))


def _explain_one(message: str) -> AttackWarning:
    for pattern, code in _KNOWN:
        found = re.search(pattern, message)
        if found:
            return warning(code, **found.groupdict())
    return AttackWarning("upstream", " ".join(message.split()))


def square_warnings(verdicts: list[str], attacks: list[str], sampled: Sampled | None = None) -> list[AttackWarning]:
    """The warning about gradients where Square lowered the accuracy and attacks that follow them did not.

    Args:
        verdicts: Of all examples, those that are misclassified without an attack among them.
        attacks: What ran, in order.
        sampled: The sample, if Square ran on no others: what it broke there stands for all that APGD left.
    """
    if not verdicts or "square" not in attacks or len(attacks) < 2:
        return []
    after = accuracies(verdicts, attacks)["accuracy_after"]
    others = min(share for name, share in after.items() if name != "square")
    each = sampled.of / len(sampled.examples) if sampled is not None and sampled.examples else 1.0
    if after["square"] >= others - _SQUARE_GAIN / each:
        return []
    return [warning("square-better", drop=f"{(others - after['square']) * each:.2%}")]


def few_classes(classes: int, attacks: list[str]) -> AttackWarning:
    """The warning about targeted attacks that cannot have all their targets."""
    return AttackWarning(
        "few-classes",
        f"with {classes} classes {' and '.join(attacks)} aim at all {classes - 1} others, fewer than "
        "usual, so this is AutoAttack as far as it goes here; say so where numbers are compared",
    )


def second_attack_warnings(attack: str, other: str, gap: float) -> list[AttackWarning]:
    """The warning about an attack after which another one still broke more than half a point of the examples.

    Args:
        attack: The first.
        other: The second.
        gap: Share of all examples that the second broke and the first did not.
    """
    return [warning("second-opinion", attack=attack, other=other, gap=f"{gap:.2%}")] if gap > _GAP else []
