"""What a study would take: passes and hours, from the cards and records that are there, else from a short trial."""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sam_bench.api.training import run_training
from sam_bench.attacks import ATTACKS
from sam_bench.data import load_dataset
from sam_bench.device import choose_device
from sam_bench.models import architecture_for, create_model
from sam_bench.records import ComponentSpec
from sam_bench.studies.claims import CLEAN
from sam_bench.studies.jobs import Measurement, Model, Study
from sam_bench.studies.lookup import is_done
from sam_bench.studies.opening import refuse_unknown_data
from sam_bench.studies.plan import Evaluation
from sam_bench.studies.results import Measured, read_study

_PUBLISHED = {"cifar10": (50_000, 10, 3, 32), "cifar100": (50_000, 100, 3, 32), "digits": (1297, 10, 1, 16)}
"""Of data sets that need not be loaded for it: training images, classes, channels, size."""

_AUTOATTACK = 1910 + 5947 / 3
"""Passes of an image that stays robust: 1,910 forward-backward, and 5,947 forward at a third of one each."""

_MINIMUM_NORM = 100  # steps of the search


@dataclass(frozen=True)
class Line:
    """A line of the plan.

    Attributes:
        what: A row or an evaluation.
        left: How many of its jobs are not done.
        planned: How many there are.
        passes: Of one: per training example, or in all; None if not known.
        hours: What is left takes; None if not known.
    """

    what: str
    left: int
    planned: int
    passes: float
    hours: float


@dataclass(frozen=True)
class Estimate:
    """What is left of a study.

    Attributes:
        trainings: A line for each row.
        measurements: A line for each evaluation.
        seconds: Of a forward-backward pass of one image.
        basis: Where the seconds come from.
    """

    trainings: list[Line]
    measurements: list[Line]
    seconds: float
    basis: str

    @property
    def hours(self) -> float:
        """Of everything that is left, for one process."""
        return sum(line.hours for line in [*self.trainings, *self.measurements])


def estimate(study: Study) -> Estimate:
    """Passes and hours of what is left; of attacks at most, as an image that is broken is not attacked further."""
    found = read_study(study)
    examples, classes, channels, size = _shape(study)
    examples = study.scale.limit_train or examples
    known = [card.cost for cards in found.cards.values() for card in cards.values()]
    per_pass = [cost.seconds / (cost.passes * examples) for cost in known if cost.passes]
    basis = f"{len(per_pass)} trained models"
    if not per_pass:
        per_pass = [_timed(study, classes, channels, size)]
        basis = "a trial of some batches, without compilation"
    seconds = statistics.median(per_pass)
    trainings = [_training(study, found, row, seconds * examples) for row in study.rows]
    names = [CLEAN, *study.plan.evaluations]
    return Estimate(trainings, [_measuring(study, found, name, seconds) for name in names], seconds, basis)


def _shape(study: Study) -> tuple[int, int, int, int]:
    if study.dataset_name in _PUBLISHED:
        return _PUBLISHED[study.dataset_name]
    if study.dataset == study.dataset_name:
        refuse_unknown_data(study.dataset, study.scale_name)
    data = load_dataset(study.dataset, data_dir=study.data_dir)
    return len(data.train or data.test), data.num_classes, data.in_channels, data.image_size


def _training(study: Study, found: Measured, row: str, seconds: float) -> Line:
    cards = found.cards.get(row, {})
    planned = len(study.seeds(row))
    known = [card.cost.passes for card in cards.values()]
    passes = statistics.fmean(known) if known else passes_of(study, row)
    left = planned - len(cards)
    return Line(row, left, planned, passes, left * passes * seconds / 3600)


def passes_of(study: Study, row: str) -> float:
    """Passes per training example of a row: counted in an epoch of a few small images, times its epochs."""
    spec = study.training(Model(row, 0))
    with tempfile.TemporaryDirectory() as folder:
        trial = spec.but(
            dataset="digits",
            image_size=8,
            limit_train=8,
            settings={**spec.settings, "epochs": 1, "batch_size": 4},
            arch_options={**spec.arch_options, "width": 1},
            precision="fp32",
            compile="off",
            device="cpu",
            run_dir=Path(folder) / "run",
            zoo=Path(folder) / "zoo",
        )
        return run_training(trial).card.cost.passes * int(spec.settings["epochs"])


def _measuring(study: Study, found: Measured, name: str, seconds: float) -> Line:
    jobs = [job for job in study.jobs() if isinstance(job, Measurement) and job.evaluation == name]
    left = sum(not is_done(study, job) for job in jobs)
    took = [
        sum(record.seconds for record in records)
        for (_, evaluation), several in found.records.items()
        for records in several.values()
        if evaluation == name
    ]
    took += [note.seconds for (_, of), notes in found.notes.items() if of == name for note in notes.values()]
    passes = 0.0 if name == CLEAN else study.scale.first[name] * passes_per_image(study.plan.evaluations[name])
    each = statistics.fmean(took) if took else passes * seconds
    return Line(name, left, len(jobs), passes, left * each / 3600)


def passes_per_image(evaluation: Evaluation) -> float:
    """Of an image that nothing breaks, at all radii."""
    if evaluation.attack is None:
        return _MINIMUM_NORM
    if evaluation.attack == "autoattack":
        return _AUTOATTACK * len(evaluation.eps)
    attack = ATTACKS.build(ComponentSpec(method=evaluation.attack, **evaluation.settings))
    return float(getattr(attack, "steps", 1)) * len(evaluation.eps)


def _timed(study: Study, classes: int, channels: int, size: int) -> float:
    """Seconds of a pass of one image: the best of some batches."""
    device = choose_device(study.device)[0]
    architecture = architecture_for(
        study.scale.arch,
        num_classes=classes,
        in_channels=channels,
        image_size=size,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        options=study.scale.network,
    )
    model = create_model(architecture).to(device)
    batch = 128 if device.type == "cuda" else 32
    x, y = torch.rand(batch, channels, size, size, device=device), torch.zeros(batch, dtype=torch.long, device=device)
    narrow = torch.autocast(device.type, torch.bfloat16) if study.precision == "bf16" else nullcontext()
    best = float("inf")
    for _ in range(4):  # the first warms up
        began = time.perf_counter()
        with narrow:
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        loss.item()  # waits for the device
        best = min(best, time.perf_counter() - began)
    return best / batch
