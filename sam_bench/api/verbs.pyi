"""Made from the specs by `make stubs`. Do not edit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sam_bench.api.analyzing import AnalysisResult
from sam_bench.api.specs import EvalSpec, SweepSpec, TrainSpec
from sam_bench.api.specs.checks import StrPath
from sam_bench.api.sweeping import SweepResult
from sam_bench.api.training import TrainResult
from sam_bench.progress import Reporter
from sam_bench.records import EvaluationRecord, Recipe

def train(
    recipe: str | Path | Recipe | TrainSpec = "standard",
    dataset: StrPath = "cifar10",
    *,
    image_size: int | None = None,
    dataset_name: str | None = None,
    data_dir: StrPath = ...,
    seed: int = 0,
    allow_large_eps: bool = False,
    device: str | torch.device = "auto",
    zoo: StrPath | None = None,
    faithful: bool = False,
    settings: Mapping[str, Any] = ...,
    arch: str = "preactresnet18",
    arch_options: Mapping[str, Any] = ...,
    init: str | None = None,
    extra_data: StrPath | None = None,
    extra_fraction: float = 0.7,
    limit_train: int | None = None,
    validation: int | None = None,
    validation_eps: str | float | None = None,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    micro_batch: int | None = None,
    sync_ascent: bool = False,
    sync_bn: bool = False,
    on_nan: Literal["stop", "rollback"] = "stop",
    select: Literal["last", "best"] = "last",
    name: str | None = None,
    robustbench_dataset: Literal["cifar10", "cifar100", "imagenet"] | None = None,
    threat: Literal["Linf", "L2"] | None = None,
    weights_dtype: Literal["float32", "float16"] = "float32",
    authors: str = "",
    run_dir: StrPath | None = None,
    keep: int = 1,
    save_every: float = 10.0,
    resume: bool = False,
    reporter: Reporter | None = None,
    command: str = "",
) -> TrainResult:
    """Train a model and register it in the zoo.

    Args:
        image_size: Resize to this many pixels (digits and folders).
        dataset_name: What a data set of your own is called on cards and records.
        data_dir: Where torchvision's data sets are kept.
        seed: Decides every random draw.
        allow_large_eps: Accept an eps that was probably meant in units of 1/255.
        device: auto, cpu, cuda, cuda:1, ….
        zoo: Folder of the zoo. Default: $SAM_BENCH_ZOO, else ./model_zoo.
        faithful: The published code's settings where the recipe's differ; see `recipes show`.
        settings: Settings of the recipe to replace, by name: {'rho': 0.1, 'epochs': 10}.
        arch: An architecture of ours, or timm:NAME.
        arch_options: Any other option of the architecture, such as patch_size=4.
        init: Start from these weights: a model of the zoo, a file, robustbench:NAME or timm:NAME. Mean and
            standard deviation are theirs; the last layer is new where the classes differ. Default: random
            weights.
        extra_data: FILE.npz of further training images, such as generated ones (image, label), mixed into every
            batch.
        extra_fraction: Their share of every batch.
        limit_train: Train on the first so many images only, for a quick look; of a FOLDER, of every class in
            turn.
        validation: Training images held out to watch the run; 0: none. Default: one in 50, at most 1,000.
        validation_eps: Radius of the PGD-10 run on the validation images. Default: the recipe's, else 2/255, or
            32/255 in L2.
        precision: auto, bf16 or fp32; auto takes bf16 where the device is faster with it.
        compile: torch.compile: a minute at the start, faster afterwards; auto: for long runs.
        micro_batch: Examples a device runs at a time, in training (with BatchNorm at least two) and validation.
        sync_ascent: On several devices: SAM ascends along the whole batch's gradient.
        sync_bn: On several devices: BatchNorm over the whole batch.
        on_nan: When the loss is NaN or infinite: stop, or go back to the last checkpoint with half the learning
            rate, at most three times.
        select: Register the last epoch, or the one with the best robust accuracy on the validation images, as
            measured.
        name: Name in the zoo. Default: made of recipe, perturbations, architecture and a seed other than 0.
        robustbench_dataset: The RobustBench data set whose inputs and classes a data set of your own shares.
        threat: The threat model it is listed under. Default: the recipe's norm, else Linf.
        weights_dtype: How the weights are stored; what is stored is what is measured.
        authors: Who trained it, for the card.
        run_dir: Folder of checkpoint, log and TensorBoard events. Default: runs/NAME.
        keep: How many epochs' checkpoints stay in the run's folder.
        save_every: Write a checkpoint within an epoch, too, when it takes longer than this.
        resume: Continue the run of this name where it stopped.
    """

def evaluate(
    model: StrPath | nn.Module,
    spec: EvalSpec | None = None,
    *,
    dataset: str | None = None,
    image_size: int | None = None,
    dataset_name: str | None = None,
    data_dir: StrPath = ...,
    seed: int = 0,
    allow_large_eps: bool = False,
    device: str | torch.device = "auto",
    zoo: StrPath | None = None,
    attack: str = "autoattack",
    settings: Mapping[str, Any] = ...,
    norm: Literal["Linf", "L2", "L1"] = "Linf",
    eps: str | float | Sequence[str | float] | None = None,
    n_examples: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    workers: int | None = None,
    executor: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    output: StrPath | None = None,
    record_dir: StrPath | None = None,
    resume: bool | Literal["if-any"] = False,
    save_adversarial: bool = False,
    second_attack: bool = False,
    reporter: Reporter | None = None,
    command: str = "",
) -> EvaluationRecord:
    """Attack a model and write a record with a verdict for every example.

    Args:
        dataset: cifar10, cifar100, svhn, tiny-imagenet, imagenet, cifar10-c-fog-3, …, digits, FILE.npz or
            FOLDER. Default: the one on the model's card.
        image_size: Resize to this many pixels (digits and folders).
        dataset_name: What a data set of your own is called on cards and records.
        data_dir: Where torchvision's data sets are kept.
        seed: Decides every random draw.
        allow_large_eps: Accept an eps that was probably meant in units of 1/255.
        device: auto, cpu, cuda, cuda:1, ….
        zoo: Folder of the zoo. Default: $SAM_BENCH_ZOO, else ./model_zoo.
        attack: The attack's name; another package's is torchattacks:NAME or foolbox:NAME.
        settings: A setting of the attack, such as steps=20; for another package's attack, which has no options.
        norm: Norm of the ball.
        eps: Radius of the ball, for inputs in [0, 1]; a,b,…: a curve, on which what is broken stays so.
            Default: 8/255; L2: 0.5; L1: 12.
        n_examples: The first so many test images; of every class in turn where they are sorted by it. Default:
            all.
        batch_size: Examples at a time; auto: what a GPU has room for, else 128. Verdicts depend on it with
            attacks on whole batches only.
        workers: Processes that share the examples. Default: 1; with Ray: as many as there is room for.
        executor: Where the work is done: on this machine, or on a Ray cluster.
        ray_address: auto or HOST:PORT of a Ray cluster; local: start one here. Default: $RAY_ADDRESS, else
            local.
        output: The record's file (….json). Default: evaluations/MODEL/ATTACK-NORM-EPS….json.
        record_dir: The folder of the records, one a radius. Default: evaluations/MODEL.
        resume: Go on with what an interrupted evaluation has found; a finished one is given back.
        save_adversarial: Write the adversarial examples, too (….adversarial.npz).
        second_attack: Run pgd-margin on what the attack left standing, and warn where it breaks more than half
            a point.
    """

def evaluate_curve(
    model: StrPath | nn.Module,
    radii: str | float | Sequence[str | float] | EvalSpec | None = None,
    *,
    dataset: str | None = None,
    image_size: int | None = None,
    dataset_name: str | None = None,
    data_dir: StrPath = ...,
    seed: int = 0,
    allow_large_eps: bool = False,
    device: str | torch.device = "auto",
    zoo: StrPath | None = None,
    attack: str = "autoattack",
    settings: Mapping[str, Any] = ...,
    norm: Literal["Linf", "L2", "L1"] = "Linf",
    n_examples: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    workers: int | None = None,
    executor: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    output: StrPath | None = None,
    record_dir: StrPath | None = None,
    resume: bool | Literal["if-any"] = False,
    save_adversarial: bool = False,
    second_attack: bool = False,
    reporter: Reporter | None = None,
    command: str = "",
) -> list[EvaluationRecord]:
    """Robust accuracy at several radii, from the smallest up: what is broken in a small ball is in a larger one.

    Args:
        dataset: cifar10, cifar100, svhn, tiny-imagenet, imagenet, cifar10-c-fog-3, …, digits, FILE.npz or
            FOLDER. Default: the one on the model's card.
        image_size: Resize to this many pixels (digits and folders).
        dataset_name: What a data set of your own is called on cards and records.
        data_dir: Where torchvision's data sets are kept.
        seed: Decides every random draw.
        allow_large_eps: Accept an eps that was probably meant in units of 1/255.
        device: auto, cpu, cuda, cuda:1, ….
        zoo: Folder of the zoo. Default: $SAM_BENCH_ZOO, else ./model_zoo.
        attack: The attack's name; another package's is torchattacks:NAME or foolbox:NAME.
        settings: A setting of the attack, such as steps=20; for another package's attack, which has no options.
        norm: Norm of the ball.
        n_examples: The first so many test images; of every class in turn where they are sorted by it. Default:
            all.
        batch_size: Examples at a time; auto: what a GPU has room for, else 128. Verdicts depend on it with
            attacks on whole batches only.
        workers: Processes that share the examples. Default: 1; with Ray: as many as there is room for.
        executor: Where the work is done: on this machine, or on a Ray cluster.
        ray_address: auto or HOST:PORT of a Ray cluster; local: start one here. Default: $RAY_ADDRESS, else
            local.
        output: The record's file (….json). Default: evaluations/MODEL/ATTACK-NORM-EPS….json.
        record_dir: The folder of the records, one a radius. Default: evaluations/MODEL.
        resume: Go on with what an interrupted evaluation has found; a finished one is given back.
        save_adversarial: Write the adversarial examples, too (….adversarial.npz).
        second_attack: Run pgd-margin on what the attack left standing, and warn where it breaks more than half
            a point.
    """

def sweep(
    grid: Mapping[str, Sequence[Any]] | SweepSpec,
    *,
    dataset: str = "cifar10",
    image_size: int | None = None,
    dataset_name: str | None = None,
    data_dir: StrPath = ...,
    seed: int = 0,
    allow_large_eps: bool = False,
    device: str | torch.device = "auto",
    zoo: StrPath | None = None,
    recipe: str | StrPath | Recipe = "standard",
    faithful: bool = False,
    arch: str = "preactresnet18",
    arch_options: Mapping[str, Any] = ...,
    init: str | None = None,
    extra_data: StrPath | None = None,
    extra_fraction: float = 0.7,
    limit_train: int | None = None,
    validation: int | None = None,
    validation_eps: str | float | None = None,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    micro_batch: int | None = None,
    sync_ascent: bool = False,
    sync_bn: bool = False,
    on_nan: Literal["stop", "rollback"] = "stop",
    select: Literal["last", "best"] = "last",
    robustbench_dataset: Literal["cifar10", "cifar100", "imagenet"] | None = None,
    threat: Literal["Linf", "L2"] | None = None,
    weights_dtype: Literal["float32", "float16"] = "float32",
    authors: str = "",
    keep: int = 1,
    save_every: float = 10.0,
    attack: str | None = None,
    attack_settings: Mapping[str, Any] = ...,
    attack_norm: Literal["Linf", "L2", "L1"] = "Linf",
    attack_eps: str | float | Sequence[str | float] | None = None,
    n_examples: int | None = None,
    workers: int | None = None,
    executor: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    run_dir: StrPath = ...,
    reporter: Reporter | None = None,
    command: str = "",
) -> SweepResult:
    """Train a model for every combination of values, and attack each if asked to.

    Args:
        workers: Runs side by side. Default: 1; with Ray: as many as there is room for.
        executor: Where the work is done: on this machine, or on a Ray cluster.
        ray_address: auto or HOST:PORT of a Ray cluster; local: start one here. Default: $RAY_ADDRESS, else
            local.
        run_dir: Folder of the runs' folders.
    """

def analyze(
    analysis: str,
    subjects: StrPath | Sequence[StrPath] = (),
    *,
    dataset: str | None = None,
    image_size: int | None = None,
    dataset_name: str | None = None,
    data_dir: StrPath = ...,
    seed: int = 0,
    allow_large_eps: bool = False,
    device: str | torch.device = "auto",
    zoo: StrPath | None = None,
    settings: Mapping[str, Any] = ...,
    n_examples: int = 1000,
    batch_size: int = 128,
    output: StrPath | None = None,
    reporter: Reporter | None = None,
    command: str = "",
) -> AnalysisResult:
    """Ask something of models or records; write the numbers as JSON, and a figure.

    Args:
        dataset: cifar10, cifar100, svhn, tiny-imagenet, imagenet, cifar10-c-fog-3, …, digits, FILE.npz or
            FOLDER. Default: the one on the model's card.
        image_size: Resize to this many pixels (digits and folders).
        dataset_name: What a data set of your own is called on cards and records.
        data_dir: Where torchvision's data sets are kept.
        seed: Decides every random draw.
        allow_large_eps: Accept an eps that was probably meant in units of 1/255.
        device: auto, cpu, cuda, cuda:1, ….
        zoo: Folder of the zoo. Default: $SAM_BENCH_ZOO, else ./model_zoo.
        settings: Settings of the analysis by name.
        n_examples: The first so many test images; of every class in turn where they are sorted by it.
        batch_size: Examples at a time.
        output: The folder for numbers and figure. Default: analyses/NAME.
    """
