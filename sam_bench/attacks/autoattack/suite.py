"""What each version of AutoAttack runs: attacks in order, restarts, targets, iterations.

The constants are those of Croce and Hein 2020 (arXiv 2003.01690) as their implementation has them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from sam_bench.attacks.events import AttackWarning
from sam_bench.attacks.warnings import few_classes
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

FEW_CLASSES = "`version='custom'` `suite='apgd-ce,fab-t,square'`"
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
class AttackConfig:
    """One attack of the ensemble.

    Attributes:
        attack: Its name.
        restarts_or_targets: Restarts, or target classes for a targeted attack: an example goes through them one by one.
        iterations: Of one trial: steps, or queries for Square.
        eot: Passes over which a gradient is averaged, for models that are random.
        widened: APGD in L1: begin in balls of three and two times the radius.
    """

    attack: str
    restarts_or_targets: int
    iterations: int
    eot: int = 1
    widened: bool = False

    @property
    def targeted(self) -> bool:
        """Whether a trial is a target class."""
        return self.attack.endswith("-t")


def build_suite(version: Version, suite: Iterable[str] = (), *, norm: Norm = "Linf") -> list[AttackConfig]:
    """The attacks of a version, with upstream's settings.

    Args:
        version: One of `Version`.
        suite: For version custom: which attacks, in order. After `fab-t`, `fab` has one trial: upstream's is one
            object, in which `fab-t` sets the restarts to one.
        norm: What the ball is in; version standard has other settings in L1.

    Raises:
        InputError: An unknown attack, none for version custom, or some for another version.
    """
    chosen = attacks_of(version, suite)
    configs = [_config(attack, version) for attack in chosen]
    if "fab-t" in chosen:
        after = chosen.index("fab-t")
        configs[after:] = [
            replace(config, restarts_or_targets=1) if config.attack == "fab" else config for config in configs[after:]
        ]
    if (version, norm) != ("standard", "L1"):
        return configs
    return [
        replace(config, restarts_or_targets=_L1_TRIALS[config.attack], widened=True)
        if config.attack in _L1_TRIALS
        else config
        for config in configs
    ]


def attacks_of(version: Version, suite: Iterable[str] = ()) -> list[str]:
    """Names of a version's attacks, in order; arguments and errors as in `build_suite`."""
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


def _config(attack: str, version: str) -> AttackConfig:
    if attack == "square":
        return AttackConfig(attack, restarts_or_targets=1, iterations=5000)
    if attack.endswith("-t"):
        return AttackConfig(attack, restarts_or_targets=TARGETS, iterations=100)
    return AttackConfig(
        attack,
        restarts_or_targets=_RESTARTS[version][attack],
        iterations=100,
        eot=_EOT_OF_RAND if version == "rand" else 1,
    )


def fit_to_classes(configs: list[AttackConfig], classes: int) -> tuple[list[AttackConfig], list[AttackWarning]]:
    """The attacks that a model with so many classes can be attacked with, and a warning where targets are lacking.

    Raises:
        InputError: Too few classes for the DLR loss.
    """
    needed = classes_needed([config.attack for config in configs])
    if classes < needed:
        raise InputError(
            f"autoattack with {', '.join(config.attack for config in configs)} needs at least {needed} classes for its "
            f"DLR loss and the model has {classes}: use `attack='autoattack'` {FEW_CLASSES}"
        )
    short = [config.attack for config in configs if config.targeted and config.restarts_or_targets > classes - 1]
    fitted = [
        replace(config, restarts_or_targets=classes - 1) if config.attack in short else config for config in configs
    ]
    return fitted, [few_classes(classes, short)] if short else []


def classes_needed(attacks: list[str]) -> int:
    """Fewest classes: DLR divides by a gap from the 1st to the 3rd logit, its targeted form by one to the 4th."""
    return 4 if "apgd-t" in attacks else 3 if "apgd-dlr" in attacks else 2
