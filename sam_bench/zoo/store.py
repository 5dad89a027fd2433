"""The store: a folder of cards and weights, in which every card names exactly the weights beside it.

    <root>/<dataset>/<threat>/<name>.json
    <root>/<dataset>/<threat>/<name>.<first 8 digits of the SHA-256>.safetensors

Weights carry their digest in their name, so a save never touches the file that the present card
names: new weights first, then the card over the old card in one rename, then the old weights are
removed. Killed at any point, the card on disk still names whole weights; at worst an unnamed file is
left over, which `Zoo.strays` lists.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from sam_bench.errors import InputError, SamBenchError, unknown_name
from sam_bench.records import Architecture, ModelCard, first_problem, read_record, write_atomic, write_record
from sam_bench.zoo.names import Named, full_name, timm_names
from sam_bench.zoo.weights import StateDict, StorageDtype, first_non_finite, fit, misfit, pack, unpack


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


class Zoo:
    """Cards and weights under one folder.

    Args:
        root: The folder; made by the first `save`.

    Raises:
        InputError: `root` is a file.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"the zoo {self.root} is a file; it must be a folder")

    # Finding

    def card_path(self, card: ModelCard) -> Path:
        """Where the card lies."""
        return self.root / card.dataset / card.threat / f"{card.name}.json"

    def weights_path(self, card: ModelCard) -> Path:
        """Where the card's weights lie."""
        return self.card_path(card).with_name(card.weights.file)

    def scan(self) -> Iterator[tuple[Path, ModelCard | InputError]]:
        """Every card file in order, read; or, for one that cannot be used, the error that says why."""
        for path in sorted(self.root.glob("*/*/*.json")):
            if path.name.startswith("."):
                continue
            try:
                yield path, self._read(path)
            except InputError as error:
                yield path, error

    def cards(self) -> list[ModelCard]:
        """Every usable card, by data set, threat model and name; each broken one is warned of."""
        usable = []
        for _, card in self.scan():
            if isinstance(card, ModelCard):
                usable.append(card)
            else:
                warnings.warn(f"passed over in the zoo: {card}", stacklevel=2)
        return usable

    def _read(self, path: Path) -> ModelCard:
        card = read_record(path, ModelCard)
        if self.card_path(card) != path:
            raise InputError(f"{path} is the card of {full_name(card)}, which belongs at {self.card_path(card)}")
        return card

    def matches(self, name: str, dataset: str | None = None, threat: str | None = None) -> list[ModelCard]:
        """The cards of that name (or `dataset/threat/name`), of that data set and threat where given.

        Raises:
            InputError: A card of that name cannot be read.
        """
        if name.count("/") == 2:
            dataset, threat, name = name.split("/")
        if "/" in name:
            return []
        # Compared as text, so that a name never acts as a pattern or a path.
        return [
            self._read(path)
            for path in sorted(self.root.glob("*/*/*.json"))
            if path.stem == name and dataset in (None, path.parent.parent.name) and threat in (None, path.parent.name)
        ]

    def find(self, name: str, dataset: str | None = None, threat: str | None = None) -> ModelCard:
        """The one card of that name.

        Args:
            name: The card's name, or `dataset/threat/name`.
            dataset: Only of this data set.
            threat: Only of this threat model.

        Raises:
            InputError: There is none (names the nearest), or there are several (lists them).
        """
        found = self.matches(name, dataset, threat)
        if not found:
            raise self.unknown(name, dataset, threat)
        if len(found) > 1:
            raise ambiguous(name, found)
        return found[0]

    def unknown(self, name: str, dataset: str | None = None, threat: str | None = None) -> InputError:
        """The error for a name that no card has, with the nearest names and where they were looked for."""
        known = {path.stem for path in self.root.glob("*/*/*.json")}
        known_in_full = {"/".join(path.with_suffix("").parts[-3:]) for path in self.root.glob("*/*/*.json")}
        within = "".join(f", {part}" for part in (dataset, threat) if part is not None)
        qualified = "/" in name or name in known
        return unknown_name(f"model in the zoo {self.root}{within}:", name, known_in_full if qualified else known)

    # Writing

    def save(
        self, model: nn.Module | StateDict, fields: Mapping[str, Any] | ModelCard, *, dtype: StorageDtype = "fp32"
    ) -> ModelCard:
        """Put a checkpoint into the zoo; one of the same name is replaced whole or not at all.

        Args:
            model: The network, or its state dict (its keys are the module's own).
            fields: The fields of the card; `weights` and `parameters` are filled in here.
            dtype: "fp16" halves the file: weights are rounded to float16 and computed with in
                float32. Whoever reports a number then measures it on the model that `load` returns.

        Returns:
            The card as written.

        Raises:
            InputError: A field of the card is wrong, the weights do not fit the architecture or are
                not finite, or another model already has one of the names timm would know it by.
            SamBenchError: The file cannot be written; the previous checkpoint is untouched.
        """
        state = model.state_dict() if isinstance(model, nn.Module) else model
        content = pack(state, dtype)
        sha256 = hashlib.sha256(content).hexdigest()
        given = fields.model_dump(exclude={"weights"}) if isinstance(fields, ModelCard) else dict(fields)
        file = f"{_file_stem(str(given.get('name')))}.{sha256[:8]}.safetensors"
        given["weights"] = {"file": file, "size": len(content), "sha256": sha256}
        draft = _card({**given, "parameters": 1})
        self._refuse_taken_names(draft)
        network = build(draft.architecture)
        problem = misfit(network, state)
        if problem is not None:
            raise InputError(f"the weights do not fit {draft.architecture.name}: {problem}")
        count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        card = draft.model_copy(update={"parameters": count})
        self._write(card, content)
        _register(self, card)
        return card

    def _write(self, card: ModelCard, content: bytes) -> None:
        path, weights = self.card_path(card), self.weights_path(card)
        previous = self._weights_named_by(path)
        write_atomic(weights, content)
        try:
            write_record(path, card)
        except SamBenchError:
            if previous != weights:
                _remove(weights)
            raise
        if previous is not None and previous != weights:
            _remove(previous)

    def remove(self, card: ModelCard) -> None:
        """Take a checkpoint out of the zoo: its card, then its weights.

        Raises:
            SamBenchError: The card cannot be deleted; then its weights stay, too.
        """
        path, weights = self.card_path(card), self.weights_path(card)
        try:
            path.unlink()
        except OSError as error:
            raise SamBenchError(f"cannot delete {path}: {error.strerror}") from error
        _remove(weights)

    def check_run(self, place: Named, made_by: Mapping[str, Any]) -> None:
        """Refuse, before there is a model, to put it in the place of another run's.

        Args:
            place: Where it will be.
            made_by: Fields of a card that tell runs apart, as this run's card will have them.

        Raises:
            InputError: The card that is there has another value of one of them; names it.
        """
        path = self.root / place.dataset / place.threat / f"{place.name}.json"
        there = self._read(path) if path.exists() else None
        differing = [name for name, value in made_by.items() if there and getattr(there, name) != value]
        if differing:
            raise InputError(
                f"{full_name(place)} is in the zoo {self.root} already, from a run with another {differing[0]}: choose "
                f"another --name or --zoo, or take it out first (sam-bench zoo remove {full_name(place)})"
            )

    def check_place(self, place: Named) -> None:
        """Refuse, before there is a model, what `save` would refuse for its names or could not write.

        Raises:
            InputError: Another model has one of the names timm would know it by, or its folder cannot be written.
        """
        self._refuse_taken_names(place)
        self.check_writable(place.dataset, place.threat)

    def check_writable(self, *below: str) -> None:
        """Refuse a zoo that cannot be written; nothing is left in it.

        Args:
            below: Folders below the zoo's own, where they are known.

        Raises:
            InputError: It cannot; says why.
        """
        folder = self.root.absolute().joinpath(*below)
        try:
            while not folder.exists():
                folder = folder.parent
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(
                f"the zoo {self.root} cannot be written ({folder}: {error.strerror or error}); choose another --zoo"
            ) from error

    def _refuse_taken_names(self, place: Named) -> None:
        names = set(timm_names(place))
        for other in self.cards():
            taken = names & set(timm_names(other))
            if taken and full_name(other) != full_name(place):
                raise InputError(
                    f"{full_name(place)} cannot be saved: timm and RobustBench would know both it and "
                    f"{full_name(other)} as {min(taken)!r}; give it another --name, or put it into another --zoo"
                )

    def _weights_named_by(self, path: Path) -> Path | None:
        try:
            return path.with_name(read_record(path, ModelCard).weights.file)
        except InputError:
            return None  # no card yet, or a broken one, whose word on what to remove is not taken

    def strays(self) -> list[Path]:
        """Weights and temporary files that no card names, left by a killed save; safe to delete when none runs."""
        named = {self.weights_path(card) for _, card in self.scan() if isinstance(card, ModelCard)}
        files = (*self.root.glob("*/*/*.safetensors"), *self.root.glob("*/*/.*.tmp"))
        return sorted(path for path in files if path not in named)

    # Reading

    def verify(self, card: ModelCard) -> list[Problem]:
        """Everything that is wrong with a card's weights; an empty list when all is well.

        Checked are the file's size and SHA-256, its format, that keys and shapes are those of the
        architecture, that every value is finite, and the card's number of parameters.
        """
        return list(_problems(card, self.weights_path(card)))

    def load(self, card: ModelCard) -> nn.Module:
        """The model with its weights, on the CPU, in eval mode; inputs in [0, 1].

        Raises:
            SamBenchError: The weights are missing, or are not the ones the card means: the checksum
                expected and found.
            InputError: They do not fit the architecture.
        """
        return load_card(card, self.card_path(card).parent)


def load_card(card: ModelCard, folder: Path) -> nn.Module:
    """The model of a card whose weights lie in `folder`; as `Zoo.load`."""
    path = folder / card.weights.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SamBenchError(f"cannot read the weights of {full_name(card)}, {path}: {error.strerror}") from error
    # The bytes that are hashed are the bytes that are used: the file is read once.
    for problem in _altered(card, path, content):
        if problem.check == "sha256":
            raise SamBenchError(problem.message)
    module = build(card.architecture)
    fit(module, unpack(content, str(path)), str(path), f"{card.architecture.name} of {full_name(card)}")
    return module.eval()


def build(architecture: Architecture) -> nn.Module:
    """The network without weights, as `sam_bench.models.create_model` makes it."""
    # Imported late: that room imports timm, and registering this one's cards is part of importing timm.
    from sam_bench.models import create_model

    return create_model(architecture)


def ambiguous(name: str, found: list[ModelCard]) -> InputError:
    """The error for a name that several cards have."""
    listing = ", ".join(full_name(card) for card in found)
    return InputError(f"{name!r} names {len(found)} models; say which: {listing}")


def _altered(card: ModelCard, path: Path, content: bytes) -> Iterator[Problem]:
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


def _problems(card: ModelCard, path: Path) -> Iterator[Problem]:
    try:
        content = path.read_bytes()
    except OSError as error:
        yield Problem("file", f"cannot read {path}: {error.strerror}")
        return
    yield from _altered(card, path, content)
    try:
        state = unpack(content, str(path))
    except InputError as error:
        yield Problem("format", str(error))
        return
    try:
        module = build(card.architecture)
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


def _card(fields: Mapping[str, Any]) -> ModelCard:
    try:
        return ModelCard.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"the card is not complete: {first_problem(error)}") from error


def _file_stem(name: str) -> str:
    # A file's name is limited as a model's is, and ours adds 21 characters to it.
    if len(name) <= 79:
        return name
    return f"{name[:70]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"the weights {path}, which no card names any more, stay: {error.strerror}", stacklevel=3)


def _register(zoo: Zoo, card: ModelCard) -> None:
    from sam_bench.zoo.register import register_saved

    register_saved(zoo, card)
