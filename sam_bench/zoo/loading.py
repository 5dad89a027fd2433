"""`load_model`: one string for a model of the zoo, a file, RobustBench's zoo or timm's."""

from __future__ import annotations

import codecs
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sam_bench.errors import InputError, first_line, shortened
from sam_bench.records import Architecture, EvaluationRecord, ModelCard, read_record, sha256_file
from sam_bench.zoo.checkpoint import SUFFIXES, fit_external, read_state_dict, what_is_wrong
from sam_bench.zoo.external import External, from_robustbench, from_timm
from sam_bench.zoo.names import ambiguous, full_name, robustbench_dataset
from sam_bench.zoo.paths import zoo_dir
from sam_bench.zoo.register import hidden_robustbench_model, registered_card
from sam_bench.zoo.store import Zoo
from sam_bench.zoo.weights import state_dict_sha256
from sam_bench.zoo.weights_check import build, load_card


@dataclass
class LoadedModel:
    """A model ready to be attacked.

    Attributes:
        module: In eval mode, on the device; takes float32 [batch, channels, height, width] in
            [0, 1] and gives logits [batch, num_classes].
        name: The card's name, or the model as it was asked for.
        sha256: Of the weights file, or of the state dict if the model has no file in a zoo.
        card: Where it comes from; None for an external model.
        num_classes: Width of the logits.
        input_shape: Channels, height, width; None when unknown.
        architecture_sha256: Of the architecture with its options, mean and std (`Architecture.sha256`), which with
            `sha256` identifies the model; None where no Architecture of ours describes it.
    """

    module: nn.Module
    name: str
    sha256: str
    card: ModelCard | None
    num_classes: int
    input_shape: tuple[int, int, int] | None
    architecture_sha256: str | None = None


def load_model(
    model: str | os.PathLike[str],
    *,
    zoo: Path | str | None = None,
    dataset: str | None = None,
    threat: str = "Linf",
    architecture: Architecture | None = None,
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """Load a model, checked against its checksum where there is one.

    Args:
        model: A zoo name (`sam-rho0.2` or `cifar10/Linf/sam-rho0.2`), the path of a card or of a
            checkpoint, `robustbench:NAME` or `timm:NAME`.
        zoo: The zoo's folder; `$SAM_BENCH_ZOO` or `./model_zoo` when not given.
        dataset: Decides between zoo models of one name; for `robustbench:`, RobustBench's data set.
        threat: Decides between zoo models of one name; for `robustbench:`, its threat model.
        architecture: Of a bare state dict, which does not say what it belongs to.
        device: Where the model goes.

    Returns:
        The module with its name, checksum and card.

    Raises:
        InputError: There is no such model; it is ambiguous; a file is not a checkpoint, holds code,
            or needs an architecture.
        SamBenchError: A checksum differs, or a download failed.
    """
    text = os.fspath(model)
    kind, _, rest = text.partition(":")
    if kind == "robustbench" and rest:
        loaded = _from_robustbench(text, rest, dataset, threat)
    elif kind == "timm" and rest:
        loaded = _from_timm(text, rest)
    elif isinstance(model, os.PathLike) or (_is_path(text) and not Zoo(zoo_dir(zoo)).matches(text)):
        loaded = _from_path(Path(text).expanduser(), architecture)
    else:
        loaded = _from_zoo(Zoo(zoo_dir(zoo)), text, dataset, threat, architecture)
    try:
        loaded.module.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {str(device)!r} cannot be used: {first_line(error)}") from error
    return loaded


def _is_path(text: str) -> bool:
    return text.endswith(SUFFIXES) or text.startswith(("./", "../", "/", "~")) or "\\" in text


def _from_zoo(zoo: Zoo, name: str, dataset: str | None, threat: str, architecture: Architecture | None) -> LoadedModel:
    found = zoo.matches(name)
    if not found and Path(name).is_file():
        return _from_path(Path(name), architecture)
    if not found:
        raise zoo.unknown(name)
    for keep in (
        lambda card: card.dataset == dataset,
        lambda card: dataset is not None and robustbench_dataset(card) == dataset,
        lambda card: card.threat == threat,
    ):
        found = [card for card in found if keep(card)] or found
    if len(found) > 1:
        raise ambiguous(name, found)
    return _of_card(found[0], zoo.load(found[0]))


def _of_card(card: ModelCard, module: nn.Module) -> LoadedModel:
    return _described(module, card.name, card.weights.sha256, card.architecture, card)


def _described(
    module: nn.Module, name: str, sha256: str, architecture: Architecture, card: ModelCard | None
) -> LoadedModel:
    shape = (architecture.in_channels, architecture.image_size, architecture.image_size)
    return LoadedModel(module, name, sha256, card, architecture.num_classes, shape, architecture.sha256)


def _from_path(path: Path, architecture: Architecture | None) -> LoadedModel:
    card = _card_of(path)
    if card is not None:
        return _of_card(card, load_card(card, path.parent))
    if _is_plain_text(path):
        recipe = "; a training takes such a file as its `recipe`" if path.suffix in (".yaml", ".yml") else ""
        raise InputError(
            f"{path} is a text file, not a model; give a model's name, its card (.json) or a checkpoint{recipe}"
        )
    state = read_state_dict(path)
    name = path.stem
    if architecture is None:
        run, architecture = _run_of(path)
        name = f"{run}-{name}"
    if architecture is None:
        raise InputError(
            f"{path} holds weights but not what they belong to: name a model of the zoo or a card (.json), which both "
            "know it, or a checkpoint in the folder of its run; in Python, evaluate takes a module with its weights"
        )
    module = build(architecture)
    fit_external(module, state, str(path), architecture.name)
    return _described(module.eval(), name, sha256_file(path), architecture, None)


def says_what_it_is(path: Path) -> bool:
    """Whether a file's card, or the folder of its run, tells the architecture of its weights."""
    return path.suffix == ".json" or _card_of(path) is not None or _run_of(path)[1] is not None


def _run_of(path: Path) -> tuple[str, Architecture | None]:
    """Name and architecture of the run that a checkpoint lies in the folder of."""
    try:
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        return str(config["name"]), Architecture.model_validate(config["architecture"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", None


def _is_plain_text(path: Path) -> bool:
    """Whether a file is text; a web page, which has its own message, is not."""
    try:
        with path.open("rb") as file:
            text = codecs.getincrementaldecoder("utf-8")().decode(file.read(512))  # the last character may be cut
    except (OSError, UnicodeDecodeError):
        return False
    return what_is_wrong(path) is None and all(letter.isprintable() or letter in "\t\r\n" for letter in text)


def _card_of(path: Path) -> ModelCard | None:
    """The card a path leads to: the file itself, or the card beside the weights that names them."""
    if path.suffix == ".json":
        try:
            return read_record(path, ModelCard)
        except InputError:
            _refuse_record(path)
            raise
    if path.suffix == ".safetensors":
        # The digits after the card's name come and go with the weights; the card's name stays.
        for candidate in sorted(path.parent.glob("*.json")):
            try:
                card = read_record(candidate, ModelCard)
            except InputError:
                continue  # not a card, or a broken one: then the file is a bare state dict
            if card.weights.file == path.name:
                return card
    return None


def _refuse_record(path: Path) -> None:
    try:
        record = read_record(path, EvaluationRecord)
    except InputError:
        return
    raise InputError(
        f"{path} is an evaluation record, not a model's card; give the model's name: {shortened(record.model)}"
    ) from None


def _from_robustbench(text: str, name: str, dataset: str | None, threat: str) -> LoadedModel:
    card = registered_card(f"{name.lower().replace('-', '_')}_{dataset or 'cifar10'}_{threat.lower()}")
    if card is not None and hidden_robustbench_model(card) == name:
        raise InputError(
            f"RobustBench's {name!r} cannot be loaded: {full_name(card)} of the zoo has its name, and RobustBench "
            f"finds that one first; save yours under another name, or ask for it as {full_name(card)!r}"
        )
    return _external(text, from_robustbench(name, dataset, threat), card)


def _from_timm(text: str, name: str) -> LoadedModel:
    card = registered_card(name)
    if card is None:
        return _external(text, from_timm(name), None)
    import timm

    return _of_card(card, timm.create_model(name, pretrained=True))


def _external(text: str, external: External, card: ModelCard | None) -> LoadedModel:
    if card is not None:
        return _of_card(card, external.module)
    sha256 = state_dict_sha256(external.module)
    return LoadedModel(external.module, text, sha256, None, external.num_classes, external.input_shape)
