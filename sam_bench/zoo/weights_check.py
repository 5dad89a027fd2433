"""A card's weights and architecture: read, compared with what the card says, and made into a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sam_bench.errors import InputError, SamBenchError
from sam_bench.plugins import installed
from sam_bench.records import Architecture, ModelCard
from sam_bench.zoo.names import full_name
from sam_bench.zoo.weights import first_non_finite, fit, misfit, unpack


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a checkpoint.

    Attributes:
        check: What was looked at: "file", "size", "sha256", "format", "architecture" or "values".
        message: A sentence that names the file.
        expected: What the card says, where there is such a value.
        found: What is there instead.
    """

    check: str
    message: str
    expected: str | None = None
    found: str | None = None


def weights_file(name: str, sha256: str) -> str:
    """The file name that `Zoo.save` gives the weights of the model `name`."""
    # A file name is limited as a model's name is, and the digest and suffix add 21 characters.
    stem = name if len(name) <= 79 else f"{name[:70]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{stem}.{sha256[:8]}.safetensors"


def names_its_own_weights(card: ModelCard) -> bool:
    """Whether the card's weights file has the name that `Zoo.save` gave it, and not another card's."""
    return card.weights.file == weights_file(card.name, card.weights.sha256)


def build(architecture: Architecture) -> nn.Module:
    """The network without weights, as `sam_bench.models.create_model` makes it."""
    # Imported late: that room imports timm, and importing timm registers the zoo's cards.
    from sam_bench.models import create_model

    return create_model(architecture)


def _built(card: ModelCard) -> nn.Module:
    """The card's network without weights; an error names the card's packages that are missing here."""
    try:
        return build(card.architecture)
    except InputError as error:
        missing = [f"{name} {version}" for name, version in card.packages.items() if not installed(name)]
        if not missing:
            raise
        raise InputError(
            f"{error} The card names packages that are not installed here: {', '.join(missing)}"
        ) from error


def load_card(card: ModelCard, folder: Path) -> nn.Module:
    """The model of a card whose weights lie in `folder`, on the CPU, in eval mode; inputs in [0, 1].

    Raises:
        SamBenchError: The weights are missing, or weights or architecture are not those that were saved.
        InputError: The weights do not fit the architecture.
    """
    path = folder / card.weights.file
    try:
        content = read_weights(path)
    except OSError as error:
        raise SamBenchError(f"cannot read the weights of {full_name(card)}, {path}: {error.strerror}") from error
    # The bytes that are hashed are the bytes that are used: the file is read once.
    for problem in (*_altered_weights(card, path, content), *_altered_architecture(card)):
        if problem.check != "size":  # the checksum says it better
            raise SamBenchError(problem.message)
    module = _built(card)
    fit(module, unpack(content, str(path)), str(path), f"{card.architecture.name} of {full_name(card)}")
    return module.eval()


def read_weights(path: Path) -> bytes:
    """The bytes of a weights file.

    Raises:
        OSError: It cannot be read, or is a pipe or a device, which might never end.
    """
    if path.exists() and not path.is_file():
        raise OSError(0, "it is no regular file")
    return path.read_bytes()


def problems_of(card: ModelCard, path: Path) -> Iterator[Problem]:
    """Everything that is wrong with a card's weights at `path`, and with its architecture."""
    if not names_its_own_weights(card):
        own = weights_file(card.name, card.weights.sha256)
        yield Problem("file", f"the card of {full_name(card)} names {path}, which is not its own", own, path.name)
    yield from _altered_architecture(card)
    try:
        content = read_weights(path)
    except OSError as error:
        yield Problem("file", f"cannot read {path}: {error.strerror}")
        return
    yield from _altered_weights(card, path, content)
    try:
        state = unpack(content, str(path))
    except InputError as error:
        yield Problem("format", str(error))
        return
    try:
        module = _built(card)
    except SamBenchError as error:
        yield Problem("architecture", f"{full_name(card)} cannot be built: {error}")
    else:
        problem = misfit(module, state)
        if problem is not None:
            yield Problem("architecture", f"{path} does not fit {card.architecture.name}: {problem}")
        count = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        if count != card.parameters:
            message = f"{card.architecture.name} has {count} parameters; the card of {full_name(card)} says otherwise"
            yield Problem("architecture", message, str(card.parameters), str(count))
    bad = first_non_finite(state)
    if bad is not None:
        yield Problem("values", f"{path}: {bad} holds NaN or infinity")


def _altered_weights(card: ModelCard, path: Path, content: bytes) -> Iterator[Problem]:
    weights = card.weights
    if len(content) != weights.size:
        message = f"{path} is {len(content)} bytes long; its card says {weights.size}"
        yield Problem("size", message, str(weights.size), str(len(content)))
    found = hashlib.sha256(content).hexdigest()
    if found != weights.sha256:
        how = "cut short" if len(content) < weights.size else "altered"
        message = (
            f"{path} is {how}: SHA-256 expected {weights.sha256}, found {found} "
            f"({weights.size} bytes expected, {len(content)} found)"
        )
        yield Problem("sha256", message, weights.sha256, found)


def _altered_architecture(card: ModelCard) -> Iterator[Problem]:
    expected, found = card.architecture_sha256, card.architecture.sha256
    if expected not in (None, found):
        message = (
            f"the architecture on the card of {full_name(card)} was altered after the model was saved "
            f"(its options, mean or std): SHA-256 expected {expected}, found {found}"
        )
        yield Problem("architecture", message, expected, found)
