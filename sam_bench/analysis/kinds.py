"""What a model was trained with: which of the two axes was perturbed, and one colour for each answer."""

from __future__ import annotations

from collections.abc import Mapping

from sam_bench.records import ModelCard

KINDS = {"neither": "C7", "weights": "C0", "inputs": "C1", "both": "C3", "unknown": "C4"}
"""What was perturbed while the model learned, with its colour in the cycle of `figures.COLOURS`."""


def kinds_of(names: list[str], cards: Mapping[str, ModelCard]) -> dict[str, str]:
    """The kind of each model, a key of `KINDS`."""
    found = {}
    for name in names:
        card = cards.get(name)
        if card is None or card.imported:
            found[name] = "unknown"
            continue
        perturbed = [axis for axis in ("inputs", "weights") if getattr(card.recipe, axis).method != "none"]
        found[name] = "both" if len(perturbed) == 2 else perturbed[0] if perturbed else "neither"
    return found
