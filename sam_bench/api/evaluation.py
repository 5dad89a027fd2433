"""`evaluate` and `load_model`: from the name of a model to a record of what an attack did to it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import nn

from sam_bench import zoo as zoos
from sam_bench.api.listing import settings_of_attacks
from sam_bench.attacks import ATTACKS, Attack
from sam_bench.data import data_sources, load_dataset
from sam_bench.device import choose_device
from sam_bench.errors import InputError
from sam_bench.evaluation import run_attack
from sam_bench.perturb.ball import check_eps
from sam_bench.progress import Reporter, SilentReporter
from sam_bench.records import (
    ComponentSpec,
    EvaluationRecord,
    Norm,
    Radius,
    RobustBenchDataset,
    write_record,
)
from sam_bench.seeds import check_seed


def evaluate(
    model: str,
    *,
    attack: str = "autoattack",
    norm: Norm = "Linf",
    eps: str | float = "8/255",
    settings: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    n_examples: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    device: str = "auto",
    data_dir: Path = Path("data"),
    dataset_name: str | None = None,
    image_size: int | None = None,
    zoo: Path | None = None,
    output: Path | None = None,
    allow_large_eps: bool = False,
    reporter: Reporter | None = None,
    command: str = "",
) -> EvaluationRecord:
    """Attack a model and write an EvaluationRecord with a verdict for every example.

    Args:
        model: A zoo name, a path, `robustbench:NAME` or `timm:NAME`.
        attack: `autoattack`, `pgd`, `fgsm`, or what another package registered.
        norm: Norm of the ball: `Linf` or `L2`.
        eps: Its radius for inputs in [0, 1], as `8/255` or a number.
        settings: The attack's own settings: `{"steps": 20}`.
        dataset: As for `train`; default the one on the model's card, else `cifar10`.
        n_examples: The first so many test images; default all.
        batch_size: Examples at a time; upstream AutoAttack's draws depend on it.
        seed: Decides every random draw.
        device: `auto`, `cpu`, `cuda`, ….
        data_dir: Where torchvision's data sets are kept.
        dataset_name: What the data set is called in the record; default its own name.
        image_size: Resize to this many pixels (`digits` and folders); default the model's.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        output: The record's file; default `evaluations/<model>/<attack>-<norm>-<eps>.json`, with the
            attack's settings and the number of examples in the name where they were given.
        allow_large_eps: Accept a radius that was probably meant in units of 1/255.
        reporter: Where progress goes; default nowhere.
        command: For the record.

    Raises:
        InputError: Something given is wrong; the message names it.
        SamBenchError: The model returns NaN, a checksum differs, or a file could not be written.
    """
    reporter = reporter or SilentReporter()
    try:
        radius = Radius(eps)
    except ValueError as error:
        raise InputError(f"--eps: {error}") from error
    check_eps(norm, radius, allow_large=allow_large_eps)
    check_seed(seed)
    chosen = _build_attack(attack, settings or {})
    where, why_device = choose_device(device)
    hint, data = (Path(dataset).stem if dataset else None), None
    if dataset and model.startswith("robustbench:"):
        # RobustBench knows its own data sets only; one's own file says which of them it is like, if it is.
        data = load_dataset(dataset, data_dir=data_dir, name=dataset_name, image_size=image_size, test_only=True)
        hint = data.robustbench or (hint if hint in get_args(RobustBenchDataset) else None)
    loaded = zoos.load_model(model, zoo=zoo, dataset=hint, threat=norm, device=where)
    card = loaded.card
    if card and dataset is None and not is_named_dataset(card.dataset):
        raise InputError(
            f"model {card.name} was trained on {card.dataset}, which is a data set of your own: give its FILE.npz or "
            "FOLDER with --dataset"
        )
    data = data or load_dataset(
        dataset or (card.dataset if card else "cifar10"),
        data_dir=data_dir,
        name=dataset_name,
        image_size=image_size or (card.architecture.image_size if card else None),
        test_only=True,
    )
    if card and data.name == card.dataset and data.test.fingerprint != card.test_fingerprint:
        raise InputError(
            f"the test images of {data.name} here are not those the card of {card.name} names (SHA-256 "
            f"{data.test.fingerprint[:12]}… instead of {card.test_fingerprint[:12]}…); give the same data, "
            "or another --dataset-name"
        )
    if n_examples is not None and not 1 <= n_examples <= len(data.test):
        raise InputError(
            f"--n-examples {n_examples} must be between 1 and {len(data.test)}, the size of {data.name}'s test set"
        )
    test = data.test if n_examples is None else data.test.head(n_examples)
    path = output or default_record_path(
        loaded.name, attack, norm, radius, n_examples=n_examples, settings=settings or {}
    )
    _check_folder(path.parent)  # before the attack: it would be a pity to learn it after hours
    reporter.say(
        f"{attack} in the {norm} ball of radius {radius} on {len(test):,} test images of {data.name}; "
        f"device {where} ({why_device}), precision fp32, seed {seed}"
    )
    record = run_attack(
        loaded,
        test,
        dataset=data.name,
        attack=chosen,
        norm=norm,
        eps=radius,
        seed=seed,
        batch_size=batch_size,
        device=where,
        reporter=reporter,
        spelled=model,
        command=command,
    )
    write_record(path, record)
    reporter.say(f"record written to {path}")
    return record


def parse_radii(text: str, norm: Norm, *, allow_large_eps: bool = False) -> list[Radius]:
    """The radii in `1/255,2/255`, each checked, so that none is refused after another was attacked with.

    Raises:
        InputError: One of them is no radius, or was probably meant in units of 1/255.
    """
    radii = []
    for part in text.split(","):
        try:
            radii.append(Radius(part))
        except ValueError as error:
            raise InputError(f"--eps: {error}") from error
        check_eps(norm, radii[-1], allow_large=allow_large_eps)
    return radii


def is_named_dataset(name: str) -> bool:
    """Whether a data set is found by its name alone (`cifar10`, `digits-8px`), as a file of one's own is not."""
    return re.sub(r"-\d+px$", "", name) in data_sources()


def _build_attack(name: str, settings: Mapping[str, Any]) -> Attack:
    takes = ATTACKS.get(name).model_fields
    for setting in settings:
        if setting not in takes:
            owners = [owner for owner, _ in settings_of_attacks().get(setting, [])]
            belongs = f"it belongs to {', '.join(owners)}" if owners else "no attack has it"
            known = f"{name} takes {', '.join(takes)}" if takes else f"{name} takes no settings"
            raise InputError(f"--{setting.replace('_', '-')} does not apply to attack {name!r}: {belongs}; {known}")
    return ATTACKS.build(ComponentSpec(method=name, **settings))


def _check_folder(folder: Path) -> None:
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise InputError(f"--output: no record can be written into {folder}, because {there} is a file")
    if not os.access(there, os.W_OK):
        raise InputError(f"--output: no record can be written into {folder}: no permission to write to {there}")


def default_record_path(
    name: str, attack: str, norm: Norm, eps: Radius, *, n_examples: int | None, settings: Mapping[str, Any]
) -> Path:
    """Where `evaluate` writes when it is not told: `evaluations/<model>/<attack>-<norm>-<eps>.json`.

    Settings of the attack and a number of examples that were asked for become part of the name, so
    that a quick look does not overwrite the evaluation that took a day.
    """
    parts = [attack, *(f"{key}{value}" for key, value in settings.items()), norm, str(eps)]
    if n_examples is not None:
        parts.append(f"n{n_examples}")
    stem = "-".join(parts).replace("/", "over")
    return Path("evaluations") / _safe(name) / f"{_safe(stem)}.json"


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)


def load_model(
    model: str,
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
