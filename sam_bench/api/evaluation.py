"""From a model and an evaluation's spec to records of what the attack did to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sam_bench.api.model_and_data import model_and_data, model_of
from sam_bench.api.record_files import check_folder, check_record_file, default_record_path
from sam_bench.api.specs.evaluate import EvalSpec
from sam_bench.attacks import Attack
from sam_bench.data import Dataset, Split, first_examples
from sam_bench.device import choose_device, device_name
from sam_bench.distributed import LONG_PATIENCE, Team, joined
from sam_bench.errors import InputError
from sam_bench.evaluation import Evaluation, Recording, broken, chosen_executor, run_evaluation
from sam_bench.evaluation.batch_size import USUAL, choose_batch_size
from sam_bench.evaluation.on_ray import OnRay
from sam_bench.evaluation.opinion import second_attack
from sam_bench.parallel import check_main_module, check_workers
from sam_bench.progress import Reporter, SilentReporter
from sam_bench.records import EvaluationRecord, Radius
from sam_bench.zoo import LoadedModel


@dataclass(frozen=True)
class Prepared:
    """An evaluation that can begin: the model and the data are loaded, checked and fit each other.

    Attributes:
        evaluation: What is attacked with the smallest radius.
        paths: Radius to the file of its record, the smallest radius first.
        recording: How each becomes a record.
    """

    evaluation: Evaluation
    paths: dict[Radius, Path]
    recording: Recording

    def run(self) -> list[EvaluationRecord]:
        """Attack at each radius: what is broken in a small ball is broken in a larger one."""
        paths = list(self.paths.values())
        for (radius, path), smaller in zip(self.paths.items(), [None, *paths[:-1]], strict=True):
            self.recording.check(replace(self.evaluation, eps=radius), path, smaller=smaller)
        records: list[EvaluationRecord] = []
        for radius, path in self.paths.items():
            carried = broken(records[-1]) if records else {}
            evaluation = replace(self.evaluation, eps=radius, carried=carried)
            records.append(self.recording.record(evaluation, path, records[-1] if records else None))
        return records


def run_evaluations(
    model: str | Path | nn.Module, spec: EvalSpec, *, reporter: Reporter | None = None, command: str = ""
) -> list[EvaluationRecord]:
    """Attack the model as the spec says: a record for each radius, the smallest first. See `sam_bench.evaluate`."""
    check_main_module()
    check_workers(spec.workers if spec.workers and spec.executor == "local" else 1)
    check_record_file(spec.output)
    spec.check()
    model = model_of(model)
    chosen = chosen_executor(
        spec.executor,
        address=spec.ray_address,
        device=spec.device,
        workers=spec.workers,
        task_size=spec.task_size,
    )
    with joined(LONG_PATIENCE) as team, chosen as away:
        reporter = reporter if reporter is not None and team.is_main else SilentReporter()
        return prepare(model, spec, team=team, away=away, reporter=reporter, command=command).run()


def prepare(
    model: str | nn.Module, spec: EvalSpec, *, team: Team, away: OnRay | None, reporter: Reporter, command: str
) -> Prepared:
    """Load the model and the data, and decide everything that an evaluation needs.

    Args:
        model: As `evaluate` takes it.
        spec: What is asked for.
        team: The processes that share the examples.
        away: The cluster that does the work; None where this machine does.
        reporter: Where progress goes.
        command: For the record.

    Raises:
        InputError: The model, the data and the attack do not fit each other.
    """
    second = second_attack(spec.built, spec.norm) if spec.second_attack else None
    # What is done elsewhere needs no more of the device here than to look at the model once.
    device, why_device = choose_device("cpu" if away else spec.device)
    loaded, data = model_and_data(model, spec, device=device)
    test = _examples(spec, data)
    if loaded.num_classes != data.num_classes:
        reporter.say(
            f"note: {loaded.name} knows {loaded.num_classes} classes, and {data.name} has {data.num_classes}: the "
            "accuracy only means something where their numbers mean the same"
        )
    paths = {eps: spec.output or default_record_path(loaded.name, spec.default_name(eps)) for eps in spec.radii}
    check_folder(next(iter(paths.values())).parent)  # before the attack: it would be a pity to learn it after hours
    evaluation = _evaluation(spec, loaded, test, data.name, second)
    size, why_size = _batch_size(spec, evaluation, device, away is not None, team)
    place = away.describe() if away else f"device {device} ({why_device})"
    recording = Recording(
        run=partial(
            run_evaluation,
            resume=bool(spec.resume),
            workers=spec.workers or 1,
            device=device,
            reporter=reporter,
            keep_witnesses=spec.save_adversarial,
            team=team,
            executor=away,
        ),
        team=team,
        reporter=reporter,
        second=second,
        resume=spec.resume,
        keep_witnesses=spec.save_adversarial,
        place=f"{place}, precision fp32, batch size {size} ({why_size})",
        ran_on=away.ran_on if away else partial(device_name, device),
        spelled=model if isinstance(model, str) else loaded.name,
        command=command,
        curve=len(paths) > 1,
    )
    return Prepared(replace(evaluation, batch_size=size), paths, recording)


def _examples(spec: EvalSpec, data: Dataset) -> Split:
    """The test images that are attacked."""
    if spec.n_examples is None:
        return data.test
    if not 1 <= spec.n_examples <= len(data.test):
        raise InputError(
            f"must be between 1 and {len(data.test)}, the size of {data.name}'s test set",
            field="n_examples",
            value=spec.n_examples,
        )
    return first_examples(data.test, spec.n_examples)


def _evaluation(spec: EvalSpec, model: LoadedModel, test: Split, dataset: str, second: Attack | None) -> Evaluation:
    """The evaluation at the smallest radius, checked before a pass of the model is made to measure its memory."""
    size = USUAL if isinstance(spec.batch_size, str) else spec.batch_size
    fields: dict[str, Any] = {"norm": spec.norm, "eps": spec.radii[0], "seed": spec.seed, "batch_size": size}
    evaluation = Evaluation(model=model, test=test, dataset=dataset, attack=spec.built, **fields)
    evaluation.check()
    if second is not None:
        replace(evaluation, attack=second).check()
    return evaluation


def _batch_size(
    spec: EvalSpec, evaluation: Evaluation, device: torch.device, away: bool, team: Team
) -> tuple[int, str]:
    """How many examples at a time, and why."""
    if spec.batch_size != "auto":
        return spec.batch_size, "asked for"
    if away:
        return USUAL, "the usual one"
    module, test = evaluation.model.module, evaluation.test
    shape = tuple(test.images.shape[1:])
    found = choose_batch_size(
        module, spec.built, shape=shape, examples=len(test), device=device, processes=spec.workers or 1
    )
    shared: tuple[int, str] = team.broadcast(found)
    return shared
