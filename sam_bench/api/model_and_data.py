"""The model that is attacked, and the data it is attacked on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from sam_bench import zoo as zoos
from sam_bench.api.module_identity import identified
from sam_bench.api.specs.checks import StrPath, named
from sam_bench.api.specs.shared import DataSpec, RunSpec
from sam_bench.data import Dataset, is_named_dataset, load_dataset
from sam_bench.device import choose_device
from sam_bench.errors import InputError
from sam_bench.records import Norm, RobustBenchDataset


def model_of(value: Any) -> str | nn.Module:
    """A model as `evaluate` takes it; a path like its text.

    Raises:
        InputError: It is neither text, nor a path, nor a module; says how to make one of it.
    """
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, (str, Path)):
        return str(value)
    advice = ""
    if isinstance(value, Mapping):
        advice = ": load the state dict into its module, and give that"
    elif isinstance(value, type):
        advice = f": give an instance, as in {value.__name__}()"
    elif callable(value):
        advice = ": call it in the forward method of a module, and give that"
    raise InputError(f"the model must be a name, a path or a torch.nn.Module, not {named(value)}{advice}")


def model_and_data(
    model: str | nn.Module, spec: RunSpec, *, norm: Norm = "Linf", device: torch.device
) -> tuple[zoos.LoadedModel, Dataset]:
    """The model, on the device, and the data set it is attacked on.

    Args:
        model: As `evaluate` takes it.
        spec: Says which data set and which zoo.
        norm: Which of several models of one name: the one that is listed under this threat model.
        device: Where the model goes.
    """
    if isinstance(model, nn.Module):
        if spec.dataset is None:
            raise InputError("a module does not say what it was trained on: give `dataset`")
        own = _load(spec.dataset, spec, spec.image_size)
        return _of_module(model.to(device), own), own
    hint = Path(spec.dataset).stem if spec.dataset else None
    data: Dataset | None = None
    if spec.dataset and model.startswith("robustbench:"):
        # RobustBench knows its own data sets only; one's own file says which of them it is like, if it is.
        data = _load(spec.dataset, spec, spec.image_size)
        of = [each for each in get_args(RobustBenchDataset) if hint == each or data.name.startswith(f"{each}-c-")]
        hint = data.robustbench or next(iter(of), None)
        if data.name == "imagenet":
            zoos.refuse_other_preprocessing(model.removeprefix("robustbench:"))
    # No model is listed under L1.
    threat: Norm = "Linf" if norm == "L1" else norm
    loaded = zoos.load_model(model, zoo=spec.zoo, dataset=hint, threat=threat, device=device)
    card = loaded.card
    if card and spec.dataset is None and not is_named_dataset(card.dataset):
        raise InputError(
            f"model {card.name} was trained on {card.dataset}, which cannot be loaded by name: give its FILE.npz or "
            "FOLDER with `dataset`"
        )
    size = spec.image_size or (card.architecture.image_size if card else None)
    data = data or _load(spec.dataset or (card.dataset if card else "cifar10"), spec, size)
    if card and data.name == card.dataset and data.test.fingerprint != card.test_fingerprint:
        raise InputError(
            f"the test images of {data.name} here are not those the card of {card.name} names (SHA-256 "
            f"{data.test.fingerprint[:12]}… instead of {card.test_fingerprint[:12]}…); give the same data, "
            "or another `dataset_name`"
        )
    if card and card.classes:
        _refuse_other_order(card.name, card.classes, data)
    return loaded, data


def _refuse_other_order(model: str, classes: tuple[str, ...], data: Dataset) -> None:
    """Refuse data in which a class that the model knows has another number."""
    for label, name in enumerate(data.classes):
        if name in classes and classes.index(name) != label:
            raise InputError(
                f"model {model} knows {name!r} as class {classes.index(name)}, but in {data.name} it is class {label}: "
                "give data with the model's order of classes"
            )


def _load(dataset: str, spec: DataSpec, image_size: int | None) -> Dataset:
    return load_dataset(dataset, data_dir=spec.data_dir, name=spec.dataset_name, image_size=image_size, test_only=True)


def _of_module(module: nn.Module, data: Dataset) -> zoos.LoadedModel:
    """A caller's own module, under a name that what it computes is part of."""
    shape = data.test.images.shape
    sha256, classes = identified(module, (shape[1], shape[2], shape[3]))
    name = f"{type(module).__name__}-{sha256[:8]}"
    # Without logits the check of the model, which runs it on such images again, says what is wrong.
    return zoos.LoadedModel(module, name, sha256, None, classes or data.num_classes, None)


def load_model(
    model: StrPath,
    *,
    dataset: str | None = None,
    threat: Norm = "Linf",
    zoo: Path | None = None,
    device: str = "cpu",
) -> nn.Module:
    """A trained model in eval mode; it maps float32 [B, C, H, W] in [0, 1] to logits.

    Args:
        model: A zoo name, a path, `robustbench:NAME` or `timm:NAME`.
        dataset: Needed where the name alone is ambiguous, and for RobustBench's models.
        threat: The threat model it is listed under.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        device: Where to put it.

    Raises:
        InputError: There is no such model; names the nearest.
        SamBenchError: The weights are not those the card names.
    """
    return zoos.load_model(model, zoo=zoo, dataset=dataset, threat=threat, device=choose_device(device)[0]).module
