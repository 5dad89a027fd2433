"""An entry's card and weights: found in a zoo, read with care, and never trusted to be what the entry says."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from sam_bench import zoo as zoos
from sam_bench.errors import InputError
from sam_bench.leaderboard.entries import StoredEntry
from sam_bench.leaderboard.files import read_bytes, read_checked, shown
from sam_bench.records import NAME_PATTERN, ModelCard
from sam_bench.zoo.weights import state_dict_sha256, unpack

_LARGEST_WEIGHTS = 4 * 2**30


@dataclass(frozen=True)
class FoundCard:
    """What lies where an entry points for its card.

    Attributes:
        card: The card, if it is of the weights that the entry is about.
        missing: Why there is no such card; "" where there is.
        readable: Whether a card of some weights lies there.
    """

    card: ModelCard | None
    missing: str
    readable: bool


def find_card(stored: StoredEntry, zoo: Path | None) -> FoundCard:
    """The card that an entry points at.

    It is looked for in the folder that holds the leaderboards folder, and in the zoo; nowhere else.

    Args:
        stored: The entry.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.

    Raises:
        InputError: The path leads to no place where a zoo has this card, or to something else than a regular file.
    """
    evidence = stored.entry.sam_bench
    link = PurePosixPath(evidence.card)
    if not re.fullmatch(r"(?:\.\./)*[^\x00-\x1f\x7f]+", evidence.card) or link.is_absolute():
        raise InputError(f"{stored.path}: card {shown(evidence.card)!r} is not the relative path of a file")
    names = link.parts[-3:]
    if len(names) < 3 or names[2] != f"{evidence.name}.json" or not all(map(_is_name, (names[0], evidence.name))):
        raise InputError(
            f"{stored.path}: card {shown(evidence.card)!r} does not lead to <dataset>/<threat>/{evidence.name}.json of "
            "a zoo"
        )
    path = stored.card_path()
    try:
        real = path.resolve()
        there = real.exists()
    except (OSError, RuntimeError) as error:  # too long a name, links that go round
        problem = getattr(error, "strerror", None) or "its links go round"
        raise InputError(f"{stored.path}: card {shown(evidence.card)!r} cannot be found: {problem}") from error
    if not there:
        return FoundCard(None, "no card at hand", False)
    allowed = [stored.path.parents[2].resolve().parent, zoos.zoo_dir(zoo).resolve()]
    if not any(real.is_relative_to(folder) for folder in allowed):
        return FoundCard(None, "the card lies outside the zoo and was not read", False)
    card, _ = read_checked(path, ModelCard)
    if card.weights.sha256 != evidence.checkpoint_sha256:
        return FoundCard(None, "the card now describes other weights than the ones evaluated", True)
    return FoundCard(card, "", True)


def _is_name(text: str) -> bool:
    return re.fullmatch(NAME_PATTERN, text) is not None


def check_weights(card: ModelCard, card_path: Path) -> str:
    """A digest of the tensors of a card's weights; "" where their file is not at hand.

    Weights that are the same have the same digest, whatever their file is called and however it is laid out.

    Args:
        card: The card.
        card_path: Where it lies; the weights lie beside it.

    Raises:
        InputError: The file is not the one the card names, or its weights are no floating-point numbers.
    """
    path = card_path.with_name(card.weights.file)
    if not path.exists():
        return ""
    content = read_bytes(path, _LARGEST_WEIGHTS)
    found = hashlib.sha256(content).hexdigest()
    if found != card.weights.sha256:
        raise InputError(
            f"{path} is not what the card of {card.name} names (SHA-256 expected {card.weights.sha256}, found {found})"
        )
    state = unpack(content, str(path))
    for key, value in state.items():
        # Counts and positions are int64, as BatchNorm's; a weight never is.
        count = value.dtype == torch.int64 and not key.endswith((".weight", ".bias"))
        if not value.is_floating_point() and not count:
            kind = str(value.dtype).removeprefix("torch.")
            raise InputError(f"{path}: {shown(key)} is {kind}, not floating point: save the model's own weights")
    numbers = sum(value.numel() for value in state.values() if value.is_floating_point())
    if numbers < card.parameters:
        raise InputError(
            f"{path} holds {numbers:,} floating-point numbers, but the card of {card.name} states {card.parameters:,} "
            "parameters"
        )
    # float16 and counters decide nothing: the network computes in float32, and no answer depends on a count of batches.
    return state_dict_sha256({key: value.float() for key, value in state.items() if value.is_floating_point()})
