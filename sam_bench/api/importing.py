"""Weights that others trained, put into the zoo: `import_model`, and `add_model` for a network of the user's own."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam_bench import zoo as zoos
from sam_bench.api.registering import correct
from sam_bench.api.specs.checks import StrPath
from sam_bench.data import Dataset, channel_stats, first_examples, known_stats, load_dataset
from sam_bench.data.splits import Stats
from sam_bench.device import choose_device
from sam_bench.errors import InputError, shortened, unknown_name
from sam_bench.models import architecture_for, architecture_module, check_model, create_model
from sam_bench.models.factory import TIMM
from sam_bench.models.own_code import PYTHON, allow
from sam_bench.plugins import packages_of
from sam_bench.records import Architecture, Cost, Imported, ModelCard, Recipe, sha256_file
from sam_bench.versions import package_versions, timestamp
from sam_bench.zoo.checkpoint import fit_external, renamed_for
from sam_bench.zoo.weights import misfit

CHECKED = 1000
"""Test images on which the normalisation is tried."""

ABOUT = (
    *("threat", "robustbench_dataset", "authors", "license", "paper_title", "paper_link", "venue", "additional_data"),
    "command",
)
"""Fields of the card that the importing user knows."""

_RECIPE = Recipe(name="imported", summary="trained elsewhere; how is not known here, and the other fields say nothing")
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_NAMED = ("cifar10", "cifar100", "imagenet")
_AT_A_TIME = 256
_CLEARLY = 3.0  # standard deviations of McNemar's statistic

_NONE: Stats = ((), ())


@dataclass(frozen=True)
class ImportResult:
    """A model that was put into the zoo.

    Attributes:
        card: Its card.
        path: Where the card is.
        normalized: Accuracy with the normalisation that was asked for, on the first 1,000 test images, in [0, 1].
        otherwise: Accuracy with the other choice: without one where one was asked for, else with the data's own.
        note: A sentence if the other choice is clearly better; else "".
    """

    card: ModelCard
    path: Path
    normalized: float
    otherwise: float
    note: str


def import_model(
    file: StrPath,
    *,
    name: str,
    arch: str,
    dataset: StrPath,
    normalize: str,
    arch_options: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    data_dir: StrPath = Path("data"),
    zoo: StrPath | None = None,
    device: str = "auto",
    **about: Any,
) -> ImportResult:
    """Put weights that others trained into the zoo, with their clean accuracy measured here.

    Args:
        file: A state dict, alone or under "state_dict", "model_state_dict", "model" or "net"; or safetensors.
        name: What the zoo calls the model.
        arch: The architecture, as for `train`; `timm:NAME` works too.
        dataset: What it was trained on: a name, FILE.npz or FOLDER.
        normalize: How the training code normalised images in [0, 1]: `none`, `cifar10`, `cifar100`, `imagenet`, or
            MEAN/STD with a number a channel: `0.49,0.48,0.45/0.25,0.24,0.26`.
        arch_options: What the architecture takes: `width`.
        image_size: Of the images, in pixels, if it is not the data set's own.
        data_dir: Where torchvision's data sets are kept.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        device: Where the accuracy is measured.
        about: More fields of the card: those in `ABOUT`.

    Returns:
        The card, and how the other choice of normalisation did.

    Raises:
        InputError: The file holds more than tensors or does not fit the architecture, a name is taken, or a field is
            wrong.
    """
    unknown = sorted(set(about) - set(ABOUT))
    if unknown:
        raise unknown_name("field of a card", unknown[0], ABOUT)
    path = Path(os.fspath(file)).expanduser()
    state = zoos.read_state_dict(path)
    data = load_dataset(os.fspath(dataset), data_dir=Path(data_dir), image_size=image_size, test_only=True)
    mean, std = normalisation(normalize, data.in_channels)
    architecture = _architecture_of(state, arch, data, mean=mean, std=std, options=dict(arch_options or {}))
    store = zoos.Zoo(zoos.zoo_dir(zoo))
    about = {"robustbench_dataset": data.robustbench, "threat": "Linf", "license": "unknown", **about}
    place = zoos.Place(name, data.name, about["threat"], about["robustbench_dataset"])
    store.check_new(place)
    store.check_place(place)

    where = choose_device(device)[0]

    def built(of: Architecture) -> nn.Module:
        module = create_model(of)
        fit_external(module, state, str(path), of.name)
        return module.eval().to(where)

    module = built(architecture)
    size = architecture.image_size
    check_model(
        module, num_classes=data.num_classes, input_shape=(architecture.in_channels, size, size), name=str(path)
    )
    usual = _usual(data) if not mean else _NONE
    other = built(architecture.model_copy(update={"mean": usual[0], "std": usual[1]}))
    asked, otherwise, note = _compared(module, other, data, normalize)
    hits = correct(module, data.test.to(where), at_a_time=_AT_A_TIME)
    card = store.save(
        module.cpu(),
        {
            **about,
            "name": name,
            "dataset": data.name,
            "architecture": architecture,
            "recipe": _RECIPE,
            "epochs": 0,
            "seed": 0,
            "precision": "fp32",
            "test_fingerprint": data.test.fingerprint,
            "clean_accuracy": int(hits.sum()) / len(hits),
            "cost": Cost(train_forward=0, train_backward=0, seconds=0, device="unknown"),
            "packages": package_versions() | packages_of(architecture_module(architecture.name)),
            "classes": data.classes,
            "imported": Imported(file=path.name, sha256=sha256_file(path)),
            "created": timestamp(),
        },
        new=True,
    )
    return ImportResult(card, store.card_path(card), asked, otherwise, note)


def _architecture_of(
    state: Mapping[str, Tensor], arch: str, data: Dataset, *, options: dict[str, Any], **normalised: Any
) -> Architecture:
    """The architecture that weights of other code belong to: with timm's own stem, if they fit that.

    A stride is no part of the weights: those of a strided stem would fit the one that small images get, too, and
    compute something else.
    """
    made = partial(
        architecture_for,
        arch,
        num_classes=data.num_classes,
        in_channels=data.in_channels,
        image_size=data.image_size,
        **normalised,
    )
    if arch.startswith(TIMM) and "stem" not in options:
        with suppress(InputError):  # such a stem may shrink small images to nothing
            own = made(options={**options, "stem": "imagenet"})
            module = create_model(own)
            if misfit(module, renamed_for(module, state)) is None:
                return own
    return made(options=options)


def add_model(factory: str, weights: StrPath, **keywords: Any) -> ImportResult:
    """Put a network of the user's own code into the zoo.

    The card names module and factory. Whoever loads it later needs the module, and has to name it in the environment
    variable `SAM_BENCH_CODE`: code that a card names is not run otherwise.

    Args:
        factory: `MODULE:FACTORY`: called with `arch_options`, it gives a `torch.nn.Module` that maps images
            [B, C, H, W] to logits.
        weights: Its state dict, as for `import_model`.
        keywords: Those of `import_model`, all but `arch`.

    Raises:
        InputError: As `import_model`; or the module cannot be imported.
    """
    arch = f"{PYTHON}{factory}"
    allow(arch)
    return import_model(weights, arch=arch, **keywords)


def normalisation(text: str, channels: int) -> Stats:
    """Mean and standard deviation of each channel, from what a user writes; empty for `none`.

    Args:
        text: `none`, the name of a data set whose numbers everybody uses, or MEAN/STD.
        channels: How many numbers there should be; a single one is for all.

    Raises:
        InputError: It is neither, or has another number of channels.
    """
    lower = text.strip().lower()
    if lower == "none":
        return _NONE
    if lower in _NAMED:
        known = known_stats(lower) or _IMAGENET
        if channels != len(known[0]):
            raise InputError(f"`normalize={text}` has {len(known[0])} channels, but the images have {channels}")
        return known
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in lower.split("/"))
    except ValueError:
        raise InputError(
            f"must be none, {', '.join(_NAMED)} or MEAN/STD, as in 0.49,0.48,0.45/0.25,0.24,0.26",
            field="normalize",
            value=shortened(text),
        ) from None
    return tuple(part * channels if len(part) == 1 else part for part in (mean, std))  # type: ignore[return-value]


def _usual(data: Dataset) -> Stats:
    """The normalisation that code for these images most likely uses."""
    return known_stats(data.robustbench or data.name) or channel_stats(first_examples(data.test, CHECKED))


@torch.no_grad()
def _compared(module: nn.Module, other: nn.Module, data: Dataset, normalize: str) -> tuple[float, float, str]:
    """Accuracies as asked for and otherwise, and a sentence if the other is better than chance explains (McNemar)."""
    device = next(module.parameters(), torch.empty(0)).device
    test = first_examples(data.test, CHECKED).to(device)
    first, second = (correct(each, test, at_a_time=_AT_A_TIME) for each in (module, other))
    asked, otherwise = first.float().mean().item(), second.float().mean().item()
    lost, won = int((second & ~first).sum()), int((first & ~second).sum())
    if lost - won <= _CLEARLY * math.sqrt(lost + won):
        return asked, otherwise, ""
    instead = "with the data's own mean and std" if normalize.strip().lower() == "none" else "without normalisation"
    return (
        asked,
        otherwise,
        f"on {len(test):,} test images the model is right {asked:.1%} of the time as asked for, and {otherwise:.1%} "
        f"{instead}: `normalize` is probably wrong",
    )
