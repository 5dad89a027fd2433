"""Families of methods: models that differ in one strength, read from their recipes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sam_bench.errors import InputError
from sam_bench.leaderboard.labels import architecture_label, spelled
from sam_bench.records import ComponentSpec, ModelCard, Radius, Recipe

STANDARD = "standard"
"""The family of plain training. It is strength 0 of every other."""

# Training on PGD's examples is what papers call adversarial training, or AT.
_NAMES = {"pgd": "AT", "fgsm": "FGSM-RS"}


@dataclass(frozen=True)
class Strength:
    """Where a recipe stands in its family.

    Attributes:
        family: `SAM`, `AT`, `AT L2`, `SAM rho=0.1 + AT`; `standard` for plain training.
        text: The strength as it was written (`8/255`); empty where the method has none.
        value: The strength as a number; None where the method has none.
    """

    family: str
    text: str
    value: float | None


def strength(recipe: Recipe) -> Strength:
    """The family and strength of a recipe.

    The strength is `eps` if inputs are perturbed, else `std` of noise, else the first number of another package's
    perturbation of inputs, else `rho`. If inputs and weights are both perturbed, `rho` becomes part of the family's
    name: a grid of both is one curve over eps for each rho.
    """
    inputs, weights = recipe.inputs, recipe.weights
    numbers = [key for key, value in inputs.settings.items() if type(value) in (int, float)]
    settings = weights.settings if inputs.method == "none" else inputs.settings
    name = " + ".join(part for part in (_weights_name(recipe), _inputs_name(recipe)) if part)
    for setting in ("eps", "std", *numbers, "rho"):
        if (value := settings.get(setting)) is not None:
            return Strength(name, f"{setting} {value}", float(Radius(value)))
    return Strength(name or STANDARD, "", None if name else 0.0)


def _inputs_name(recipe: Recipe) -> str:
    """The side of the inputs, and what is not the weights' side: objective and average."""
    parts = []
    inputs, objective = recipe.inputs, recipe.objective
    if objective.method != "cross-entropy":
        parts.append(spelled(objective.method))  # TRADES and MART name their search too
    elif objective.settings.get("label_smoothing"):
        parts.append(f"label smoothing {objective.settings['label_smoothing']:g}")
    if inputs.method != "none" and objective.method == "cross-entropy":
        parts.append(_NAMES.get(inputs.method, spelled(inputs.method)))
    if inputs.settings.get("norm", "Linf") != "Linf":
        parts.append(inputs.settings["norm"])
    name = " ".join(parts)
    return " + ".join(part for part in (name, _method(recipe.averaging)) if part)


def _weights_name(recipe: Recipe) -> str:
    name = _method(recipe.weights)
    both = recipe.inputs.method != "none" and "rho" in recipe.weights.settings
    return f"{name} rho={recipe.weights.settings['rho']:g}" if both else name


def _method(part: ComponentSpec) -> str:
    if part.method == "none":
        return ""
    return _NAMES.get(part.method, "noise in weights" if part.method == "noise" else spelled(part.method))


@dataclass(frozen=True)
class Setting:
    """What models of one curve share besides the method: network, training images and epochs."""

    architecture: str
    train_fingerprint: str
    epochs: int

    @classmethod
    def of(cls, card: ModelCard) -> Setting:
        """The setting that a card tells of.

        Raises:
            InputError: The model was imported: nothing is known of its training.
        """
        if card.train_fingerprint is None:
            raise InputError(f"{card.name} was trained elsewhere, so its method and cost are not known: leave it out")
        return cls(architecture_label(card.architecture), card.train_fingerprint, card.epochs)


def told_apart(settings: Sequence[Setting]) -> dict[Setting, str]:
    """What to add to a family's name so that settings are told apart; nothing for the most frequent one."""
    usual = Counter(settings).most_common(1)[0][0]
    texts = {}
    for each in dict.fromkeys(settings):
        parts = []
        if each.architecture != usual.architecture:
            parts.append(each.architecture)
        if each.epochs != usual.epochs:
            parts.append(f"{each.epochs} epochs")
        if each.train_fingerprint != usual.train_fingerprint:
            parts.append(f"training images {each.train_fingerprint[:6]}")
        texts[each] = f" ({', '.join(parts)})" if parts else ""
    return texts
