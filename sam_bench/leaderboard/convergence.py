"""Where runs end that we made ourselves. A card of the same run that ends far from them is refused."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sam_bench.errors import InputError
from sam_bench.leaderboard.labels import percent
from sam_bench.records import ModelCard, read_record
from sam_bench.records.fields import Fraction01, Record, Sha256

_TABLE = Path(__file__).with_name("published_runs.json")
_WORDS = {"name", "summary", "good_for", "source"}  # what a recipe says of itself decides nothing


class PublishedRun(Record):
    """A training that we repeated over seeds, and the clean accuracies that another seed can come to.

    The band is the mean ± 5 standard deviations of a seed. The deviation is pooled over all published runs, as three
    seeds alone tell too little of it.
    """

    run: Sha256
    recipe: str
    seeds: int = Field(ge=3)
    low: Fraction01
    high: Fraction01


class PublishedRuns(Record):
    """The file of published runs."""

    version: Literal[1] = 1
    command: str
    runs: tuple[PublishedRun, ...]


def run_of(card: ModelCard) -> dict[str, Any]:
    """What decides where a run ends, up to its seed: recipe, network, epochs and images."""
    return {
        "recipe": card.recipe.model_dump(mode="json", exclude=_WORDS, exclude_none=True),
        "architecture": card.architecture.sha256,
        "epochs": card.epochs,
        "train_examples": card.train_examples,
        "train": card.train_fingerprint,
        "test": card.test_fingerprint,
        "extra_data": card.extra_data.fingerprint if card.extra_data else None,
        "init": card.init_sha256,
    }


def run_digest(card: ModelCard) -> str:
    """SHA-256 of `run_of`."""
    return hashlib.sha256(json.dumps(run_of(card), sort_keys=True).encode()).hexdigest()


@cache
def published_runs() -> dict[str, PublishedRun]:
    """All of them, by their digest."""
    return {each.run: each for each in read_record(_TABLE, PublishedRuns).runs}


def check_convergence(card: ModelCard) -> str:
    """Refuse a card whose clean accuracy no seed of the same run comes to.

    Returns:
        What was found; '' where the run is not a published one.

    Raises:
        InputError: Says what the card states and where such runs end.
    """
    known = published_runs().get(run_digest(card))
    if known is None:
        return ""
    band = f"{percent(known.low)} to {percent(known.high)} %, by {known.seeds} published runs"
    if not known.low <= card.clean_accuracy <= known.high:
        raise InputError(
            f"the card of {card.name} states a clean accuracy of {percent(card.clean_accuracy)} %, but this run of "
            f"{card.recipe.name} ends at {band}"
        )
    return f"its clean accuracy of {percent(card.clean_accuracy)} % lies within {band}"
