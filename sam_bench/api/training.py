"""`train`: from a recipe and a data set to a registered model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from sam_bench import zoo as zoos
from sam_bench.api.arguments import (
    StrPath,
    check_choice,
    check_lengths,
    check_text,
    dataset_of,
    device_of,
    path_of,
    settings_of,
    whole_number,
    whole_or_none,
)
from sam_bench.api.naming import default_name, describe
from sam_bench.api.registering import register, store_as
from sam_bench.data import (
    Dataset,
    StreamedDataset,
    StreamedSplit,
    channel_stats,
    first_examples,
    hold_out,
    known_name,
    known_stats,
    must_stream,
    open_dataset,
    suited_augmentation,
)
from sam_bench.data.splits import Stats
from sam_bench.device import choose_device, choose_precision
from sam_bench.distributed import Team, joined
from sam_bench.errors import InputError
from sam_bench.models import architecture_for, count_parameters, create_model
from sam_bench.parallel import check_main_module
from sam_bench.perturb.ball import check_eps
from sam_bench.progress import Reporter, SilentReporter
from sam_bench.records import (
    NAME_PATTERN,
    ModelCard,
    Norm,
    Radius,
    Recipe,
    RobustBenchDataset,
)
from sam_bench.seeds import check_seed
from sam_bench.training import Ready, RunConfig, Saving, TrainingRun, build_method, load_recipe, override
from sam_bench.training.compiling import choose_compile
from sam_bench.training.folder import RunFolder
from sam_bench.training.random_state import random_state_kept

_VALIDATION_SHARE = 50  # one in so many training images is held out, at most 1,000
_STATISTICS = 10_000  # images of a folder that mean and standard deviation are taken over
_VALIDATION_EPS = {"Linf": Radius("2/255"), "L2": Radius("32/255")}


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        card: The registered model's card.
        card_path: Where the card is; the weights lie beside it.
        model: The trained network in eval mode, inputs in [0, 1].
        run_dir: Checkpoint, log and TensorBoard events.
    """

    card: ModelCard
    card_path: Path
    model: nn.Module
    run_dir: Path


@random_state_kept()
def train(
    recipe: str | Path | Recipe = "standard",
    dataset: StrPath = "cifar10",
    *,
    arch: str = "preactresnet18",
    arch_options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    faithful: bool = False,
    name: str | None = None,
    seed: int = 0,
    precision: str = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    device: str | torch.device = "auto",
    validation: int | None = None,
    validation_eps: Radius | None = None,
    limit_train: int | None = None,
    image_size: int | None = None,
    data_dir: StrPath = Path("data"),
    dataset_name: str | None = None,
    robustbench_dataset: RobustBenchDataset | None = None,
    threat: Norm | None = None,
    run_dir: StrPath | None = None,
    zoo: StrPath | None = None,
    weights_dtype: Literal["float32", "float16"] = "float32",
    authors: str = "",
    resume: bool = False,
    keep: int = 1,
    save_every: float = 10.0,
    select: Literal["last", "best"] = "last",
    on_nan: Literal["stop", "rollback"] = "stop",
    micro_batch: int | None = None,
    sync_ascent: bool = False,
    sync_bn: bool = False,
    allow_large_eps: bool = False,
    reporter: Reporter | None = None,
    command: str = "",
) -> TrainResult:
    """Train a model and register it in the zoo.

    Started by `torchrun`, the processes share the run: each takes its part of every batch of the
    recipe's size, the first writes and speaks, and all return the same.

    Args:
        recipe: A recipe's name, a YAML file, or a `Recipe`.
        dataset: `cifar10`, `cifar100`, `svhn`, `digits`, a `.npz` file or a folder of images.
        arch: `preactresnet18` and its kin, or `timm:NAME`.
        arch_options: What the architecture takes: `{"width": 16}`, `{"patch_size": 4}`.
        settings: Settings of the recipe to replace, by bare name (`{"rho": 0.1, "epochs": 10}`).
        faithful: Take the settings of the published code where the recipe's are others.
        name: Name in the zoo; by default made of recipe, perturbations' settings, architecture and a seed other than 0.
        seed: Decides initial weights, order, augmentation and every perturbation's draws.
        precision: `auto`, `bf16` or `fp32`.
        compile: Run the network through `torch.compile`: faster from some thousand steps on; `auto` decides by
            the length of the run.
        device: `auto`, `cpu`, `cuda`, ….
        validation: Training images held out to watch the run; default one in 50, at most 1,000; 0 for none.
        validation_eps: Radius of the PGD-10 run on 512 of them; default: the recipe's own, else Linf 2/255, or L2
            32/255 where that is the threat model.
        limit_train: Train on the first so many images only; of a folder, whose images are sorted by class, on the
            first of every class in turn.
        image_size: Resize to this many pixels (`digits` and folders).
        data_dir: Where torchvision's data sets are kept.
        dataset_name: What the data set is called on the card; default its own name.
        robustbench_dataset: The RobustBench data set whose inputs and classes it shares.
        threat: The threat model it is listed under; default the recipe's norm, else Linf.
        run_dir: Folder of the run; default `runs/<name>`.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        weights_dtype: How the weights are stored; `float16` halves the file and is what is then evaluated.
        authors: For the card.
        resume: Continue the run in `run_dir` if there is one.
        keep: How many epochs' checkpoints stay in `run_dir`.
        save_every: Minutes after which a checkpoint is written in the middle of an epoch.
        select: Register the weights of the `last` epoch, or of the one with the `best` robust accuracy on
            the validation images, exactly as it was measured.
        on_nan: When the loss becomes NaN or infinite, `stop`, or `rollback` to the last checkpoint with half
            the learning rate, at most three times.
        micro_batch: Examples differentiated at a time on a device, in training and validation, where a batch does not
            fit into it.
        sync_ascent: On several devices, SAM's ascent along the gradient of the whole batch.
        sync_bn: On several devices, BatchNorm over the whole batch.
        allow_large_eps: Accept a radius that was probably meant in units of 1/255.
        reporter: Where progress goes; default nowhere.
        command: For the card.

    Raises:
        InputError: Something given is wrong, or the zoo could not take the result; the message names it.
        SamBenchError: Training diverged, or a file could not be written.
    """
    check_main_module()
    reporter = reporter or SilentReporter()
    for option, value, choices in (
        ("--compile", compile, ("auto", "on", "off")),
        ("--threat", threat or "Linf", ("Linf", "L2")),
        ("--robustbench-dataset", robustbench_dataset or "cifar10", get_args(RobustBenchDataset)),
        ("--weights-dtype", weights_dtype, ("float32", "float16")),
        ("--select", select, ("last", "best")),
        ("--on-nan", on_nan, ("stop", "rollback")),
    ):
        check_choice(option, value, choices)
    keep, micro_batch = whole_number("--keep", keep, least=1), whole_or_none("--micro-batch", micro_batch, least=1)
    validation, limit_train = whole_or_none("--validation", validation), whole_or_none("--limit-train", limit_train)
    image_size, seed = whole_or_none("--image-size", image_size), whole_number("--seed", seed)
    check_seed(seed)
    run_dir, zoo = path_of("--run-dir", run_dir), path_of("--zoo", zoo)
    data_dir = path_of("--data-dir", data_dir) or Path("data")
    settings, device = settings_of("settings", settings), device_of(device)
    dataset = dataset_of(dataset)
    check_text("--arch", arch, "an architecture's name")
    chosen = load_recipe(recipe, faithful=faithful)
    method = build_method(override(chosen, settings))
    ball = method.inputs.ball
    norm: Norm = ball.norm if ball else threat or "Linf"
    check_lengths(method, allow_large=allow_large_eps)
    if validation_eps is not None:
        check_eps(norm, validation_eps, allow_large=allow_large_eps, option="--validation-eps")
    if limit_train is not None and limit_train < 2:
        raise InputError(f"--limit-train {limit_train} must be at least 2: BatchNorm needs two images in a batch")
    if validation is not None:
        _check_selection(select, validation)
    if name is None:
        name = default_name(method.recipe, chosen, arch, arch_options or {}, seed=seed)
    elif not re.fullmatch(NAME_PATTERN, name):
        raise InputError(
            f"--name {name!r} cannot name a model: use letters, digits, '.', '_' and '-', starting with a letter "
            "or digit, at most 100 characters"
        )
    with joined() as team:
        if not team.is_main:
            reporter = SilentReporter()
        store = zoos.Zoo(zoos.zoo_dir(zoo))
        if team.is_main:
            # What would keep the result out of the zoo is said before the work, as far as it can be known by then.
            called = known_name(dataset, name=dataset_name, image_size=image_size)
            if called is None:
                store.check_writable()
            else:
                store.check_place(zoos.Place(name, called, threat or norm, robustbench_dataset))
        where, why_device = choose_device(device)
        kind, why_precision = choose_precision(precision, where)

        if not team.is_main:
            team.wait()  # until rank 0 has the data set, which it may have to download
        whole = method.recipe.augmentation.random_resized_crop
        data = open_dataset(dataset, stream=whole, data_dir=data_dir, name=dataset_name, image_size=image_size)
        robustbench_dataset = robustbench_dataset or data.robustbench
        place = zoos.Place(name, data.name, threat or norm, robustbench_dataset)
        if team.is_main:
            store.check_place(place)
            team.wait()
        if data.train is None:
            raise InputError(f"data set {data.name} has no training images")
        # A recipe from a file or an object says what its user wants; one of the package suits photographs.
        own = isinstance(recipe, (Path, Recipe)) or recipe.endswith((".yaml", ".yml"))
        augmentation, said = suited_augmentation(
            data,
            method.recipe.augmentation,
            {*settings, *(chosen.augmentation.model_fields_set if own else ())},
        )
        suited = method.recipe.model_copy(update={"augmentation": augmentation})
        method = replace(method, recipe=suited)
        # Rank 0 decides for all, by the memory that is free before any of them takes some.
        (mean, std), streams = team.share(_decided(data, where, whole=whole) if team.is_main else (((), ()), False))
        if isinstance(data, StreamedDataset) and not streams:
            data = data.load()
        assert data.train is not None
        architecture = architecture_for(
            arch,
            num_classes=data.num_classes,
            in_channels=data.in_channels,
            image_size=data.image_size,
            mean=mean,
            std=std,
            options=arch_options or {},
        )
        learnt = first_examples(data.train, limit_train) if limit_train is not None else data.train
        held_out = min(1000, len(learnt) // _VALIDATION_SHARE) if validation is None else validation
        if not 0 <= held_out <= len(learnt) - 2:
            raise InputError(
                f"--validation {held_out} must be between 0 and {len(learnt) - 2}: there are {len(learnt)} training "
                "images, and at least two must be left to learn from"
            )
        _check_selection(select, held_out)
        watched = None
        if held_out:
            learnt, watched = hold_out(learnt, held_out, seed)

        torch.manual_seed(seed)
        module: nn.Module = create_model(architecture).to(where)
        compiled, why_compiled = choose_compile(
            compile,
            module,
            method,
            shape=(data.in_channels, data.image_size, data.image_size),
            examples=len(learnt),
            device=where,
        )
        if sync_bn and team.size > 1:
            from sam_bench.training.sync_bn import synchronised  # loads timm, which other runs need not wait for

            module = synchronised(module, where)
        config = RunConfig(
            name=name,
            recipe=method.recipe,
            architecture=architecture,
            dataset=data.name,
            train_fingerprint=team.share(learnt.fingerprint if team.is_main else ""),
            train_examples=len(learnt),
            validation_examples=held_out,
            validation_norm=norm,
            validation_eps=(
                validation_eps
                if validation_eps is not None
                else Radius(method.recipe.inputs.settings.get("eps", _VALIDATION_EPS[norm]))
            ),
            seed=seed,
            precision=kind,
            compiled=compiled,
            micro_batch=micro_batch,
            sync_ascent=sync_ascent,
            sync_bn=sync_bn,
            on_nan=on_nan,
            select=select,
        )
        folder = run_dir or Path("runs") / name
        if team.is_main:
            RunFolder(folder).check(config, resume=resume)
            tells_apart = ("recipe", "architecture", "seed", "precision", "train_fingerprint")
            store.check_run(place, {field: getattr(config, field) for field in tells_apart})
        parameters = count_parameters(module)
        reporter.say(f"{name}: {describe(method.recipe)}")
        if said:
            reporter.say(said)
        reporter.say(
            f"{arch} with {parameters:,} parameters on {len(learnt):,} images of {data.name}"
            + (f", {held_out:,} more held out for validation" if held_out else "")
            + (", read from disk as they are needed" if isinstance(learnt, StreamedSplit) else "")
        )
        reporter.say(
            f"device {where} ({why_device}), precision {kind} ({why_precision}), "
            f"{'compiled' if compiled else 'not compiled'} ({why_compiled}), seed {seed}"
        )
        if team.size > 1:
            reporter.say(_shared(method.recipe.batch_size, team, sync_ascent=sync_ascent, sync_bn=sync_bn))
        ready = Ready(
            module,
            method,
            learnt.to(where),
            watched.to(where) if watched else None,
            config,
            Saving(folder, resume=resume, keep=keep, save_every=60 * save_every),
            reporter,
            team,
        )
        trained = TrainingRun(ready).fit()
        store_as(trained.model, weights_dtype)
        registered = None
        if team.is_main:
            registered = register(
                trained,
                config,
                data,
                threat=threat or norm,
                robustbench_dataset=robustbench_dataset,
                device=where,
                store=store,
                weights_dtype=weights_dtype,
                authors=authors,
                command=command,
            )
        registered = team.share(registered)
        assert registered is not None
        card, path = registered
        reporter.say(
            f"clean accuracy {card.clean_accuracy:.2%} on {len(data.test):,} test images; registered as {path}"
        )
        return TrainResult(card=card, card_path=path, model=trained.model.eval(), run_dir=folder)


def _shared(batch_size: int, team: Team, *, sync_ascent: bool, sync_bn: bool) -> str:
    """How a team shares a batch, in a sentence."""
    part = f"{batch_size // team.size}" if batch_size % team.size == 0 else f"about {batch_size / team.size:.1f}"
    ascent = "by the whole batch's gradient" if sync_ascent else "by each one's own (--sync-ascent: the whole's)"
    return (
        f"{team.size} devices share every batch of {batch_size}, {part} examples each; weights perturbed {ascent}; "
        f"BatchNorm over {'the whole batch' if sync_bn else 'each part (--sync-bn: the whole)'}"
    )


def _check_selection(select: str, held_out: int) -> None:
    if select == "best" and not held_out:
        raise InputError("--select best needs validation images to tell the best epoch by; give --validation N above 0")


def _decided(data: Dataset | StreamedDataset, device: torch.device, *, whole: bool) -> tuple[Stats, bool]:
    """Mean and standard deviation, and whether the data are streamed; `whole`: an augmentation needs whole images.

    Of a folder, however large, they are those of the same images, streamed or not: memory decides no weight.
    """
    assert data.train is not None
    if isinstance(data, Dataset):
        return known_stats(data.name) or channel_stats(data.train), False
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes on this machine
    streams = whole or must_stream(data, device, copies=copies)
    return known_stats(data.name) or channel_stats(data.train.sample(_STATISTICS)), streams
