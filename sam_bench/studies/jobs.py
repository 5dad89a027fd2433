"""From a plan to its jobs: which models are trained, and what is measured on each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sam_bench.api import EvalSpec, TrainSpec
from sam_bench.errors import InputError
from sam_bench.records import Radius
from sam_bench.studies.claims import CLEAN
from sam_bench.studies.plan import Evaluation, Plan, PlanFile, Row, Scale

STANDARD = "standard"
"""The row that the others are compared with."""


@dataclass(frozen=True)
class Model:
    """A row with one seed."""

    row: str
    seed: int

    @property
    def name(self) -> str:
        """In the zoo: `sam-02-s0`."""
        return f"{self.row}-s{self.seed}"


@dataclass(frozen=True)
class Measurement:
    """An evaluation of the plan on one model."""

    model: Model
    evaluation: str

    @property
    def name(self) -> str:
        """In messages, and of its lock: `sam-02-s0.pgd-linf`."""
        return f"{self.model.name}.{self.evaluation}"


Job = Model | Measurement


@dataclass(frozen=True)
class Study:
    """A plan at one scale, with the folder that holds what was made.

    Attributes:
        file: The plan.
        scale_name: Which of its scales.
        folder: Where models, records and the report are.
        dataset: A name, or the path of a file or folder.
        dataset_name: What cards call it.
        precision: Of all trainings: bf16 or fp32.
        device: auto, cpu, cuda, ….
        data_dir: Where downloads are kept.
    """

    file: PlanFile
    scale_name: str
    folder: Path
    dataset: str
    dataset_name: str
    precision: str
    device: str = "auto"
    data_dir: Path = Path("data")

    @property
    def plan(self) -> Plan:
        """What the file says."""
        return self.file.plan

    @cached_property
    def scale(self) -> Scale:
        """The scale."""
        return self.plan.scale(self.scale_name)

    @property
    def zoo(self) -> Path:
        """The folder of the models."""
        return self.folder / "model_zoo"

    @cached_property
    def rows(self) -> dict[str, Row]:
        """The rows of this scale, in the plan's order."""
        wanted = self.scale.rows or tuple(self.plan.rows)
        return {
            name: row for name, row in self.plan.rows.items() if name in wanted and name not in self.scale.leave_out
        }

    def seeds(self, row: str) -> range:
        """The seeds of a row."""
        return range(self.scale.seeds.main if self.rows[row].seeds == "main" else self.scale.seeds.other)

    def evaluations(self, row: str) -> dict[str, Evaluation]:
        """What is measured on a row."""
        return {
            name: each
            for name, each in self.plan.evaluations.items()
            if (each.rows is None or self.rows[row].seeds == each.rows) and (not each.only or row in each.only)
        }

    def jobs(self) -> list[Job]:
        """All of them in the order of work: seed by seed, and in each the main rows first.

        A first report exists early. The main rows are trained and attacked by PGD first, then the other rows: that
        decides most claims at a fraction of the cost. Dearer measurements come last.
        """
        return sorted(self._jobs(), key=self._stage)

    def _stage(self, job: Job) -> int:
        if isinstance(job, Measurement) and job.evaluation != CLEAN:
            evaluation = self.plan.evaluations[job.evaluation]
            if evaluation.attack != "pgd" or evaluation.temperature is not None:
                return 2
        model = job if isinstance(job, Model) else job.model
        return 0 if self.rows[model.row].seeds == "main" else 1

    def _jobs(self) -> Iterator[Job]:
        for seed in range(max(len(self.seeds(row)) for row in self.rows)):
            for kind in ("main", "other"):
                for name, row in self.rows.items():
                    if row.seeds == kind and seed in self.seeds(name):
                        model = Model(name, seed)
                        yield model
                        yield Measurement(model, CLEAN)
                        yield from (Measurement(model, each) for each in self.evaluations(name))

    def training(self, model: Model) -> TrainSpec:
        """How a model is trained.

        Raises:
            InputError: The recipe does not exist, or has no such setting; names the row.
        """
        row = self.rows[model.row]
        try:
            spec = TrainSpec(
                recipe=row.recipe,
                dataset=self.dataset,
                settings={**row.settings, "epochs": self.scale.epochs * row.epochs},
                arch=self.scale.arch,
                arch_options={**self.scale.network, **row.arch_options},
                limit_train=self.scale.limit_train,
                validation=0,
                precision=self.precision,
                seed=model.seed,
                name=model.name,
                run_dir=self.folder / "runs" / model.name,
                zoo=self.zoo,
                data_dir=self.data_dir,
                device=self.device,
                resume=True,
            )
            spec.check()
        except InputError as error:
            raise InputError(f"row {model.row} of the plan cannot be trained: {error}") from error
        return spec

    def attack(self, measurement: Measurement, **fields: Any) -> EvalSpec:
        """How a model is attacked.

        Args:
            measurement: Of an evaluation with an attack.
            fields: What follows from the model: its data set.
        """
        evaluation = self.plan.evaluations[measurement.evaluation]
        assert evaluation.attack is not None
        return EvalSpec(
            attack=evaluation.attack,
            settings=evaluation.settings,
            norm=evaluation.norm,
            eps=evaluation.eps,
            n_examples=self.scale.first[measurement.evaluation],
            zoo=self.zoo,
            data_dir=self.data_dir,
            device=self.device,
            record_dir=self.records(measurement),
            resume="if-any",
            **fields,
        )

    def records(self, measurement: Measurement) -> Path:
        """The folder of a measurement's records. What is not the plain evaluation of a model has its own."""
        special = self.plan.evaluations[measurement.evaluation].temperature is not None
        return self.folder / "evaluations" / (measurement.name if special else measurement.model.name)

    def record(self, measurement: Measurement, eps: Radius) -> Path:
        """The file of a record."""
        return self.records(measurement) / f"{self.attack(measurement).default_name(eps)}.json"

    def notes(self, measurement: Measurement) -> Path:
        """The file of what a measurement found that is no record."""
        return self.folder / "measurements" / measurement.model.name / f"{measurement.evaluation}.json"
