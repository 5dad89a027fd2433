"""The store: a folder of cards and weights, in which every card names exactly the weights beside it.

    <root>/<dataset>/<threat>/<name>.json
    <root>/<dataset>/<threat>/<name>.<first 8 digits of the SHA-256>.safetensors

Weights carry their digest in their name, so a save never touches the file that the present card
names. It writes the new weights, renames the new card over the old one, and removes the old weights.
Killed at any point, the card on disk still names whole weights. At worst a file is left over that no
card names; `Zoo.strays` lists it.

Only weights that a card names as its own, by stem and digest, and that no other card names are ever
deleted. Saving and removing hold the zoo's lock.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from sam_bench.errors import InputError, SamBenchError, unknown_name
from sam_bench.locks import claimed
from sam_bench.records import ModelCard, first_problem, read_record, write_atomic, write_record
from sam_bench.records.io import nearest_existing
from sam_bench.zoo.index import Listed, listed
from sam_bench.zoo.names import Named, already_in, ambiguous, full_name, timm_names
from sam_bench.zoo.weights import StateDict, StorageDtype, first_non_finite, misfit, pack, unpack
from sam_bench.zoo.weights_check import Problem, build, load_card, names_its_own_weights, problems_of, weights_file

RUN_FIELDS = ("recipe", "architecture", "seed", "precision", "train_fingerprint")
"""Fields of a card that tell runs apart."""

on_saved: list[Callable[[Zoo, ModelCard], None]] = []
"""Called with every card just saved; the bridge to timm and RobustBench adds itself here."""


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
                yield path, self.read(path)
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

    def listed(self) -> list[Listed]:
        """What a listing shows of `cards()`, in a fraction of its time."""

        def read(path: Path) -> ModelCard | None:
            try:
                return self.read(path)
            except InputError as error:
                warnings.warn(f"passed over in the zoo: {error}", stacklevel=4)
                return None

        return listed(self.root, read)

    def read(self, path: Path) -> ModelCard:
        """The card in a file of the zoo.

        Raises:
            InputError: It cannot be used, or belongs elsewhere in the zoo.
        """
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
            self.read(path)
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
        self,
        model: nn.Module | StateDict,
        fields: Mapping[str, Any] | ModelCard,
        *,
        dtype: StorageDtype = "fp32",
        same_run: bool = False,
        new: bool = False,
    ) -> ModelCard:
        """Put a checkpoint into the zoo; one of the same name is replaced whole or not at all.

        Args:
            model: The network, or its state dict (its keys are the module's own).
            fields: The fields of the card; `weights` and `parameters` are filled in here.
            dtype: "fp16" halves the file: weights are rounded to float16 and computed with in
                float32. Whoever reports a number then measures it on the model that `load` returns.
            same_run: Refuse to replace the model of another run, as `check_run` does.
            new: Refuse to replace any model, as `check_new` does.

        Returns:
            The card as written.

        Raises:
            InputError: A field of the card is wrong, the weights do not fit the architecture or are
                not finite, another model already has one of the names timm would know it by, or
                `same_run` or `new` refuses.
            SamBenchError: The file cannot be written; the previous checkpoint is untouched.
        """
        state = model.state_dict() if isinstance(model, nn.Module) else model
        content = pack(state, dtype)
        sha256 = hashlib.sha256(content).hexdigest()
        given = fields.model_dump(exclude={"weights"}) if isinstance(fields, ModelCard) else dict(fields)
        file = weights_file(str(given.get("name")), sha256)
        given["weights"] = {"file": file, "size": len(content), "sha256": sha256}
        draft = _card({**given, "parameters": 1})
        network = build(draft.architecture)
        problem = misfit(network, state)
        if problem is not None:
            raise InputError(f"the weights do not fit {draft.architecture.name}: {problem}")
        count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        card = draft.model_copy(update={"parameters": count, "architecture_sha256": draft.architecture.sha256})
        # Two runs that began together both found the name free: the last word is under the lock.
        with claimed(self.root):
            self._refuse_taken_names(card)
            if new:
                self.check_new(card)
            if same_run:
                try:
                    self.check_run(card, {field: getattr(card, field) for field in RUN_FIELDS})
                except InputError as error:
                    kept = "then `resume=True` registers this run, which is kept"
                    raise InputError(error.problem, hint=kept) from error
            self._write(card, content)
        for tell in on_saved:
            tell(self, card)
        return card

    def adopt(self, card: ModelCard, content: bytes) -> None:
        """Put a card from elsewhere into the zoo with the bytes of its weights; whole or not at all.

        Args:
            card: Its weights have the name that this zoo gives them.
            content: The weights, with the card's checksum.

        Raises:
            InputError: The weights do not fit the card's architecture, or another model has the name.
            SamBenchError: The file cannot be written.
        """
        state = unpack(content, card.weights.file)
        problem = misfit(build(card.architecture), state)
        bad = first_non_finite(state)
        if problem or bad:
            raise InputError(f"{full_name(card)} is not taken: {problem or f'{bad} holds NaN or infinity'}")
        with claimed(self.root):
            self._refuse_taken_names(card)
            there = self.read(self.card_path(card)) if self.card_path(card).exists() else card
            if (there.weights.sha256, there.architecture) != (card.weights.sha256, card.architecture):
                raise already_in(self.root, card, ", with other weights or another network")
            self._write(card, content)
        for tell in on_saved:
            tell(self, card)

    def _write(self, card: ModelCard, content: bytes) -> None:
        path, weights = self.card_path(card), self.weights_path(card)
        previous = self._own_weights_of(path)
        write_atomic(weights, content)
        try:
            write_record(path, card)
        except SamBenchError:
            self._discard(weights)
            raise
        if previous is not None:
            self._discard(previous)

    def remove(self, card: ModelCard) -> None:
        """Take a checkpoint out of the zoo: its card, then its weights.

        Weights that another card names stay, and so does a file that the card names but did not make.

        Raises:
            SamBenchError: The card cannot be deleted; then its weights stay, too.
        """
        path = self.card_path(card)
        if not self.root.is_dir():
            raise SamBenchError(f"cannot delete {path}: there is no zoo {self.root}")
        with claimed(self.root):
            try:
                path.unlink()
            except OSError as error:
                raise SamBenchError(f"cannot delete {path}: {error.strerror}") from error
            if names_its_own_weights(card):
                self._discard(self.weights_path(card))

    def check_run(self, place: Named, made_by: Mapping[str, Any]) -> None:
        """Refuse to replace the model of another run; a training asks before it starts, and `save` again.

        Args:
            place: Where the model will be.
            made_by: `RUN_FIELDS` as this run's card will have them.

        Raises:
            InputError: The card that is there has another value of one of them; names it.
        """
        path = self.root / place.dataset / place.threat / f"{place.name}.json"
        there = self.read(path) if path.exists() else None
        differing = [name for name, value in made_by.items() if there and getattr(there, name) != value]
        if differing:
            raise already_in(self.root, place, f", from a run with another {differing[0]}")

    def check_new(self, place: Named) -> None:
        """Refuse to replace any model; an import asks before it starts, and `save` again.

        Raises:
            InputError: The name is taken.
        """
        if self.matches(full_name(place)):
            raise already_in(self.root, place)

    def check_place(self, place: Named) -> None:
        """Refuse early, before training, the names that `save` would refuse and a folder it could not write.

        Raises:
            InputError: Another model has one of the names timm would know it by, or its folder cannot be written.
        """
        self._refuse_taken_names(place)
        self.check_writable(place.dataset, place.threat)

    def check_writable(self, *below: str) -> None:
        """Refuse a zoo that cannot be written; leaves nothing in it.

        Args:
            below: Folders below the zoo's own, where they are known.

        Raises:
            InputError: It cannot be written; says why.
        """
        folder = self.root.absolute().joinpath(*below)
        try:
            folder = nearest_existing(folder)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(
                f"the zoo {self.root} cannot be written ({folder}: {error.strerror or error})",
                hint="choose another `zoo`",
            ) from error

    def _refuse_taken_names(self, place: Named) -> None:
        names = set(timm_names(place))
        for other in self.listed():
            taken = names & set(timm_names(other))
            if taken and full_name(other) != full_name(place):
                raise InputError(
                    f"{full_name(place)} cannot be saved: timm and RobustBench would know both it and "
                    f"{full_name(other)} as {min(taken)!r}",
                    hint="give it another `name`, or put it into another `zoo`",
                )

    def _own_weights_of(self, path: Path) -> Path | None:
        try:
            card = read_record(path, ModelCard)
        except InputError:
            return None  # no card yet, or a broken one, which is not asked what to delete
        return path.with_name(card.weights.file) if names_its_own_weights(card) else None

    def _cards_naming(self, weights: Path) -> list[Path]:
        """The cards beside the weights that name them, broken cards included."""
        return [path for path in sorted(weights.parent.glob("*.json")) if _mentions(path, weights.name)]

    def _discard(self, weights: Path) -> None:
        """Delete weights that no card names."""
        if self._cards_naming(weights):
            return
        try:
            weights.unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(f"the weights {weights} stay, though no card names them: {error.strerror}", stacklevel=4)

    def strays(self) -> list[Path]:
        """Weights and temporary files that no card names, left by a killed save; safe to delete when none runs."""
        files = (*self.root.glob("*/*/*.safetensors"), *self.root.glob("*/*/.*.tmp"))
        return sorted(path for path in files if not self._cards_naming(path))

    # Reading

    def verify(self, card: ModelCard) -> list[Problem]:
        """Everything that is wrong with a card's weights; an empty list when all is well.

        Checked are the file's size and SHA-256, its format, that keys and shapes are those of the
        architecture, that every value is finite, the card's number of parameters, that the architecture
        is the one that was saved, and that no other card names the same file.
        """
        weights = self.weights_path(card)
        problems = list(problems_of(card, weights))
        others = [path for path in self._cards_naming(weights) if path != self.card_path(card)]
        if others:
            message = f"{weights} is named by two cards: {self.card_path(card)} and {others[0]}"
            problems.append(Problem("file", message, self.card_path(card).name, others[0].name))
        return problems

    def load(self, card: ModelCard) -> nn.Module:
        """The model with its weights, on the CPU, in eval mode; inputs in [0, 1].

        Raises:
            SamBenchError: The weights are missing, or are not the ones the card means: the checksum
                expected and found.
            InputError: They do not fit the architecture.
        """
        return load_card(card, self.card_path(card).parent)


def _card(fields: Mapping[str, Any]) -> ModelCard:
    try:
        return ModelCard.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"the card is not complete: {first_problem(error)}") from error


def _mentions(card: Path, file: str) -> bool:
    """Whether a card's text names the file; a card that cannot be read names none."""
    try:
        return card.is_file() and f'"{file}"' in card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
