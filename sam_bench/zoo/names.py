"""What timm and RobustBench call a zoo model.

timm's names know no upper case, no '-' and no '.' (it cuts a name at the first dot and takes the
rest for a tag). RobustBench asks timm for `<name>_<dataset>_<threat>`, lower-cased, '-' as '_', the
dots left in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, get_args

from sam_bench.errors import InputError
from sam_bench.records import ModelCard, Norm, RobustBenchDataset


class Named(Protocol):
    """What a model is called by: a card, or what is known of one before there is a model."""

    @property
    def name(self) -> str: ...

    @property
    def dataset(self) -> str: ...

    @property
    def threat(self) -> Norm: ...

    @property
    def robustbench_dataset(self) -> RobustBenchDataset | None: ...


@dataclass(frozen=True)
class Place:
    """Where a model is going to be in a zoo."""

    name: str
    dataset: str
    threat: Norm
    robustbench_dataset: RobustBenchDataset | None = None


def timm_form(text: str) -> str:
    """A part of a name as timm can keep it: lower case, '-' as '_', without dots."""
    return text.lower().replace("-", "_").replace(".", "")


def timm_name(card: Named) -> str:
    """The card's timm name, `<name>_<dataset>_<threat>`: what `timm.create_model` takes."""
    return f"{timm_form(card.name)}_{timm_form(card.dataset)}_{timm_form(card.threat)}"


def robustbench_dataset(card: Named) -> str | None:
    """The RobustBench data set under which the model is found there; None if there is none."""
    if card.robustbench_dataset is not None:
        return card.robustbench_dataset
    return card.dataset if card.dataset in get_args(RobustBenchDataset) else None


def timm_names(card: Named) -> list[str]:
    """Every dot-free name the card is registered under: its own, then the one RobustBench asks for."""
    names = [timm_name(card)]
    listed = robustbench_dataset(card)
    if listed is not None:
        names.append(f"{timm_form(card.name)}_{listed}_{timm_form(card.threat)}")
    return list(dict.fromkeys(names))


def dotted_names(card: Named) -> list[tuple[str, str]]:
    """The same names with the dots of the model's name left in, as timm splits them.

    Returns:
        Pairs of stem and tag, parallel to `timm_names`: `sam-rho0.2` on cifar10 gives
        ("sam_rho0", "2_cifar10_linf"). Empty for a name without dots.
    """
    stem, dot, rest = card.name.lower().replace("-", "_").partition(".")
    if not dot:
        return []
    dotless = timm_form(card.name)
    return [(stem, rest + name.removeprefix(dotless)) for name in timm_names(card)]


def robustbench_name(card: ModelCard) -> str | None:
    """The `model_name` that always finds the card through `robustbench.load_model`; None if nothing does.

    The card's own name works there too, also with a dot, unless its part before the dot is the name
    of one of timm's own models.
    """
    return None if robustbench_dataset(card) is None else card.name.replace(".", "")


def full_name(card: Named) -> str:
    """`<dataset>/<threat>/<name>`, which names exactly one card of a zoo."""
    return f"{card.dataset}/{card.threat}/{card.name}"


def ambiguous(name: str, found: list[ModelCard]) -> InputError:
    """The error for a name that several cards have."""
    listing = ", ".join(full_name(card) for card in found)
    return InputError(f"{name!r} names {len(found)} models; say which: {listing}")


def already_in(zoo: Path, place: Named, how: str = "") -> InputError:
    """The error for a name that the zoo has already; `how` says what is different."""
    name = full_name(place)
    return InputError(
        f"{name} is in the zoo {zoo} already{how}: choose another `name` or `zoo`, or take it out first "
        f"(sam-bench zoo remove {name})"
    )
