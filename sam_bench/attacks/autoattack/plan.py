"""What each version of AutoAttack runs: attacks in order, restarts, targets, iterations.

The constants are those of Croce and Hein 2020 (arXiv 2003.01690) as their implementation has them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from sam_bench.attacks.doubts import few_classes
from sam_bench.errors import InputError, unknown_name
from sam_bench.records import Norm

Version = Literal["standard", "plus", "rand", "custom"]

ATTACKS_OF: dict[str, list[str]] = {
    "standard": ["apgd-ce", "apgd-t", "fab-t", "square"],
    "plus": ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"],
    "rand": ["apgd-ce", "apgd-dlr"],
}
"""What each named version runs, in order."""

KNOWN = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
"""Every attack that a custom version can be made of."""

FEW_CLASSES = "--version custom --suite apgd-ce,fab-t,square"
"""What of AutoAttack there is for two classes and more, in every norm."""

TARGETS = 9
"""Classes that each targeted attack aims at, from the second most likely down."""

_L1_TRIALS = {"apgd-ce": 5, "apgd-t": 5}
"""Of version standard in L1: restarts and targets of APGD, which begins in larger balls there."""

_RESTARTS: dict[str, dict[str, int]] = {
    "standard": {"apgd-ce": 1, "apgd-dlr": 1, "fab": 1},
    "plus": {"apgd-ce": 5, "apgd-dlr": 5, "fab": 5},
    "rand": {"apgd-ce": 1, "apgd-dlr": 1},
    # Upstream's constructor, which a custom version leaves as it is.
    "custom": {"apgd-ce": 5, "apgd-dlr": 5, "fab": 5},
}
_EOT_OF_RAND = 20


@dataclass(frozen=True)
class Part:
    """One attack of the ensemble.

    Attributes:
        attack: Its name.
        trials: Restarts, or target classes for a targeted attack: an example goes through them one by one.
        iterations: Of one trial: steps, or queries for Square.
        eot: Passes over which a gradient is averaged, for models that are random.
        widened: APGD in L1: begin in balls of three and two times the radius.
    """

    attack: str
    trials: int
    iterations: int
    eot: int = 1
    widened: bool = False

    @property
    def targeted(self) -> bool:
        """Whether a trial is a target class."""
        return self.attack.endswith("-t")


def plan(version: Version, suite: Iterable[str] = (), *, norm: Norm = "Linf") -> list[Part]:
    """The parts of a version, with upstream's settings.

    Args:
        version: One of `Version`.
        suite: For version custom: which attacks, in order. After `fab-t`, `fab` has one trial: upstream's is one
            object, in which `fab-t` sets the restarts to one.
        norm: What the ball is in; version standard has other settings in L1.

    Raises:
        InputError: An unknown attack, none for version custom, or some for another version.
    """
    chosen = attacks_of(version, suite)
    parts = [_part(attack, version) for attack in chosen]
    if "fab-t" in chosen:
        after = chosen.index("fab-t")
        parts[after:] = [replace(part, trials=1) if part.attack == "fab" else part for part in parts[after:]]
    if (version, norm) != ("standard", "L1"):
        return parts
    return [
        replace(part, trials=_L1_TRIALS[part.attack], widened=True) if part.attack in _L1_TRIALS else part
        for part in parts
    ]


def attacks_of(version: Version, suite: Iterable[str] = ()) -> list[str]:
    """Names of a version's attacks, in order; arguments and errors as in `plan`."""
    given = list(suite)
    if version != "custom":
        if given:
            raise InputError(
                f"suite: version {version} has its own attacks; give {', '.join(given)} with version custom"
            )
        return list(ATTACKS_OF[version])
    if not given:
        raise InputError(f"suite: version custom needs at least one of {', '.join(KNOWN)}")
    for attack in given:
        if attack not in KNOWN:
            raise InputError(f"suite: {unknown_name('attack', attack, KNOWN)}")
    if len(set(given)) < len(given):
        raise InputError(f"suite: {', '.join(given)} names an attack twice; name each once")
    return given


def _part(attack: str, version: str) -> Part:
    if attack == "square":
        return Part(attack, trials=1, iterations=5000)
    if attack.endswith("-t"):
        return Part(attack, trials=TARGETS, iterations=100)
    return Part(attack, trials=_RESTARTS[version][attack], iterations=100, eot=_EOT_OF_RAND if version == "rand" else 1)


def fit_to_classes(parts: list[Part], classes: int) -> tuple[list[Part], list[str]]:
    """The parts a model with so many classes can be attacked with, and the doubt to state where targets are lacking.

    Raises:
        InputError: Too few classes for the DLR loss.
    """
    needed = classes_needed([part.attack for part in parts])
    if classes < needed:
        raise InputError(
            f"autoattack with {', '.join(part.attack for part in parts)} needs at least {needed} classes for its DLR "
            f"loss and the model has {classes}: use --attack autoattack {FEW_CLASSES}"
        )
    short = [part.attack for part in parts if part.targeted and part.trials > classes - 1]
    fitted = [replace(part, trials=classes - 1) if part.attack in short else part for part in parts]
    return fitted, [few_classes(classes, short)] if short else []


def classes_needed(attacks: list[str]) -> int:
    """Fewest classes: DLR divides by a gap from the 1st to the 3rd logit, its targeted form by one to the 4th."""
    return 4 if "apgd-t" in attacks else 3 if "apgd-dlr" in attacks else 2
