"""`evaluate` and `load_model`: from the name of a model to a record of what an attack did to it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from sam_bench import zoo as zoos
from sam_bench.api.listing import settings_of_attacks
from sam_bench.attacks import ATTACKS, Attack, Verdict
from sam_bench.data import Dataset, data_sources, load_dataset
from sam_bench.device import choose_device
from sam_bench.distributed import joined
from sam_bench.errors import InputError
from sam_bench.evaluation import Evaluation, Journal, record_of, run_evaluation, settings_of, write_witnesses
from sam_bench.perturb.ball import check_eps
from sam_bench.progress import Reporter, SilentReporter
from sam_bench.records import (
    MISCLASSIFIED,
    ROBUST,
    ComponentSpec,
    EvaluationRecord,
    Norm,
    Radius,
    RobustBenchDataset,
    read_record,
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
    workers: int = 1,
    data_dir: Path = Path("data"),
    dataset_name: str | None = None,
    image_size: int | None = None,
    zoo: Path | None = None,
    output: Path | None = None,
    resume: bool = False,
    save_adversarial: bool = False,
    allow_large_eps: bool = False,
    reporter: Reporter | None = None,
    command: str = "",
) -> EvaluationRecord:
    """Attack a model and write an EvaluationRecord with a verdict for every example.

    Every verdict is on disk as soon as it is known, in a folder beside the record (`….progress`) that
    goes when the record is written. Started by `torchrun`, the processes share the examples.

    Args:
        model: A zoo name, a path, `robustbench:NAME` or `timm:NAME`.
        attack: `autoattack`, `pgd`, `fgsm`, or what another package registered.
        norm: Norm of the ball: `Linf` or `L2`.
        eps: Its radius for inputs in [0, 1], as `8/255` or a number.
        settings: The attack's own settings: `{"steps": 20}`.
        dataset: As for `train`; default the one on the model's card, else `cifar10`.
        n_examples: The first so many test images; default all.
        batch_size: Examples at a time. Verdicts depend on it with AutoAttack's reference engine only.
        seed: Decides every random draw.
        device: `auto`, `cpu`, `cuda`, ….
        workers: Processes on this machine that share the examples.
        data_dir: Where torchvision's data sets are kept.
        dataset_name: What the data set is called in the record; default its own name.
        image_size: Resize to this many pixels (`digits` and folders); default the model's.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        output: The record's file; default `evaluations/<model>/<attack>-<norm>-<eps>.json`, with the
            attack's settings and the number of examples in the name where they were given.
        resume: Go on with what an interrupted evaluation found; a finished one is given back.
        save_adversarial: Write the adversarial examples into `….adversarial.npz` beside the record.
        allow_large_eps: Accept a radius that was probably meant in units of 1/255.
        reporter: Where progress goes; default nowhere.
        command: For the record.

    Raises:
        InputError: Something given is wrong; the message names it.
        SamBenchError: The model returns NaN, a checksum differs, or a file could not be written.
    """
    given = {key: value for key, value in locals().items() if key != "eps"}
    (record,) = evaluate_curve(radii=[eps], **given)
    return record


def evaluate_curve(
    model: str,
    radii: Sequence[str | float],
    *,
    attack: str = "autoattack",
    norm: Norm = "Linf",
    settings: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    n_examples: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    device: str = "auto",
    workers: int = 1,
    data_dir: Path = Path("data"),
    dataset_name: str | None = None,
    image_size: int | None = None,
    zoo: Path | None = None,
    output: Path | None = None,
    resume: bool = False,
    save_adversarial: bool = False,
    allow_large_eps: bool = False,
    reporter: Reporter | None = None,
    command: str = "",
) -> list[EvaluationRecord]:
    """Robust accuracy at several radii, from the smallest up: what is broken in a small ball is in a larger one.

    An example broken at one radius is not attacked again at a larger one; its verdict is carried over,
    and each record says how many were. The curve falls by construction. A stand-alone evaluation at a
    larger radius can leave a few examples more.

    Args:
        radii: At least one, in any order. The other arguments are those of `evaluate`; `output` goes with
            one radius only.

    Returns:
        A record for each radius, the smallest first.
    """
    reporter = reporter or SilentReporter()
    found = sorted(
        {float(each): each for each in parse_radii(radii, norm, allow_large_eps=allow_large_eps)}.values(), key=float
    )
    check_seed(seed)
    chosen = _build_attack(attack, settings or {})
    with joined() as team:
        if not team.is_main:
            reporter = SilentReporter()
        where, why_device = choose_device(device)
        loaded, data = _model_and_data(
            model, dataset, norm, device=where, data_dir=data_dir, name=dataset_name, image_size=image_size, zoo=zoo
        )
        if n_examples is not None and not 1 <= n_examples <= len(data.test):
            raise InputError(
                f"--n-examples {n_examples} must be between 1 and {len(data.test)}, the size of {data.name}'s test set"
            )
        test = data.test if n_examples is None else data.test.head(n_examples)
        paths = [
            output
            or default_record_path(loaded.name, attack, norm, eps, n_examples=n_examples, settings=settings or {})
            for eps in found
        ]
        _check_folder(paths[0].parent)  # before the attack: it would be a pity to learn it after hours
        records: list[EvaluationRecord] = []
        for eps, path in zip(found, paths, strict=True):
            evaluation = Evaluation(
                model=loaded,
                test=test,
                dataset=data.name,
                attack=chosen,
                norm=norm,
                eps=eps,
                seed=seed,
                batch_size=batch_size,
                carried=_broken(records[-1]) if records else {},
            )
            if not records:
                evaluation.check()
            done = _finished(path, evaluation) if resume and team.is_main else None
            done = team.share(done)
            if done is not None:
                reporter.say(f"{path} is finished: nothing to resume")
                records.append(done)
                continue
            reporter.say(
                f"{attack} in the {norm} ball of radius {eps} on {len(test):,} test images of {data.name}; "
                f"device {where} ({why_device}), precision fp32, seed {seed}"
            )
            journal = Journal(path.with_suffix(".progress"))
            known = run_evaluation(
                evaluation,
                journal,
                resume=resume,
                workers=workers,
                device=where,
                reporter=reporter,
                keep_witnesses=save_adversarial,
                team=team,
            )
            record = record_of(evaluation, known, device=where, spelled=model, command=command)
            if team.is_main:
                if save_adversarial:
                    write_witnesses(path.with_suffix(".adversarial.npz"), known)
                write_record(path, record)
                journal.remove()
                reporter.say(f"record written to {path}")
            records.append(record)
    return records


def _model_and_data(
    model: str,
    dataset: str | None,
    norm: Norm,
    *,
    device: torch.device,
    data_dir: Path,
    name: str | None,
    image_size: int | None,
    zoo: Path | None,
) -> tuple[zoos.LoadedModel, Dataset]:
    """The model, on the device, and the data set it is attacked on."""
    hint, data = (Path(dataset).stem if dataset else None), None
    if dataset and model.startswith("robustbench:"):
        # RobustBench knows its own data sets only; one's own file says which of them it is like, if it is.
        data = load_dataset(dataset, data_dir=data_dir, name=name, image_size=image_size, test_only=True)
        hint = data.robustbench or (hint if hint in get_args(RobustBenchDataset) else None)
    loaded = zoos.load_model(model, zoo=zoo, dataset=hint, threat=norm, device=device)
    card = loaded.card
    if card and dataset is None and not is_named_dataset(card.dataset):
        raise InputError(
            f"model {card.name} was trained on {card.dataset}, which is a data set of your own: give its FILE.npz or "
            "FOLDER with --dataset"
        )
    data = data or load_dataset(
        dataset or (card.dataset if card else "cifar10"),
        data_dir=data_dir,
        name=name,
        image_size=image_size or (card.architecture.image_size if card else None),
        test_only=True,
    )
    if card and data.name == card.dataset and data.test.fingerprint != card.test_fingerprint:
        raise InputError(
            f"the test images of {data.name} here are not those the card of {card.name} names (SHA-256 "
            f"{data.test.fingerprint[:12]}… instead of {card.test_fingerprint[:12]}…); give the same data, "
            "or another --dataset-name"
        )
    return loaded, data


def _broken(record: EvaluationRecord) -> dict[int, Verdict]:
    """The examples that an evaluation broke."""
    return {
        place: Verdict(place, verdict)
        for place, verdict in enumerate(record.verdicts)
        if verdict not in (ROBUST, MISCLASSIFIED)
    }


def _finished(path: Path, evaluation: Evaluation) -> EvaluationRecord | None:
    """The record at `path`, when it is of this evaluation."""
    if not path.exists():
        return None
    record = read_record(path, EvaluationRecord)
    identity = evaluation.identity()
    same = all(
        str(getattr(record, field)) == str(identity[field])
        for field in ("checkpoint_sha256", "dataset_fingerprint", "attack", "engine", "norm", "eps", "seed")
    )
    version = str(evaluation.attack.model_dump().get("version", ""))
    complete = record.settings == settings_of(evaluation.attack) and record.version == version
    return record if same and complete and record.carried == len(evaluation.carried) else None


def parse_radii(radii: str | Sequence[str | float], norm: Norm, *, allow_large_eps: bool = False) -> list[Radius]:
    """The radii in `1/255,2/255`, each checked, so that none is refused after another was attacked with.

    Raises:
        InputError: One of them is no radius, or was probably meant in units of 1/255.
    """
    parsed = []
    for part in radii.split(",") if isinstance(radii, str) else radii:
        try:
            parsed.append(Radius(part))
        except ValueError as error:
            raise InputError(f"--eps: {error}") from error
        check_eps(norm, parsed[-1], allow_large=allow_large_eps)
    return parsed


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
