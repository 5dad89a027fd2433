"""From an evaluation to its record on disk: begun, continued or found finished; with a second opinion, if asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sam_bench.attacks import Attack, Verdict
from sam_bench.distributed import Team
from sam_bench.errors import InputError
from sam_bench.evaluation.journal import Journal, Known, write_witnesses
from sam_bench.evaluation.opinion import opinion_on, with_opinion
from sam_bench.evaluation.run import Evaluation, record_of, settings_of
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
        resume: Go on with what an interrupted process left, and take a finished record as it is.
        keep_witnesses: Write the adversarial examples beside the record, too.
        place: Where it runs, for the message at the start.
        ran_on: What that is called in the record, when it has run.
        spelled: MODEL as the user gave it.
        command: The command line.
    """

    run: Callable[[Evaluation, Journal], Known]
    team: Team
    reporter: Reporter
    second: Attack | None
    resume: bool
    keep_witnesses: bool
    place: str
    ran_on: Callable[[], str]
    spelled: str
    command: str

    def record(self, evaluation: Evaluation, path: Path, smaller: EvaluationRecord | None) -> EvaluationRecord:
        """The record of an evaluation, on disk when this returns.

        Args:
            evaluation: What to do.
            path: The record's file.
            smaller: The record at the next smaller radius of the curve.
        """
        journal, opinions = Journal(path.with_suffix(".progress")), Journal(path.with_suffix(".opinion.progress"))
        record = None
        if self.resume and self.team.is_main:
            record = finished(path, evaluation, begun=journal.is_of(evaluation.identity()))
        record = self.team.share(record)
        if record is not None and (self.second is None or record.second_opinion is not None):
            self.reporter.say(f"{path} is finished: nothing to resume")
            if journal.is_of(evaluation.identity()):  # of a process that was killed as it was done
                journal.remove()
            return record
        if record is None:
            record = self._attacked(evaluation, path, journal)
            if not self.resume:
                opinions.remove()  # it was of an earlier record
                self.team.wait()
        if self.second is not None:
            record = self._judged_again(record, evaluation, path, opinions, self.second, smaller)
        if self.team.is_main:
            write_record(path, record)
            self.reporter.say(f"record written to {path}")
        self.team.wait()
        journal.remove()
        opinions.remove()
        return record

    def _attacked(self, evaluation: Evaluation, path: Path, journal: Journal) -> EvaluationRecord:
        self.reporter.say(
            f"{evaluation.attack.method} in the {evaluation.norm} ball of radius {evaluation.eps} on "
            f"{len(evaluation.test):,} test images of {evaluation.dataset}; {self.place}, seed {evaluation.seed}"
        )
        known = self.run(evaluation, journal)
        self._keep(path.with_suffix(".adversarial.npz"), evaluation, known)
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
        known = self.run(opinion, journal)
        self._keep(path.with_suffix(".opinion.adversarial.npz"), opinion, known)
        return with_opinion(record, opinion, known)

    def _keep(self, path: Path, evaluation: Evaluation, known: Known) -> None:
        """Write the adversarial examples, if they are to be kept; else those of an earlier record go."""
        if not self.team.is_main:
            return
        if not self.keep_witnesses:
            path.unlink(missing_ok=True)
            return
        identity = evaluation.identity()
        about = {name: str(identity[name]) for name in ("checkpoint_sha256", "dataset_fingerprint", "norm", "eps")}
        write_witnesses(path, known, {"attack": evaluation.attack.method, **about})
        missing = sum(
            each.verdict not in (ROBUST, MISCLASSIFIED) and each.witness is None and place not in evaluation.carried
            for place, each in known.verdicts.items()
        )
        if missing:
            self.reporter.say(
                f"{path} lacks {missing:,} of the examples that were broken: those were broken before "
                "--save-adversarial was given"
            )


def broken(record: EvaluationRecord) -> dict[int, Verdict]:
    """The examples that an evaluation broke: place in the data set to the verdict, as larger balls carry it over."""
    return {
        place: Verdict(place, verdict)
        for place, verdict in enumerate(record.verdicts)
        if verdict not in (ROBUST, MISCLASSIFIED)
    }


def finished(path: Path, evaluation: Evaluation, *, begun: bool = False) -> EvaluationRecord | None:
    """The record at `path`, when it is of this evaluation.

    Args:
        path: Where it would be.
        evaluation: What is asked for.
        begun: It was begun already: a record of another one is about to be replaced.

    Raises:
        InputError: It is of another evaluation, and nobody said that it can go; names the first field that differs.
    """
    if not path.exists():
        return None
    record = read_record(path, EvaluationRecord)
    identity = evaluation.identity()  # with the batch size only where verdicts depend on it
    names = ["n_examples", *(name for name in identity if name not in ("n_examples", "settings", "carried"))]
    pairs = {name: (getattr(record, name), identity[name]) for name in names}
    pairs |= {
        "version": (record.version, str(evaluation.attack.model_dump().get("version", ""))),
        "settings": (record.settings, settings_of(evaluation.attack)),
        "carried": (record.carried, len(evaluation.carried)),
    }
    differing = [name for name, (there, here) in pairs.items() if str(there) != str(here)]
    if differing and begun:
        return None
    if differing:
        there, here = pairs[differing[0]]
        raise InputError(
            f"cannot resume {path}: it is a finished record of {differing[0]} = {there!s} and this command gives "
            f"{here!s}; choose another --output, or leave --resume away to replace it"
        )
    return record
