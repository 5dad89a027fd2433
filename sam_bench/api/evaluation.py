"""From a model and an evaluation's spec to records of what the attack did to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sam_bench.api.model_and_data import model_and_data, model_of
from sam_bench.api.record_files import check_folder, check_record_file, default_record_folder
from sam_bench.api.specs.evaluate import EvalSpec
from sam_bench.attacks.autoattack.attack import AutoAttackBF16
from sam_bench.cores import take_spare_cores
from sam_bench.data import Dataset, Split, first_examples
from sam_bench.device import choose_device, choose_precision
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
from sam_bench.progress import Reporter, SilentReporter
from sam_bench.records import EvaluationRecord
from sam_bench.zoo import LoadedModel


@contextmanager
def prepared_evaluation(
    model: str | Path | nn.Module, spec: EvalSpec, *, reporter: Reporter | None = None, command: str = ""
) -> Iterator[Callable[[], list[EvaluationRecord]]]:
    """The evaluation that the spec describes, ready to run in this block.

    Yields:
        What attacks the model: it returns a record for each radius, the smallest first. See `sam_bench.evaluate`.
    """
    check_record_file(spec.output)
    spec.check()
    model = model_of(model)
    chosen = chosen_executor(
        spec.executor,
        address=spec.ray_address,
        device=spec.device,
        workers=spec.workers,
        reporter=reporter or SilentReporter(),
    )
    with joined(LONG_PATIENCE) as team, chosen as away:
        reporter = reporter if reporter is not None and team.is_main else SilentReporter()
        yield prepare(model, spec, team=team, away=away, reporter=reporter, command=command)


def prepare(
    model: str | nn.Module, spec: EvalSpec, *, team: Team, away: OnRay | None, reporter: Reporter, command: str
) -> Callable[[], list[EvaluationRecord]]:
    """Load the model and the data, decide everything that an evaluation needs, and give what runs it.

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
    second = second_attack_for(spec.built, spec.norm) if spec.second_attack else None
    # What is done elsewhere needs no more of the device here than to look at the model once.
    device, why_device = choose_device("cpu" if away else spec.device)
    if device.type == "cpu" and team.size == 1 and away is None and (fewer := take_spare_cores()):
        reporter.say(fewer)
    loaded, data = model_and_data(model, spec, norm=spec.norm, device=device)
    test = _examples(spec, data)
    if loaded.num_classes != data.num_classes:
        reporter.say(
            f"note: {loaded.name} knows {loaded.num_classes} classes, and {data.name} has {data.num_classes}: the "
            "accuracy only means something where their numbers mean the same"
        )
    folder = spec.record_dir or default_record_folder(loaded.name)
    paths = {eps: spec.output or folder / f"{spec.default_name(eps)}.json" for eps in spec.radii}
    spelled = model if isinstance(model, str) else loaded.name
    problem = _problem(spec, loaded, test, data.name, spelled=spelled, command=command)
    if isinstance(spec.built, AutoAttackBF16) and away is None:
        precision, why = choose_precision("auto", device)
        if precision == "fp32":
            reporter.say(f"note: autoattack, which searches in float32, would be faster on this device: {why}")
    problem.check()  # before a pass of the model is made to measure its memory
    if second is not None:
        replace(problem, attack=second).check()
    size, why_size = _batch_size(spec, problem, device, away is not None, team)
    if not (spec.resume and all(path.exists() for path in paths.values())):
        check_folder(next(iter(paths.values())).parent)  # before the attack: nobody wants to learn it after hours
    return partial(
        evaluate_curve_of,
        replace(problem, batch_size=size),
        [*paths],
        [*paths.values()],
        executor=_executor(away, team, spec.workers or 1, device, why_device),
        resume=spec.resume,
        reporter=reporter,
        second_attack=second,
        why_batch_size=why_size,
    )


def _executor(away: OnRay | None, team: Team, workers: int, device: torch.device, why: str) -> Executor:
    """Who does the work."""
    if away is not None:
        return away
    if team.size > 1:
        return Torchrun(team, device, why)
    return Processes(workers, device, why) if workers > 1 else Local(device, why)


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


def _problem(spec: EvalSpec, model: LoadedModel, test: Split, dataset: str, *, spelled: str, command: str) -> Problem:
    """What is attacked with the smallest radius; the batch size may still change."""
    return Problem(
        model=model,
        test=test,
        dataset=dataset,
        attack=spec.built,
        norm=spec.norm,
        eps=spec.radii[0],
        seed=spec.seed,
        batch_size=USUAL if isinstance(spec.batch_size, str) else spec.batch_size,
        save_adversarial=spec.save_adversarial,
        spelled=spelled,
        command=command,
    )


def _batch_size(spec: EvalSpec, problem: Problem, device: torch.device, away: bool, team: Team) -> tuple[int, str]:
    """How many examples at a time, and why."""
    if spec.batch_size != "auto":
        return spec.batch_size, "asked for"
    if away:
        return USUAL, "the usual one"
    module, test = problem.model.module, problem.test
    shape = tuple(test.images.shape[1:])
    found = choose_batch_size(
        module, spec.built, shape=shape, examples=len(test), device=device, processes=spec.workers or 1
    )
    shared: tuple[int, str] = team.broadcast(found)
    return shared
