"""From a training's spec to a registered model: prepare, fit, register."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sam_bench import zoo as zoos
from sam_bench.api.initial import InitialWeights
from sam_bench.api.naming import describe
from sam_bench.api.registering import of_run, register, store_as
from sam_bench.api.specs.train import TrainSpec
from sam_bench.cores import take_spare_cores
from sam_bench.data import (
    Dataset,
    Extra,
    Split,
    StreamedDataset,
    StreamedSplit,
    channel_stats,
    first_examples,
    hold_out,
    known_name,
    known_stats,
    load_extra,
    must_stream,
    open_dataset,
    suited_augmentation,
)
from sam_bench.data.splits import Stats
from sam_bench.device import choose_device
from sam_bench.distributed import Team, joined, main_first
from sam_bench.errors import InputError
from sam_bench.models import architecture_for, check_model, count_parameters, create_model
from sam_bench.progress import Reporter, SilentReporter
from sam_bench.records import Architecture, ExtraData, ModelCard, Norm, Precision, Radius, Recipe
from sam_bench.training import Ready, RunConfig, Saving, TrainingRun
from sam_bench.training.compiling import choose_compile
from sam_bench.training.folder import RunFolder
from sam_bench.training.precision import precision_for
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


@dataclass(frozen=True)
class Prepared:
    """A training that can begin: everything is loaded, checked and decided.

    Attributes:
        spec: What was asked for, with everything that was left open decided.
        data: The data set.
        place: Where the model goes in the zoo.
        device: Where it is trained.
        run: What the training itself needs.
    """

    spec: TrainSpec
    data: Dataset | StreamedDataset
    place: zoos.Place
    device: torch.device
    run: Ready


def run_training(spec: TrainSpec, *, reporter: Reporter | None = None, command: str = "") -> TrainResult:
    """Train as the spec says and register the model. See `sam_bench.train`."""
    spec.check()
    with random_state_kept(), joined() as team:
        reporter = reporter if reporter is not None and team.is_main else SilentReporter()
        store = zoos.Zoo(zoos.zoo_dir(spec.zoo))
        ready = prepare(spec, store, team=team, reporter=reporter)
        trained = TrainingRun(ready.run).fit()
        store_as(trained.model, spec.weights_dtype)
        registered = register(trained, ready, store, command=command) if team.is_main else None
        registered = team.broadcast(registered)
        assert registered is not None
        card, path = registered
        reporter.say(
            f"clean accuracy {card.clean_accuracy:.2%} on {len(ready.data.test):,} test images; registered as {path}"
        )
        return TrainResult(card=card, card_path=path, model=trained.model.eval(), run_dir=ready.run.saving.folder)


def prepare(spec: TrainSpec, store: zoos.Zoo, *, team: Team, reporter: Reporter) -> Prepared:
    """Load, check and decide everything that a training needs.

    Raises:
        InputError: The data, the network or a field do not fit, or the zoo could not take the result.
    """
    name = spec.name or spec.default_name()
    if team.is_main:
        _check_zoo(spec, name, store)
    device, why_device = choose_device(spec.device)
    if device.type == "cpu" and team.size == 1 and (fewer := take_spare_cores()):
        reporter.say(fewer)
    folder = spec.run_dir or Path("runs") / name
    begun = team.broadcast(RunFolder(folder).config() if team.is_main and spec.resume else None)
    data, place = _open(spec, name, store, team)
    spec, images = _suited(spec, data)
    data, stats = _in_memory_or_streamed(spec, data, device, team)
    learnt, watched = _split(spec, data)
    module, architecture, start, further = _network(spec, data, stats)
    module.to(device)
    shape = (data.in_channels, data.image_size, data.image_size)
    check_model(module, data.num_classes, shape, name=f"the network {spec.arch}")
    precision, why_precision = _precision(
        spec, begun, team, partial(precision_for, spec.precision, device, module, shape)
    )
    asked = spec.compile if begun is None or spec.compile != "auto" else "on" if begun.compiled else "off"
    compiled, why_compiled = _compiled(spec, asked, module, shape, len(learnt), precision, device, team)
    why_compiled = why_compiled if asked == spec.compile else "as the run began"
    if spec.sync_bn and team.size > 1:
        from sam_bench.training.sync_bn import synchronised  # loads timm, which other runs need not wait for

        module = synchronised(module, device, twice=spec.method.objective.differentiates_slopes)
    settled = spec.but(
        image_size=data.image_size,
        limit_train=len(learnt) + (len(watched) if watched else 0),
        validation=len(watched) if watched else 0,
        validation_eps=_validation_eps(spec),
        precision=precision,
        compile="on" if compiled else "off",
    )
    fingerprint = team.broadcast(learnt.fingerprint if team.is_main else "")
    extra, told = _extra(spec, data, learnt)
    decided = {"train_examples": len(learnt), "train_fingerprint": fingerprint, **further, **told}
    config = _config(settled, name, architecture, data.name, decided)
    if team.is_main:
        RunFolder(folder).check(config, resume=spec.resume)
        store.check_run(place, of_run(config))
    saving = Saving(folder, resume=spec.resume, keep=spec.keep, save_every=60 * spec.save_every)
    on_device = learnt.to(device), watched.to(device) if watched else None
    run = Ready(module, spec.method, *on_device, config, saving, reporter, team, extra and extra.to(device))
    ready = Prepared(settled, data, place, device, run)
    _announce(ready, [images, start], {"device": why_device, "precision": why_precision, "compile": why_compiled})
    return ready


def _precision(
    spec: TrainSpec,
    begun: RunConfig | None,
    team: Team,
    measure: Callable[[], tuple[Precision, str]],
) -> tuple[Precision, str]:
    """The precision and why: that of the run that is continued, whatever would be measured now."""
    if begun is not None and spec.precision == "auto":
        return begun.precision, "as the run began"
    measured = team.broadcast(measure() if team.is_main else None)
    assert measured is not None
    return measured


def _compiled(
    spec: TrainSpec,
    asked: str,
    module: nn.Module,
    shape: tuple[int, int, int],
    examples: int,
    precision: Precision,
    device: torch.device,
    team: Team,
) -> tuple[bool, str]:
    """Whether to compile, and why; where it has to be measured, rank 0 does it for all."""
    if asked == "auto" and not team.is_main:
        return team.broadcast((False, ""))
    part = -(-spec.method.recipe.batch_size // team.size)
    chosen = choose_compile(
        asked,
        module,
        spec.method,
        shape=shape,
        examples=examples // team.size,
        device=device,
        rows=max(2, min(spec.micro_batch or part, part, examples)),
        precision=precision,
        sync_bn=spec.sync_bn and team.size > 1,
    )
    return team.broadcast(chosen) if asked == "auto" else chosen


def _check_zoo(spec: TrainSpec, name: str, store: zoos.Zoo) -> None:
    """Say before the work, as far as it can be known by then, what would keep the result out of the zoo."""
    called = known_name(spec.dataset, name=spec.dataset_name, image_size=spec.image_size)
    if called is None:
        store.check_writable()
    else:
        store.check_place(zoos.Place(name, called, _threat(spec), spec.robustbench_dataset))


def _threat(spec: TrainSpec) -> Norm:
    return spec.threat or spec.norm


def _open(spec: TrainSpec, name: str, store: zoos.Zoo, team: Team) -> tuple[Dataset | StreamedDataset, zoos.Place]:
    """The data set, and the model's place in the zoo, which depends on what the data set is called."""
    with main_first():  # it may have to download the data set
        data = open_dataset(
            spec.dataset,
            stream=spec.method.recipe.augmentation.random_resized_crop,
            data_dir=spec.data_dir,
            name=spec.dataset_name,
            image_size=spec.image_size,
        )
        place = zoos.Place(name, data.name, _threat(spec), spec.robustbench_dataset or data.robustbench)
        if team.is_main:
            store.check_place(place)
    if data.train is None:
        raise InputError(f"data set {data.name} has no training images")
    return data, place


def _suited(spec: TrainSpec, data: Dataset | StreamedDataset) -> tuple[TrainSpec, str]:
    """The spec with an augmentation that suits the images, and a sentence about it.

    A recipe of the package suits photographs; one from a file or an object says what its user wants.
    """
    own = isinstance(spec.recipe, (Path, Recipe)) or spec.recipe.endswith((".yaml", ".yml"))
    given = {*spec.settings, *(spec.base.augmentation.model_fields_set if own else ())}
    recipes = spec.method.recipe.augmentation
    suited, images = suited_augmentation(data, recipes, given)
    changed = {name: value for name, value in suited if value != getattr(recipes, name)}
    return (spec.but(settings={**spec.settings, **changed}) if changed else spec), images


def _in_memory_or_streamed(
    spec: TrainSpec, data: Dataset | StreamedDataset, device: torch.device, team: Team
) -> tuple[Dataset | StreamedDataset, Stats]:
    """The data set as it is used, and its mean and standard deviation.

    Rank 0 decides for all, by the memory that is free before any of them takes some.
    """
    whole = spec.method.recipe.augmentation.random_resized_crop
    stats, streams = team.broadcast(_decided(data, device, whole=whole) if team.is_main else (((), ()), False))
    if isinstance(data, StreamedDataset) and not streams:
        data = data.load()
    return data, stats


def _network(
    spec: TrainSpec, data: Dataset | StreamedDataset, stats: Stats
) -> tuple[nn.Module, Architecture, str, dict[str, Any]]:
    """The network as the run begins, what it is made of, a remark on its weights, and what the run's config says."""
    initial = InitialWeights(spec, data) if spec.init is not None else None
    mean, std = stats if initial is None or initial.stats is None else initial.stats
    architecture = architecture_for(
        spec.arch,
        num_classes=data.num_classes,
        in_channels=data.in_channels,
        image_size=data.image_size,
        mean=mean,
        std=std,
        options=spec.arch_options,
    )
    torch.manual_seed(spec.seed)
    module = create_model(architecture)
    if initial is None:
        return module, architecture, "", {"init_sha256": None, "additional_data": False}
    start, sha256 = initial.put_into(module, architecture)
    return module, architecture, start, {"init_sha256": sha256, "additional_data": not initial.clean}


def _extra(
    spec: TrainSpec, data: Dataset | StreamedDataset, learnt: Split | StreamedSplit
) -> tuple[Extra | None, dict[str, Any]]:
    """Further images to learn from, and what the run's config says of them."""
    if spec.extra_data is None:
        return None, {"extra_data": None}
    if isinstance(learnt, StreamedSplit):
        raise InputError("needs training images that fit into memory", field="extra_data", value=spec.extra_data)
    split = load_extra(spec.extra_data, shape=learnt.shape[1:], num_classes=data.num_classes)
    told = ExtraData(
        file=spec.extra_data.name, fraction=spec.extra_fraction, examples=len(split), fingerprint=split.fingerprint
    )
    return Extra(split, spec.extra_fraction), {"extra_data": told, "additional_data": True}


def _split(
    spec: TrainSpec, data: Dataset | StreamedDataset
) -> tuple[Split | StreamedSplit, Split | StreamedSplit | None]:
    """The images to learn from, and those held out."""
    assert data.train is not None
    learnt = first_examples(data.train, spec.limit_train) if spec.limit_train is not None else data.train
    held_out = min(1000, len(learnt) // _VALIDATION_SHARE) if spec.validation is None else spec.validation
    if not 0 <= held_out <= len(learnt) - 2:
        raise InputError(
            f"must be between 0 and {len(learnt) - 2}: there are {len(learnt)} training images, and at least two must "
            "be left to learn from",
            field="validation",
            value=held_out,
        )
    spec.check_selection(held_out)
    return hold_out(learnt, held_out, spec.seed) if held_out else (learnt, None)


def _validation_eps(spec: TrainSpec) -> Radius:
    if spec.validation_eps is not None:
        return spec.validation_eps
    return Radius(spec.method.recipe.inputs.settings.get("eps", _VALIDATION_EPS[spec.norm]))


def _config(
    settled: TrainSpec, name: str, architecture: Architecture, dataset: str, decided: dict[str, Any]
) -> RunConfig:
    """What decides the run, as its folder keeps it: the fields of the spec that it has, and what follows from them."""
    fields = {field: getattr(settled, field) for field in RunConfig.model_fields if field in type(settled).model_fields}
    return RunConfig(
        **fields
        | {
            "name": name,
            "recipe": settled.method.recipe,
            "architecture": architecture,
            "dataset": dataset,
            "validation_examples": settled.validation,
            "validation_norm": settled.norm,
            "compiled": settled.compile == "on",
            "identity": settled.identity(),
        }
        | decided
    )


def _announce(ready: Prepared, remarks: list[str], why: dict[str, str]) -> None:
    """Say what begins, what there is to remark, and the reason of everything that was decided."""
    spec, run = ready.spec, ready.run
    config, watched, say = run.config, run.validation, run.reporter.say
    extra = config.extra_data
    say(f"{config.name}: {describe(config.recipe)}")
    for remark in filter(None, remarks):
        say(remark)
    say(
        f"{spec.arch} with {count_parameters(run.model):,} parameters on {len(run.train):,} images of "
        f"{ready.data.name}"
        + (f", {len(watched):,} more held out for validation" if watched else "")
        + (f"; {extra.fraction:.0%} of every batch from {extra.examples:,} of {extra.file}" if extra else "")
        + (", read from disk as they are needed" if isinstance(run.train, StreamedSplit) else "")
    )
    say(
        f"device {ready.device} ({why['device']}), precision {config.precision} ({why['precision']}), "
        f"{'compiled' if config.compiled else 'not compiled'} ({why['compile']}), seed {spec.seed}"
    )
    if run.team.size > 1:
        say(_shared(config.recipe.batch_size, run.team, sync_ascent=spec.sync_ascent, sync_bn=spec.sync_bn))


def _shared(batch_size: int, team: Team, *, sync_ascent: bool, sync_bn: bool) -> str:
    """How a team shares a batch, in a sentence."""
    part = f"{batch_size // team.size}" if batch_size % team.size == 0 else f"about {batch_size / team.size:.1f}"
    ascent = "by the whole batch's gradient" if sync_ascent else "by each one's own (sync_ascent: the whole's)"
    return (
        f"{team.size} devices share every batch of {batch_size}, {part} examples each; weights perturbed {ascent}; "
        f"BatchNorm over {'the whole batch' if sync_bn else 'each part (sync_bn: the whole)'}"
    )


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
