"""A short sweep on a user's data, for `recommend`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sam_bench import api
from sam_bench.analysis.families import STANDARD
from sam_bench.api.analyzing import named_records
from sam_bench.data import open_dataset
from sam_bench.errors import SamBenchError
from sam_bench.progress import Reporter, SilentReporter
from sam_bench.records import Radius
from sam_bench.studies.measured_points import MeasuredPoint, measured_points
from sam_bench.studies.recommend import Question

_STEPS = 10  # of PGD


@dataclass(frozen=True)
class Swept:
    """What a sweep found.

    Attributes:
        rows: What was measured.
        failures: A sentence for each run that failed, such as one that diverged.
        warnings: A sentence if plain training learned nothing.
    """

    rows: tuple[MeasuredPoint, ...]
    failures: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def grids(question: Question) -> list[dict[str, list[Any]]]:
    """What is tried: plain training, and methods that the budget allows at strengths around the radius."""
    # Few epochs end too seldom for an average over their ends.
    found: list[dict[str, list[Any]]] = [{"recipe": ["standard"]}, {"recipe": ["swa"], "average_every": ["step"]}]
    if question.budget >= 2:
        found.append({"recipe": ["sam"], "rho": [0.05, 0.1, 0.2]})
        if question.norm == "Linf":
            found.append({"recipe": ["n-fgsm"], "eps": [_half(question.eps), str(question.eps)]})
    if question.budget >= 6:
        recipe = "at-linf-1" if question.norm == "Linf" else "at-l2-32"
        found.append({"recipe": [recipe], "eps": [str(question.eps)]})
    return found


def _test_labels(dataset: str, fields: Mapping[str, Any]) -> Tensor:
    given = {name: fields[name] for name in ("data_dir", "image_size") if name in fields}
    return open_dataset(dataset, **given).test.labels


def _half(eps: Radius) -> str:
    """Half the radius, written as it was: `4/255` for `8/255`."""
    number, slash, rest = str(eps).partition("/")
    return f"{float(number) / 2:g}{slash}{rest}"


def sweep_for(
    question: Question,
    dataset: str,
    *,
    folder: Path,
    n_examples: int,
    reporter: Reporter | None = None,
    command: str = "",
    **fields: Any,
) -> Swept:
    """Train what `grids` has, and attack each model. Run again, it goes on where it stopped.

    Args:
        question: What is asked for.
        dataset: As `train` takes it.
        folder: Where models, runs and records go.
        n_examples: Test images that are attacked; all where there are fewer.
        reporter: Where progress goes.
        command: For cards and records.
        fields: Of `TrainSpec`, the same for all runs: `epochs`, `limit_train`, `width`, `device`, ….

    Raises:
        SamBenchError: Plain training failed.
    """
    reporter, zoo = reporter or SilentReporter(), folder / "model_zoo"
    labels = _test_labels(dataset, fields)
    n_examples = min(n_examples, len(labels))
    settings: dict[str, Mapping[str, Any]] = {}
    failures = []
    fields = {"precision": "fp32", **fields}  # `auto` may differ between runs that are compared
    for grid in grids(question):
        result = api.sweep(
            grid, dataset=dataset, zoo=zoo, run_dir=folder / "runs", reporter=reporter, command=command, **fields
        )
        shared = {name: values[0] for name, values in grid.items() if len(values) == 1}
        settings |= {row.name: {**shared, **row.settings} for row in result.rows if row.error is None}
        failures += [f"{row.name} failed: {row.error}" for row in result.failed]
        if not settings:  # the first grid is plain training: without it the others would be trained for nothing
            raise SamBenchError(
                f"plain training failed, so there is nothing to compare with: {failures[0]}; for other data or "
                "another number of epochs, give another `folder`"
            )
    files = []
    for name in settings:
        attacked = f"{name}-{question.norm}-{question.eps}-n{n_examples}".replace("/", "over")
        files.append(folder / "evaluations" / f"{attacked}.json")
        api.evaluate(
            name,
            dataset=dataset,
            attack="pgd",
            settings={"steps": _STEPS},
            norm=question.norm,
            eps=question.eps,
            n_examples=n_examples,
            zoo=zoo,
            output=files[-1],
            resume="if-any",
            device=fields.get("device", "auto"),
            reporter=reporter,
            command=command,
        )
    rows = tuple(measured_points(named_records([str(path) for path in files], zoo), settings))
    return Swept(rows, tuple(failures), tuple(_unlearned(rows, labels)))


def _unlearned(rows: Sequence[MeasuredPoint], labels: Tensor) -> Iterator[str]:
    """Say it if plain training is right no more often than a guess: then nothing is compared with anything."""
    guess = float(labels.bincount().max()) / len(labels)
    standard = next(row for row in rows if row.family == STANDARD)
    if standard.clean <= guess + 2 * math.sqrt(guess * (1 - guess) / standard.n_examples):
        yield (
            f"plain training learned nothing: it is right on {standard.clean:.1%} of the test images, and naming the "
            f"largest class always on {guess:.1%}; so this says nothing of any method. Give more `epochs`, or more "
            "training images"
        )
