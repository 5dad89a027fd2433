"""A real classifier that needs no training, and ways to evaluate it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from sam_bench.attacks import Attack, Event
from sam_bench.attacks.gradient import PGDAttack
from sam_bench.data import Split, load_dataset, to_float
from sam_bench.errors import SamBenchError
from sam_bench.evaluation import Executor, Local, Log, Problem
from sam_bench.evaluation.results import Found, record_of
from sam_bench.evaluation.runner import _Run
from sam_bench.progress import Reporter, SilentReporter
from sam_bench.records import EvaluationRecord, Radius
from sam_bench.zoo import LoadedModel

CPU = torch.device("cpu")


def digits(count: int = 60) -> Split:
    return load_dataset("digits", image_size=8, test_only=True).test.head(count)


def loaded(module: nn.Module, **changes: Any) -> LoadedModel:
    fields: dict[str, Any] = {
        "module": module,
        "name": "nearest",
        "sha256": "a" * 64,
        "card": None,
        "num_classes": 10,
        "input_shape": (1, 8, 8),
    }
    return LoadedModel(**{**fields, **changes})


class Nearest(nn.Module):
    """The class whose mean image is nearest: a real classifier that needs no training."""

    def __init__(self) -> None:
        super().__init__()
        train = load_dataset("digits", image_size=8).train
        assert train is not None
        x = to_float(train.images).flatten(1)
        self.means = nn.Parameter(torch.stack([x[train.labels == label].mean(0) for label in range(10)]))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x.flatten(1), self.means.to(x.dtype)).square()


def problem_of(module: nn.Module, split: Split, attack: Attack | None = None, **changes: Any) -> Problem:
    options: dict[str, Any] = {
        "model": loaded(module),
        "test": split,
        "dataset": "digits",
        "attack": attack or PGDAttack(steps=5),
        "norm": "Linf",
        "eps": Radius("16/255"),
        "seed": 3,
        "batch_size": 25,
        "command": "sam-bench evaluate nearest",
    }
    return Problem(**{**options, **changes})


def evaluate(module: nn.Module, split: Split, attack: Attack | None = None, **changes: Any) -> EvaluationRecord:
    """The record of an evaluation whose log nobody looks at; examples that were carried over are given as such."""
    reporter = changes.pop("reporter", SilentReporter())
    problem = problem_of(module, split, attack, **changes)
    problem.check()
    with TemporaryDirectory() as folder:
        found = attacked(problem, Path(folder) / "r.progress", reporter=reporter)
    return record_of(problem, found, device="a CPU")


def attacked(
    problem: Problem,
    path: Path,
    executor: Executor | None = None,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Found:
    """What an attack finds, by a log in the folder `path` that stays."""
    run = _Run(executor or Local(CPU), resume, reporter or SilentReporter(), None, "", curve=False)
    return run.attacked(problem, path, path.with_suffix(".npz"))


def log_of(problem: Problem, path: Path) -> Log:
    """The log in a folder, as it can be read now."""
    log = Log(path, problem)
    log.read()
    return log


class Dying(PGDAttack):
    """Its process ends, or it fails, where it is run. Here, because workers find a class by its module."""

    how: str

    def events(self, *_: Any, **__: Any) -> Iterator[Event]:
        if self.how == "dies":
            os._exit(3)
        raise SamBenchError("by hand") if self.how == "refuses" else ZeroDivisionError("by hand")
