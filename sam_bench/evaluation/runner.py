"""From a problem to its record on disk: log and executor, begun, continued or found finished."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sam_bench.attacks import Attack
from sam_bench.attacks.events import Event, Progress
from sam_bench.attacks.warnings import square_warnings
from sam_bench.errors import InputError, SamBenchError, StoppedError
from sam_bench.evaluation.adversarial import has_adversarial, write_adversarial
from sam_bench.evaluation.executors import Executor
from sam_bench.evaluation.log import Log
from sam_bench.evaluation.problem import Problem
from sam_bench.evaluation.results import (
    Found,
    existing,
    left_by,
    record_of,
    recounted,
    sampled_of,
    with_second_attack,
)
from sam_bench.progress import Reporter, SilentReporter, Stage
from sam_bench.records import (
    MISCLASSIFIED,
    ROBUST,
    EvaluationRecord,
    Radius,
    adversarial_path,
    read_record,
    write_record,
)


def evaluate_curve_of(
    problem: Problem,
    radii: Sequence[Radius],
    paths: Sequence[Path],
    *,
    executor: Executor,
    resume: bool | Literal["if-any"] = False,
    reporter: Reporter | None = None,
    second_attack: Attack | None = None,
    why_batch_size: str = "asked for",
) -> list[EvaluationRecord]:
    """The records of an evaluation at several eps, on disk when this returns.

    What is broken in a small ball is in a larger one: it is not attacked again there.

    Args:
        problem: What is evaluated; its own eps does not count.
        radii: The eps, ascending.
        paths: The records' files.
        executor: Where examples are attacked.
        resume: Go on with what an interrupted process left, and take a finished record as it is; `if-any`: without
            a word where there is neither.
        reporter: Where progress goes; default nowhere.
        second_attack: Run on what the first leaves standing.
        why_batch_size: Why the problem has its batch size, for the message at the start.

    Raises:
        InputError: A record or a log is in the way; before anything is attacked.
        SamBenchError: A file could not be written, or a worker failed.
    """
    records: list[EvaluationRecord] | None = executor.follow(problem)
    if records is not None:
        return records
    run = _Run(executor, resume, reporter or SilentReporter(), second_attack, why_batch_size, len(radii) > 1)
    for eps, path, smaller in zip(radii, paths, [None, *paths[:-1]], strict=True):
        run.check(replace(problem, eps=eps), path, smaller=smaller)
    records = []
    for eps, path in zip(radii, paths, strict=True):
        before = records[-1] if records else None
        problem = replace(problem, eps=eps, carried=before.broken if before else {})
        record = run.finished(problem, path, before)
        complete = record is not None and run.is_complete(record, problem, path)
        if record is None:
            run.announce(problem, path, first=before is None)
            found = run.attacked(problem, _folders(path)[0], _bundles(path)[0])
            record = record_of(problem, found, device=executor.ran_on())
        records.append(record if complete else run.completed(record, problem, path, before))
    executor.finish(records)
    return records


@dataclass(frozen=True)
class _Run:
    executor: Executor
    resume: bool | Literal["if-any"]
    reporter: Reporter
    second: Attack | None
    why_batch_size: str
    curve: bool

    def check(self, problem: Problem, path: Path, *, smaller: Path | None) -> None:
        """Refuse, before anything is attacked, what would be found in the way hours later.

        Args:
            problem: As `record` will be given it, but for what will be carried over.
            path: The record's file.
            smaller: The file of the record at the next smaller eps of the curve, which was checked before.
        """
        carries = smaller is not None
        if smaller is not None and smaller.exists() and not (self.resume and problem.attack.per_example):
            # Made anew or taken as it is, it breaks what it broke; one that is built on may break more.
            carries, problem = False, replace(problem, carried=read_record(smaller, EvaluationRecord).broken)
        self._taken(problem, path, carries=carries)
        log = Log(_folders(path)[0], problem)
        if not self.resume and not log.is_empty:
            with log.claimed():  # one that is under way is not to be deleted
                log.check_unused()

    def _taken(self, problem: Problem, path: Path, *, carries: bool = False) -> EvaluationRecord | None:
        """The record that is to be taken as it is, if there is one; `carries` as for `existing`."""
        kept = not problem.save_adversarial or has_adversarial(_bundles(path)[0], problem)
        record = existing(path, problem, resume=bool(self.resume), carries=carries, curve=self.curve, usable=kept)
        if record is None or kept:
            return record
        if not Log(_folders(path)[0], problem).is_of_problem(but_for="carried" if carries else ""):
            raise InputError(
                f"`save_adversarial`: {path} is finished, and its adversarial examples were not kept; "
                f"{'delete it' if self.curve else 'leave `resume` away'} to attack again and keep them"
            )
        return None  # it is being made anew for their sake

    def finished(self, problem: Problem, path: Path, smaller: EvaluationRecord | None) -> EvaluationRecord | None:
        """The record that is there already and to be taken, with what the second attack broke in a smaller ball."""
        record = self._taken(problem, path)
        before = smaller.second_opinion if smaller else None
        if record is not None and record.second_opinion is not None and before is not None:
            record = recounted(record, record.second_opinion, before.broken)
        return record

    def is_complete(self, record: EvaluationRecord, problem: Problem, path: Path) -> bool:
        """Whether a finished record has all that is asked for. Then it is said, and nothing is left beside it."""
        if not self._has_second(record, problem, path):
            return False
        self.reporter.say(f"{path} is finished: nothing to resume")
        if read_record(path, EvaluationRecord) != record:
            _write(path, record)  # that of an evaluation alone or of another curve, as this curve has it
        log = Log(_folders(path)[0], problem)
        if log.is_of_problem():  # of a process that was killed as it was done
            log.remove()
        return True

    def announce(self, problem: Problem, path: Path, *, first: bool) -> None:
        """Say what begins; `first`: at the smallest eps."""
        log = Log(_folders(path)[0], problem)
        if self.resume is True and first and log.is_empty:
            self.reporter.say(f"nothing to resume at {log.path}; beginning")
        self.reporter.say(
            f"{problem.attack.method} in the {problem.norm} ball of radius {problem.eps} on {len(problem.test):,} "
            f"test images of {problem.dataset}; {self.executor.describe()}, precision fp32, batch size "
            f"{problem.batch_size} ({self.why_batch_size}), seed {problem.seed}"
        )

    def completed(
        self, record: EvaluationRecord, problem: Problem, path: Path, smaller: EvaluationRecord | None
    ) -> EvaluationRecord:
        """The record with its second attack, on disk; the logs go."""
        logs = Log(_folders(path)[0], problem), Log(_folders(path)[1], problem)
        if not self.resume:
            logs[1].remove()  # it was of an earlier record
        if self.second is not None:
            before = smaller.second_opinion if smaller else None
            record = self._second(self.second, record, problem, path, before.broken if before else [])
        _write(path, record)
        self.reporter.say(f"record written to {path}")
        logs[0].remove()
        if self.second is not None:
            logs[1].remove()
        return record

    def _has_second(self, record: EvaluationRecord, problem: Problem, path: Path) -> bool:
        """Whether a finished record has all that is asked of a second attack."""
        if self.second is None:
            return True
        if record.second_opinion is None:
            return False
        kept = not problem.save_adversarial or has_adversarial(_bundles(path)[1], replace(problem, attack=self.second))
        if not kept:
            self.reporter.say(f"{path}: the second attack is run again, to keep its adversarial examples")
        return kept

    def _second(
        self, attack: Attack, record: EvaluationRecord, problem: Problem, path: Path, broken: Sequence[int]
    ) -> EvaluationRecord:
        second = left_by(record, problem, attack, broken)
        left = len(problem.test) - len(second.carried)
        self.reporter.say(
            f"second attack: {attack.method} on the {left:,} examples that {problem.attack.method} left standing"
        )
        return with_second_attack(record, second, self.attacked(second, _folders(path)[1], _bundles(path)[1]))

    def attacked(self, problem: Problem, folder: Path, bundle: Path) -> Found:
        """What the attack finds; its adversarial examples are in `bundle` if they are to be kept."""
        self.executor.check(problem)
        log = Log(folder, problem)
        with log.claimed():
            log.open(resume=bool(self.resume))
            for damaged in log.damaged:
                self.reporter.say(f"a damaged line is left out, its example attacked again: {damaged}")
            todo = log.todo()
            if todo and log.verdicts and not problem.attack.per_example:
                log.forget()  # stopped as it told them: what is left would make other batches than all of them
                todo = log.todo()
            if log.verdicts:
                settled = len(problem.test) - len(todo)
                self.reporter.say(f"resuming {folder}: {settled:,} of {len(problem.test):,} examples are settled")
            if todo:
                with (
                    _kept_said(problem, log),
                    closing(self.executor.run(problem, todo)) as events,  # type: ignore[type-var]
                    log.session(),
                    _Display(self.reporter, len(todo)) as display,
                ):
                    for event in events:
                        log.add(event)
                        display.show(event)
                if left := log.todo():
                    raise SamBenchError(f"{len(left)} examples came back without a verdict; {folder} keeps the others")
            self._keep(bundle, problem, log)
        return _found(problem, log)

    def _keep(self, path: Path, problem: Problem, log: Log) -> None:
        """Write the adversarial examples, if they are to be kept; else those of an earlier record go."""
        if not problem.save_adversarial:
            path.unlink(missing_ok=True)
            return
        found = log.adversarial()
        write_adversarial(path, found, problem)
        lost = [each for each in log.verdicts.values() if each.outcome not in (ROBUST, MISCLASSIFIED)]
        missing = sum(each.example not in found for each in lost)
        if missing:
            self.reporter.say(
                f"{path} lacks {missing:,} of the examples that were broken: those were broken before "
                "they were to be kept"
            )


def _found(problem: Problem, log: Log) -> Found:
    """What a log of which nothing is left to do says; warnings that compare attacks come from all examples."""
    known = {place: str(verdict.outcome) for place, verdict in log.verdicts.items()} | dict(problem.carried)
    verdicts = [known[place] for place in range(len(problem.test))]
    told = [*problem.attack.warnings, *log.warnings]
    square = square_warnings(verdicts, problem.attack.attacks, sampled_of(problem, verdicts))
    warnings = [*dict.fromkeys(map(str, told)), *map(str, square)]
    return Found(verdicts, warnings, log.seconds)


class _Display:
    """Shows the progress of each worker, one stage at a time.

    Args:
        reporter: Where it is shown.
        examples: How many are attacked.
    """

    def __init__(self, reporter: Reporter, examples: int) -> None:
        self._reporter, self._examples = reporter, examples
        self._open: dict[str, tuple[ExitStack, Stage, Progress]] = {}

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *_: object) -> None:
        for stack, *_rest in self._open.values():
            stack.close()

    def show(self, event: Event) -> None:
        """Show an event, if it is progress."""
        if not isinstance(event, Progress):
            return
        worker = event.stage.rpartition(": ")[0]
        before = self._open.get(worker)
        if before is None or (before[2].stage, before[2].total) != (event.stage, event.total):
            if before is not None:
                before[0].close()
            stack = ExitStack()
            stage = stack.enter_context(self._reporter.stage(event.stage, event.total))
        else:
            stack, stage, _ = before
        self._open[worker] = stack, stage, event
        robust = "" if event.robust is None else f"{event.robust}/{self._examples} robust"
        stage.update(event.done, "" if worker else robust, event.share)


@contextmanager
def _kept_said(problem: Problem, log: Log) -> Iterator[None]:
    """Have an interruption say what is kept of an evaluation."""
    try:
        yield
    except KeyboardInterrupt as error:
        if log.is_empty:
            raise
        kept = f"every verdict so far is kept in {log.path}; add `resume=True` to go on"
        if not problem.attack.per_example:
            kept = (
                f"{problem.attack.method} as asked for cannot be continued, only begun anew: add `resume=True`, or "
                f"delete {log.path}"
            )
        number = error.exit_code - 128 if isinstance(error, StoppedError) else signal.SIGINT
        raise StoppedError(f"{str(error) or 'interrupted'}; {kept}", number) from error


def _folders(path: Path) -> tuple[Path, Path]:
    """The logs of a record's attack, and of its second attack."""
    return path.with_suffix(".progress"), path.with_suffix(".opinion.progress")


def _bundles(path: Path) -> tuple[Path, Path]:
    """The files of a record's adversarial examples, and of those of its second attack."""
    return adversarial_path(path), path.with_suffix(".opinion.adversarial.npz")


def _write(path: Path, record: EvaluationRecord) -> None:
    """Write a record; without a second attack, the adversarial examples of an earlier one go."""
    if record.second_opinion is None:
        _bundles(path)[1].unlink(missing_ok=True)
    write_record(path, record)
