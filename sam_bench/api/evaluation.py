"""`evaluate`: from a model to a record of what an attack did to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from sam_bench.api.arguments import (
    StrPath,
    check_choice,
    check_text,
    dataset_of,
    device_of,
    model_of,
    path_of,
    radius_of,
    settings_of,
    whole_number,
    whole_or_none,
)
from sam_bench.api.listing import settings_of_attacks
from sam_bench.api.model_and_data import model_and_data
from sam_bench.api.record_files import check_folder, check_record_file, default_record_path
from sam_bench.attacks import ATTACKS, Attack
from sam_bench.data import first_examples
from sam_bench.device import choose_device
from sam_bench.distributed import LONG_PATIENCE, Team, joined
from sam_bench.errors import InputError
from sam_bench.evaluation import (
    Executor,
    Local,
    OnRay,
    Problem,
    Processes,
    Torchrun,
    chosen_executor,
    evaluate_curve_of,
    second_attack_for,
)
from sam_bench.evaluation.batch_size import USUAL, choose_batch_size
from sam_bench.parallel import check_main_module, check_workers
from sam_bench.perturb.ball import USUAL_EPS, check_eps
from sam_bench.progress import Reporter, SilentReporter
from sam_bench.records import ComponentSpec, EvaluationRecord, Norm, Radius
from sam_bench.seeds import check_seed


def evaluate(
    model: StrPath | nn.Module,
    *,
    attack: str = "autoattack",
    norm: Norm = "Linf",
    eps: str | float | None = None,
    settings: Mapping[str, Any] | None = None,
    dataset: StrPath | None = None,
    n_examples: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    seed: int = 0,
    device: str | torch.device = "auto",
    workers: int | None = None,
    executor: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    task_size: int | None = None,
    data_dir: StrPath = Path("data"),
    dataset_name: str | None = None,
    image_size: int | None = None,
    zoo: StrPath | None = None,
    output: StrPath | None = None,
    resume: bool | Literal["if-any"] = False,
    save_adversarial: bool = False,
    second_opinion: bool = False,
    allow_large_eps: bool = False,
    reporter: Reporter | None = None,
    command: str = "",
) -> EvaluationRecord:
    """Attack a model and write an EvaluationRecord with a verdict for every example.

    Every verdict is on disk as soon as it is known, in a folder beside the record (`….progress`) that
    goes when the record is written. Started by `torchrun`, the processes share the examples.

    Args:
        model: A zoo name, a path, `robustbench:NAME` or `timm:NAME`; or a module that takes float32 [B, C, H, W] in
            [0, 1] and returns logits, which is moved to the device and goes by its class and a SHA-256 of its weights,
            its buffers and its logits on four fixed images. A module needs a `dataset`.
        attack: `autoattack`, `pgd`, `fgsm`, …, what another package registered, `torchattacks:NAME` or `foolbox:NAME`.
        norm: Norm of the ball: `Linf`, `L2` or `L1`.
        eps: Its radius for inputs in [0, 1], as `8/255` or a number; default 8/255 in Linf, 0.5 in L2, 12 in L1.
        settings: The attack's own settings: `{"steps": 20}`.
        dataset: As for `train`; default the one on the model's card, else `cifar10`.
        n_examples: The first so many test images, of every class in turn where they are sorted by class; default all.
        batch_size: Examples at a time; `auto`: what a GPU has room for and the examples fill, 128 elsewhere. Verdicts
            depend on it with AutoAttack's reference engine, with upstream's draws and with other packages' attacks
            only, for which `auto` is 128.
        seed: Decides every random draw.
        device: `auto`, `cpu`, `cuda`, ….
        workers: Processes on this machine that share the examples, default 1; with Ray, tasks at a time, default as
            many as the cluster has room for.
        executor: `local`, or `ray`: share the examples out over a Ray cluster.
        ray_address: `auto` or HOST:PORT of the cluster; `local` starts one here. Default: `$RAY_ADDRESS`, else `local`.
        task_size: Examples of a task on the cluster, at most; default 256.
        data_dir: Where torchvision's data sets are kept.
        dataset_name: What the data set is called in the record; default its own name.
        image_size: Resize to this many pixels (`digits` and folders); default the model's.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        output: The record's file, ending in `.json`; default `evaluations/<model>/<attack>-<norm>-<eps>.json`, with the
            attack's settings where they are not the usual ones, the number of examples where it was given, and a seed
            other than 0 in the name.
        resume: Go on with what an interrupted evaluation found; a finished one is given back. `if-any`: likewise,
            without a line that says so where there is neither.
        save_adversarial: Write the adversarial examples into `….adversarial.npz` beside the record.
        second_opinion: Run `pgd-margin` on what the attack left standing; no verdict changes, the record gets a
            block `second_opinion`, and a warning where it broke more than half a point. With `resume`, it is
            added to a record that is finished.
        allow_large_eps: Accept a radius that was probably meant in units of 1/255.
        reporter: Where progress goes; default nowhere.
        command: For the record.

    Raises:
        InputError: Something given is wrong; the message names it.
        SamBenchError: The model returns NaN, a checksum differs, or a file could not be written.
    """
    given = {key: value for key, value in locals().items() if key != "eps"}
    if isinstance(eps, Iterable) and not isinstance(eps, str):
        raise InputError(f"evaluate takes one eps, not {eps!r}; evaluate_curve(model, radii) takes several")
    (record,) = evaluate_curve(radii=None if eps is None else [eps], **given)
    return record


def evaluate_curve(
    model: StrPath | nn.Module,
    radii: Sequence[str | float] | None = None,
    *,
    attack: str = "autoattack",
    norm: Norm = "Linf",
    settings: Mapping[str, Any] | None = None,
    dataset: StrPath | None = None,
    n_examples: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    seed: int = 0,
    device: str | torch.device = "auto",
    workers: int | None = None,
    executor: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    task_size: int | None = None,
    data_dir: StrPath = Path("data"),
    dataset_name: str | None = None,
    image_size: int | None = None,
    zoo: StrPath | None = None,
    output: StrPath | None = None,
    resume: bool | Literal["if-any"] = False,
    save_adversarial: bool = False,
    second_opinion: bool = False,
    allow_large_eps: bool = False,
    reporter: Reporter | None = None,
    command: str = "",
) -> list[EvaluationRecord]:
    """Robust accuracy at several radii, from the smallest up: what is broken in a small ball is in a larger one.

    An example broken at one radius is not attacked again at a larger one; its verdict is carried over,
    and each record says how many were. The curve falls by construction. A stand-alone evaluation at a
    larger radius can leave a few examples more.

    Args:
        radii: Any number, in any order; default as for `evaluate`. The other arguments are those of
            `evaluate`; `output` goes with one radius only.

    Returns:
        A record for each radius, the smallest first.
    """
    check_main_module()
    reporter = reporter or SilentReporter()
    model, device = model_of(model), device_of(device)
    dataset = None if dataset is None else dataset_of(dataset)
    check_choice("--norm", norm, get_args(Norm))
    check_text("--attack", attack, "an attack's name, as in pgd")
    if dataset_name is not None:
        check_text("--dataset-name", dataset_name, "a name")
    settings = settings_of("settings", settings)
    batch_size = batch_size if batch_size == "auto" else whole_number("--batch-size", batch_size, least=1)
    workers = whole_or_none("--workers", workers, least=1)
    check_workers(workers if workers and executor == "local" else 1)
    n_examples = whole_or_none("--n-examples", n_examples)
    image_size = whole_or_none("--image-size", image_size)
    seed = whole_number("--seed", seed)
    check_seed(seed)
    output, zoo = path_of("--output", output), path_of("--zoo", zoo)
    data_dir = path_of("--data-dir", data_dir) or Path("data")
    check_record_file(output)
    found = sorted(parse_radii(radii, norm, allow_large_eps=allow_large_eps), key=float)
    if output is not None and len(found) > 1:
        raise InputError("--output names one file, but --eps gives several radii; leave --output away")
    chosen = _build_attack(attack, settings)
    chosen.check(norm)
    second = second_attack_for(chosen, norm) if second_opinion else None
    away_or_not = chosen_executor(
        executor, address=ray_address, device=device, workers=workers, task_size=task_size, reporter=reporter
    )
    with joined(LONG_PATIENCE) as team, away_or_not as away:
        if not team.is_main:
            reporter = SilentReporter()
        # What is done elsewhere needs no more of the device here than to look at the model once.
        where, why_device = choose_device("cpu" if away else device)
        loaded, data = model_and_data(
            model, dataset, norm, device=where, data_dir=data_dir, name=dataset_name, image_size=image_size, zoo=zoo
        )
        if n_examples is not None and not 1 <= n_examples <= len(data.test):
            raise InputError(
                f"--n-examples {n_examples} must be between 1 and {len(data.test)}, the size of {data.name}'s test set"
            )
        test = data.test if n_examples is None else first_examples(data.test, n_examples)
        if loaded.num_classes != data.num_classes:
            reporter.say(
                f"note: {loaded.name} knows {loaded.num_classes} classes, and {data.name} has {data.num_classes}: the "
                "accuracy only means something where their numbers mean the same"
            )
        named: dict[str, Any] = {"n_examples": n_examples, "seed": seed, "settings": _unusual(chosen, settings)}
        paths = [output or default_record_path(loaded.name, attack, norm, eps, **named) for eps in found]
        size, why_size = (batch_size, "asked for") if batch_size != "auto" else (USUAL, "the usual one")
        first = Problem(
            model=loaded,
            test=test,
            dataset=data.name,
            attack=chosen,
            norm=norm,
            eps=found[0],
            seed=seed,
            batch_size=size,
            save_adversarial=save_adversarial,
            spelled=model if isinstance(model, str) else loaded.name,
            command=command,
        )
        first.check()  # before a pass of the model is made to measure its memory
        if second is not None:
            replace(first, attack=second).check()
        if batch_size == "auto" and not away:
            shape = tuple(test.images.shape[1:])
            found_size = choose_batch_size(
                loaded.module, chosen, shape=shape, examples=len(test), device=where, processes=workers or 1
            )
            size, why_size = team.share(found_size)
        if not (resume and all(path.exists() for path in paths)):
            check_folder(paths[0].parent)  # before the attack: nobody wants to learn it after hours
        return evaluate_curve_of(
            replace(first, batch_size=size),
            found,
            paths,
            executor=_executor(away, team, workers or 1, where, why_device),
            resume=resume,
            reporter=reporter,
            second_attack=second,
            why_batch_size=why_size,
        )


def _executor(away: OnRay | None, team: Team, workers: int, device: torch.device, why: str) -> Executor:
    if away is not None:
        return away
    if team.size > 1:
        return Torchrun(team, device, why)
    return Processes(workers, device, why) if workers > 1 else Local(device, why)


def parse_radii(
    radii: str | Sequence[str | float] | None, norm: Norm, *, allow_large_eps: bool = False, option: str = "--eps"
) -> list[Radius]:
    """The radii in `1/255,2/255`, each checked, so that none is refused after another was attacked with.

    Args:
        radii: As written or one by one; None for the norm's usual one.
        norm: Of the ball.
        allow_large_eps: Accept a radius that was probably meant in units of 1/255.
        option: What messages call it.

    Raises:
        InputError: There is none, one of them is no radius, is there twice or was probably meant in units of 1/255.
    """
    if radii is None:
        return [USUAL_EPS[norm]]
    several = _one_by_one(radii)
    if not several:
        raise InputError(f"{option} names no radius; give one or several, as in 1/255,2/255, or leave it away")
    parsed: list[Radius] = []
    for part in several:
        radius = radius_of(option, part)
        check_eps(norm, radius, allow_large=allow_large_eps, option=option)
        if float(radius) in map(float, parsed):
            raise InputError(f"{option} has {radius} twice; take one of them away")
        parsed.append(radius)
    return parsed


def _one_by_one(radii: Any) -> list[Any]:
    if isinstance(radii, str):
        return radii.split(",") if radii else []
    try:
        return list(radii)
    except TypeError:  # a single one
        return [radii]


def _unusual(attack: Attack, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given, but for those that say what the attack does anyway."""
    usual = {name: field.get_default(call_default_factory=True) for name, field in type(attack).model_fields.items()}
    return {name: value for name, value in settings.items() if getattr(attack, name) != usual[name]}


def _build_attack(name: str, settings: Mapping[str, Any]) -> Attack:
    takes = ATTACKS.get(name).model_fields
    for setting in settings:
        if setting not in takes:
            owners = [owner for owner, _ in settings_of_attacks().get(setting, [])]
            option = f"--{setting.replace('_', '-')}" if owners else f"--attack-setting {setting}"
            belongs = f"it belongs to {', '.join(owners)}" if owners else "no attack has it"
            known = f"{name} takes {', '.join(takes)}" if takes else f"{name} takes no settings"
            raise InputError(f"{option} does not apply to attack {name!r}: {belongs}; {known}")
    return ATTACKS.build(ComponentSpec(method=name, **settings))
