"""What a listing shows and timm is told of every card, without parsing them all: a file in the zoo keeps it.

An entry counts as long as its card has the same size and time of change. Small zoos have no such file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from sam_bench.errors import SamBenchError
from sam_bench.records import ModelCard, Norm, RobustBenchDataset, write_atomic

INDEX = ".index.json"
WORTH_IT = 200
"""Cards from which on the file is kept."""

_VERSION = 2


@dataclass(frozen=True)
class Listed:
    """A card as a listing shows it, and as timm is told of it.

    Attributes:
        name: The model's name.
        dataset: Our name of the data set.
        threat: The threat model it is listed under.
        robustbench_dataset: The RobustBench data set whose inputs and classes it shares.
        clean_accuracy: In [0, 1].
        passes: Forward-backward passes per training example; None if not known.
        architecture: Its name.
        parameters: How many are trainable.
        num_classes: How many it knows.
        in_channels: Of its images.
        image_size: Of its images, in pixels.
        license: Of its weights.
        weights: Name of their file.
    """

    name: str
    dataset: str
    threat: Norm
    robustbench_dataset: RobustBenchDataset | None
    clean_accuracy: float
    passes: float | None
    architecture: str
    parameters: int
    num_classes: int
    in_channels: int
    image_size: int
    license: str
    weights: str

    @classmethod
    def of(cls, card: ModelCard) -> Listed:
        """What is shown of a card."""
        where = (card.name, card.dataset, card.threat, card.robustbench_dataset)
        network = card.architecture
        takes = (network.num_classes, network.in_channels, network.image_size)
        shown = (card.clean_accuracy, card.passes, network.name, card.parameters)
        return cls(*where, *shown, *takes, card.license, card.weights.file)


def listed(root: Path, read: Callable[[Path], ModelCard | None]) -> list[Listed]:
    """Every usable card of a zoo, by data set, threat model and name.

    Args:
        root: The zoo's folder.
        read: Reads a card; None, after a warning, for one that cannot be used.
    """
    kept = _kept(root / INDEX)
    now: dict[str, list[Any]] = {}
    found = []
    for path, state in sorted(_card_files(root)):
        known = kept.get(path)
        if known is not None and known[:2] == list(state):
            now[path] = known
            found.append(Listed(*known[2:]))
            continue
        card = read(root / path)
        if card is not None:
            found.append(Listed.of(card))
            now[path] = [*state, *astuple(found[-1])]
    if now != kept and len(now) >= WORTH_IT:
        with suppress(SamBenchError):  # somebody else's zoo, which we may only read
            write_atomic(root / INDEX, json.dumps({"version": _VERSION, "cards": now}, separators=(",", ":")))
    return found


def _card_files(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Path below the root, and time of change and size, of every card's file."""
    for folder in root.glob("*/*"):
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".json") and not entry.name.startswith("."):
                    state = entry.stat()
                    yield f"{folder.parent.name}/{folder.name}/{entry.name}", (state.st_mtime_ns, state.st_size)


def _kept(path: Path) -> dict[str, list[Any]]:
    """The file's entries; none if it is not there, damaged, or of another version."""
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != _VERSION:
            return {}
        cards: dict[str, list[Any]] = content["cards"]
        width = 2 + len(Listed.__dataclass_fields__)
        return cards if all(len(each) == width for each in cards.values()) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
