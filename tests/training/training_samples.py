"""Small real runs: a tiny network, some digits, and ways to stop a run in the middle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam_bench.data import Split, load_dataset
from sam_bench.distributed import ALONE, Team
from sam_bench.perturb.weights import StepContext
from sam_bench.progress import Reporter, SilentReporter
from sam_bench.records import Architecture, Precision, Radius, Recipe
from sam_bench.training import (
    BuiltRecipe,
    Ready,
    RunConfig,
    Saving,
    Trained,
    TrainingRun,
    build_recipe,
    load_recipe,
    override,
)
from sam_bench.training.step import Passes, StepResult, TrainingStep

ARCHITECTURE = Architecture(name="preactresnet10", num_classes=10, in_channels=1, image_size=8, options={"width": 2})

# A mirrored digit is another digit; the schedule is one whose rate differs at every step.
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 8, "schedule": "one-cycle", "crop_padding": 1, "flip": False}


class TinyNet(nn.Module):
    """A convolution, BatchNorm, dropout: everything whose state or draws a resumed run must continue."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4)
        self.dropout, self.head = nn.Dropout(0.2), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.norm(self.conv(x)).relu().flatten(1)))
        return logits


def tiny_net(seed: int = 0) -> TinyNet:
    torch.manual_seed(seed)
    return TinyNet()


@cache
def digits() -> Split:
    train = load_dataset("digits", image_size=8).train
    assert train is not None
    return train


def method_of(recipe: str | Recipe = "standard", settings: Mapping[str, Any] | None = None) -> BuiltRecipe:
    """A recipe that ships, made small."""
    return build_recipe(override(load_recipe(recipe), {**SETTINGS, **(settings or {})}))


def run(
    folder: Path,
    method: BuiltRecipe,
    *,
    train: Split | None = None,
    validation: Split | None = None,
    seed: int = 0,
    precision: Precision = "fp32",
    resume: bool = False,
    reporter: Reporter | None = None,
    model: nn.Module | None = None,
    keep: int = 1,
    save_every: float = 600.0,
    pause: float = 0.0,
    team: Team = ALONE,
    **choices: Any,
) -> Trained:
    """A run on the first digits, from the network that the seed decides, with a checkpoint after every epoch.

    `choices` go into its config.
    """
    train = train or digits().head(24)
    config = RunConfig(
        name="run",
        recipe=method.recipe,
        architecture=ARCHITECTURE,
        dataset="digits",
        train_fingerprint=train.fingerprint,
        train_examples=len(train),
        validation_examples=len(validation) if validation else 0,
        validation_norm="Linf",
        validation_eps=Radius("8/255"),
        seed=seed,
        precision=precision,
        **choices,
    )
    ready = Ready(
        model=model or tiny_net(seed),
        recipe=method,
        train=train,
        validation=validation,
        config=config,
        saving=Saving(folder, resume=resume, keep=keep, save_every=save_every, pause=pause),
        reporter=reporter or SilentReporter(),
        team=team,
    )
    return TrainingRun(ready).fit()


class Steps(TrainingStep):
    """Training steps of a run with a seed, and the passes they took together."""

    def __init__(self, model: nn.Module, recipe: BuiltRecipe, *, seed: int, **options: Any) -> None:
        super().__init__(model, recipe, **options)
        self.seed, self.passes = seed, Passes()

    def at(self, x: Tensor, y: Tensor, *, step: int, progress: float, **place: Any) -> StepResult:
        result = self(x, y, at=StepContext(self.seed, 0, step, progress), **place)
        self.passes += result.passes
        return result


class StopsAt(SilentReporter):
    """Ctrl-C at the n-th report of progress, counted from 1."""

    def __init__(self, report: int) -> None:
        self.left = report

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[StopsAt]:
        yield self

    def update(self, done: int, figures: str = "", share: float | None = None) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def saved(folder: Path) -> dict[str, Any]:
    """What the run's checkpoint holds, but for the time and energy it took."""
    content: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    for measured in ("seconds", "epoch_seconds", "joules", "epoch_joules"):
        del content["state"][measured]
    for row in content["state"]["log"]:
        del row["seconds"], row["images_per_second"]
    return content


def assert_same(one: Any, other: Any, where: str = "checkpoint") -> None:
    """Bit for bit, through nested dictionaries and lists."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{where}[{index}]")
    else:
        assert one == other, where


def weights_of(trained: Trained) -> list[Tensor]:
    return [parameter.detach() for parameter in trained.model.parameters()]
