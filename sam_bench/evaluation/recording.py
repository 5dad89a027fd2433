"""From an evaluation to its record on disk: begun, continued or found finished; with a second opinion, if asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sam_bench.attacks import Attack, Verdict
from sam_bench.distributed import Team
from sam_bench.errors import CutShortError, InputError
from sam_bench.evaluation.existing_record import existing
from sam_bench.evaluation.journal import Journal, Known, read_about, write_witnesses
from sam_bench.evaluation.opinion import opinion_on, recounted, with_opinion
from sam_bench.evaluation.run import Evaluation, record_of
from sam_bench.progress import Reporter
from sam_bench.records import MISCLASSIFIED, ROBUST, EvaluationRecord, read_record, write_record


@dataclass(frozen=True)
class Recording:
    """How the evaluations of a curve become records.

    Attributes:
        run: Evaluates what a journal does not hold yet; a verdict for every example.
        team: The processes that `run` shares the examples among; the first writes.
        reporter: Where progress goes.
        second: The attack that gives a second opinion, if any.
        resume: Go on with what an interrupted process left, and take a finished record as it is; `if-any`: without
            a word where there is neither.
        keep_witnesses: Write the adversarial examples beside the record, too.
        place: Where it runs, for the message at the start.
        ran_on: What that is called in the record, when it has run.
        spelled: MODEL as the user gave it.
        command: The command line.
        curve: There are several radii, each with a file of its own.
    """

    run: Callable[[Evaluation, Journal], Known]
    team: Team
    reporter: Reporter
    second: Attack | None
    resume: bool | Literal["if-any"]
    keep_witnesses: bool
    place: str
    ran_on: Callable[[], str]
    spelled: str
    command: str
    curve: bool = False

    def record(self, evaluation: Evaluation, path: Path, smaller: EvaluationRecord | None) -> EvaluationRecord:
        """The record of an evaluation, on disk when this returns.

        Args:
            evaluation: What to do.
            path: The record's file.
            smaller: The record at the next smaller radius of the curve.
        """
        journal, opinions = _journals(path)
        record, judged = None, False
        if self.team.is_main:
            record = self._finished(evaluation, path)
            before = smaller.second_opinion if smaller else None
            if record is not None and record.second_opinion is not None and before is not None:
                record = recounted(record, record.second_opinion, before.broken)
            judged = record is not None and self._is_judged(record, evaluation, path)
        record, judged = self.team.share((record, judged))
        if record is not None and judged:
            self.reporter.say(f"{path} is finished: nothing to resume")
            if self.team.is_main and read_record(path, EvaluationRecord) != record:
                _write(path, record)  # that of an evaluation alone or of another curve, as this curve has it
            if journal.is_of(evaluation.identity()):  # of a process that was killed as it was done
                journal.remove()
            return record
        if record is None:
            if self.resume is True and smaller is None and self.team.is_main and journal.is_empty:
                self.reporter.say(f"nothing to resume at {journal.path}; beginning")
            record = self._attacked(evaluation, path, journal)
            if not self.resume:
                opinions.remove()  # it was of an earlier record
                self.team.wait()
        if self.second is not None:
            record = self._judged_again(record, evaluation, path, opinions, self.second, smaller)
        if self.team.is_main:
            _write(path, record)
            self.reporter.say(f"record written to {path}")
        self.team.wait()
        journal.remove()
        if self.second is not None:
            opinions.remove()
        return record

    def check(self, evaluation: Evaluation, path: Path, *, smaller: Path | None) -> bool:
        """Refuse, before anything is attacked, what would be found in the way hours later.

        Args:
            evaluation: As `record` will be given it, but for what will be carried over.
            path: The record's file.
            smaller: The file of the record at the next smaller radius of the curve, which was checked before.

        Returns:
            Whether the record is finished, so that nothing has to be written.

        Raises:
            InputError: The record is of another evaluation, or without adversarial examples that are asked for; or
                there is one under way, and nobody said to go on.
        """
        if not self.team.is_main:
            return True
        carries = smaller is not None
        if smaller is not None and smaller.exists() and not (self.resume and evaluation.attack.per_example):
            # Made anew or taken as it is, it breaks what it broke; one that is built on may break more.
            carries, evaluation = False, replace(evaluation, carried=broken(read_record(smaller, EvaluationRecord)))
        record = self._finished(evaluation, path, carries=carries)
        if not self.resume:
            _journals(path)[0].check_unused()
        return record is not None and self._is_judged(record, evaluation, path)

    def _finished(self, evaluation: Evaluation, path: Path, *, carries: bool = False) -> EvaluationRecord | None:
        """The record that is to be taken as it is, if there is one; `carries` as for `existing`."""
        kept = not self.keep_witnesses or _has_witnesses(_bundles(path)[0], evaluation)
        record = existing(path, evaluation, resume=bool(self.resume), carries=carries, curve=self.curve, usable=kept)
        if record is None or kept:
            return record
        if not _journals(path)[0].is_of(evaluation.identity(), but_for="carried" if carries else ""):
            raise InputError(
                f"--save-adversarial: {path} is finished, and its adversarial examples were not kept; "
                f"{'delete it' if self.curve else 'leave --resume away'} to attack again and keep them"
            )
        return None  # it is being made anew for their sake

    def _is_judged(self, record: EvaluationRecord, evaluation: Evaluation, path: Path) -> bool:
        """Whether a finished record has all that is asked of a second opinion."""
        if self.second is None:
            return True
        if record.second_opinion is None:
            return False
        kept = not self.keep_witnesses or _has_witnesses(_bundles(path)[1], replace(evaluation, attack=self.second))
        if not kept:
            self.reporter.say(f"{path}: the second opinion is asked again, to keep its adversarial examples")
        return kept

    def _attacked(self, evaluation: Evaluation, path: Path, journal: Journal) -> EvaluationRecord:
        self.reporter.say(
            f"{evaluation.attack.method} in the {evaluation.norm} ball of radius {evaluation.eps} on "
            f"{len(evaluation.test):,} test images of {evaluation.dataset}; {self.place}, seed {evaluation.seed}"
        )
        with _kept_said(evaluation, journal):
            known = self.run(evaluation, journal)
        self._keep(_bundles(path)[0], evaluation, known)
        return record_of(evaluation, known, device=self.ran_on(), spelled=self.spelled, command=self.command)

    def _judged_again(
        self,
        record: EvaluationRecord,
        evaluation: Evaluation,
        path: Path,
        journal: Journal,
        second: Attack,
        smaller: EvaluationRecord | None,
    ) -> EvaluationRecord:
        before = smaller.second_opinion if smaller else None
        opinion = opinion_on(record, evaluation, second, before.broken if before else [])
        left = len(evaluation.test) - len(opinion.carried)
        self.reporter.say(
            f"second opinion: {second.method} on the {left:,} examples that {evaluation.attack.method} left standing"
        )
        with _kept_said(opinion, journal):
            known = self.run(opinion, journal)
        self._keep(_bundles(path)[1], opinion, known)
        return with_opinion(record, opinion, known)

    def _keep(self, path: Path, evaluation: Evaluation, known: Known) -> None:
        """Write the adversarial examples, if they are to be kept; else those of an earlier record go."""
        if not self.team.is_main:
            return
        if not self.keep_witnesses:
            path.unlink(missing_ok=True)
            return
        write_witnesses(path, known, _about(evaluation))
        missing = sum(
            each.verdict not in (ROBUST, MISCLASSIFIED) and each.witness is None and place not in evaluation.carried
            for place, each in known.verdicts.items()
        )
        if missing:
            self.reporter.say(
                f"{path} lacks {missing:,} of the examples that were broken: those were broken before "
                "--save-adversarial was given"
            )


@contextmanager
def _kept_said(evaluation: Evaluation, journal: Journal) -> Iterator[None]:
    """Have an interruption say what is kept of an evaluation."""
    try:
        yield
    except KeyboardInterrupt as error:
        if journal.is_empty:
            raise
        kept = f"every verdict so far is kept in {journal.path}; add --resume to go on"
        if not evaluation.attack.per_example:
            method = evaluation.attack.method
            kept = f"{method} as asked for cannot be continued, only begun anew: add --resume, or delete {journal.path}"
        raise CutShortError(f"interrupted; {kept}") from error


def _journals(path: Path) -> tuple[Journal, Journal]:
    """Of a record's evaluation, and of its second opinion."""
    return Journal(path.with_suffix(".progress")), Journal(path.with_suffix(".opinion.progress"))


def _bundles(path: Path) -> tuple[Path, Path]:
    """The files of a record's adversarial examples, and of those of its second opinion."""
    return path.with_suffix(".adversarial.npz"), path.with_suffix(".opinion.adversarial.npz")


def _write(path: Path, record: EvaluationRecord) -> None:
    """Write a record; without an opinion, the adversarial examples of an earlier one go."""
    if record.second_opinion is None:
        _bundles(path)[1].unlink(missing_ok=True)
    write_record(path, record)


def _about(evaluation: Evaluation) -> dict[str, str]:
    """What is written beside adversarial examples, so that they are not taken for those of something else."""
    identity = evaluation.identity()
    names = ("attack", "checkpoint_sha256", "dataset_fingerprint", "norm", "eps")
    return {name: str(identity[name]) for name in names}


def _has_witnesses(path: Path, evaluation: Evaluation) -> bool:
    return read_about(path) == _about(evaluation)


def broken(record: EvaluationRecord) -> dict[int, Verdict]:
    """The examples that an evaluation broke: place in the data set to the verdict, as larger balls carry it over."""
    return {
        place: Verdict(place, verdict)
        for place, verdict in enumerate(record.verdicts)
        if verdict not in (ROBUST, MISCLASSIFIED)
    }
