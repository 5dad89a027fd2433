"""A study is run: every job of the plan that is not done yet, by any number of processes that share the folder.

A job is done when its card, records or note are there. So the command can be stopped anywhere and given again. A job
has a lock; who does not get it goes on to the next job.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from sam_bench.api.training import run_training
from sam_bench.device import gpu_of_worker
from sam_bench.errors import InputError, SamBenchError, StoppedError
from sam_bench.locks import claimed
from sam_bench.parallel import Job as Process
from sam_bench.parallel import run_jobs
from sam_bench.progress import Reporter
from sam_bench.studies.jobs import STANDARD, Job, Model, Study
from sam_bench.studies.lookup import card_of, is_done
from sam_bench.studies.measuring import Work

State = Literal["done", "failed", "taken", "early"]
"""Of a job: another process has `taken` it; or it is `early`, as its model is not trained yet."""

_PATIENCE = 2.0  # seconds between two looks at what other processes are doing


@dataclass(frozen=True)
class Failure:
    """A job that failed, and why."""

    job: str
    reason: str


def run_study(
    study: Study, *, reporter: Reporter, command: str = "", workers: int = 1, part: tuple[int, int] = (1, 1)
) -> list[Failure]:
    """Do what is left to do.

    Args:
        study: What.
        reporter: Where progress goes.
        command: For cards and records.
        workers: Processes on this machine that share the jobs; on GPUs each takes the next one.
        part: (k, n): only every n-th model from the k-th on, for machines whose shared folder knows no locks.

    Returns:
        What failed. It does not stop the others.
    """
    jobs = part_of(study.jobs(), *part)
    for job in jobs:
        if isinstance(job, Model):
            study.training(job)  # a mistake in the plan is found before hours of work
    processes = [
        Process(f"worker {number + 1}", _work, {"study": study, "jobs": jobs, "command": command})
        for number in range(workers)
    ]
    found = run_jobs(
        processes,
        workers=workers,
        reporter=reporter,
        died=lambda name, why: [Failure(name, why)],
        own=partial(gpu_of_worker, device=study.device) if workers > 1 else None,
    )
    return list({failure.job: failure for failures in found for failure in failures}.values())


def part_of(jobs: Sequence[Job], part: int, parts: int) -> list[Job]:
    """Every `parts`-th model from the `part`-th on, with its measurements.

    Raises:
        InputError: There is no such part.
    """
    if not 1 <= part <= parts:
        raise InputError(f"must be 1/{parts} to {parts}/{parts}", field="part", value=f"{part}/{parts}")
    models = [job for job in jobs if isinstance(job, Model)][part - 1 :: parts]
    return [job for job in jobs if (job if isinstance(job, Model) else job.model) in models]


def _work(*, study: Study, jobs: list[Job], command: str, reporter: Reporter, gpu: int | None = None) -> list[Failure]:
    """Do every job that nobody else does, until all are done or cannot be."""
    if gpu is not None:
        torch.cuda.set_device(gpu)
    work = Work(study, reporter, command)
    failures: dict[Job, Failure] = {}
    waiting = jobs
    while waiting:
        states = {job: _state_after(work, job, failures) for job in waiting}
        left = [job for job, state in states.items() if state not in ("done", "failed")]
        if len(left) == len(waiting):
            if "taken" not in states.values():
                _say_what_waits(work, left, jobs)
                break  # what is left needs a model that is not trained here, or could not be
            time.sleep(_PATIENCE)
        waiting = left
    return list(failures.values())


def _state_after(work: Work, job: Job, failures: dict[Job, Failure]) -> State:
    """Do a job if it can be done, and say how it is afterwards. What goes wrong is added to the failures."""
    try:
        return _try(work, job)
    except StoppedError as error:
        error.args = (f"{error}; the same command goes on with it",)
        raise
    except SamBenchError as error:
        failures[job] = Failure(job.name, str(error))
    except Exception as error:
        failures[job] = Failure(job.name, f"{type(error).__name__}: {error}")
    work.reporter.say(f"{job.name} failed: {failures[job].reason}")
    return "failed"


def _try(work: Work, job: Job) -> State:
    study = work.study
    if is_done(study, job):
        return "done"
    if not _is_ready(study, job):
        return "early"
    with ExitStack() as stack:
        try:
            stack.enter_context(claimed(study.folder / "locks" / job.name, otherwise="wait for it"))
            if isinstance(job, Model):  # somebody may train it who has no study
                with claimed(study.folder / "runs" / job.name, otherwise="wait for it"):
                    pass
        except InputError:
            return "taken"
        if not is_done(study, job):
            _do(work, job)
    return "done"


def _say_what_waits(work: Work, left: Sequence[Job], jobs: Sequence[Job]) -> None:
    """Name what needs a model that is none of these jobs: another part trains it."""
    late = [job.name for job in left if not set(_needed(work.study, job)) <= set(jobs)]
    if late:
        work.reporter.say(
            f"not measured, as models of another part are not trained yet: {', '.join(late)}; give the same command "
            "again when they are"
        )


def _is_ready(study: Study, job: Job) -> bool:
    """Whether the models that a job needs are trained."""
    return all(card_of(study, model) is not None for model in _needed(study, job))


def _needed(study: Study, job: Job) -> list[Model]:
    """The models that a job needs."""
    if isinstance(job, Model):
        return []
    needed = [job.model]
    evaluation = study.plan.evaluations.get(job.evaluation)
    if evaluation is not None and evaluation.temperature is not None:
        needed.append(Model(STANDARD, job.model.seed))
    return needed


def _do(work: Work, job: Job) -> None:
    if isinstance(job, Model):
        run_training(work.study.training(job), reporter=work.reporter, command=work.command)
        return
    card = card_of(work.study, job.model)
    assert card is not None
    work.measure(job, card)
