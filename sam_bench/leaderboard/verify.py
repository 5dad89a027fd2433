"""`verify_entry`: what an entry claims is checked, replayed and audited, by somebody who does not believe it.

The checks run in this order; the first that refutes something is the last that runs:

1. numbers: schema, checksums, and every number follows from the records;
2. manifest: card, weights, records and adversarial examples are the files of the manifest;
3. training: the training cost on the card follows from recipe and epochs;
4. replay: every broken example is shown to be broken, so the robust accuracy is an upper bound;
5. audit: AutoAttack on random examples of those claimed robust, which gives a lower bound.

A row without adversarial examples is not refuted: it stays claimed, while the other rows are replayed and audited. Or
what it calls broken is attacked again, if that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sam_bench import zoo as zoos
from sam_bench.errors import InputError, SamBenchError
from sam_bench.evaluation.audit import audit, draw
from sam_bench.evaluation.refinding import find_again
from sam_bench.evaluation.replay import replay, tested_by
from sam_bench.leaderboard.checks import CheckedEntry, check_entries
from sam_bench.leaderboard.entries import headline_of, read_entry
from sam_bench.leaderboard.evidence import check_manifest, check_places, read_bundle
from sam_bench.leaderboard.examples import share_with_larger, stored_examples
from sam_bench.leaderboard.files import shown
from sam_bench.leaderboard.labels import AUTOATTACK, percent
from sam_bench.leaderboard.verification import digest_of, manifest_path, report_of, report_path
from sam_bench.locks import claimed
from sam_bench.records import (
    ROBUST,
    Audit,
    EvaluationRecord,
    ModelCard,
    State,
    VerificationReport,
    VerifiedRow,
    adversarial_path,
    write_record,
)
from sam_bench.records.sampling import LEVEL, clopper_pearson
from sam_bench.versions import package_versions, timestamp

if TYPE_CHECKING:
    from sam_bench.data import Split

TOLERATED = 0.005
"""The share of claims that may be false: AutoAttack with other random numbers breaks a few examples more."""


@dataclass(frozen=True)
class Check:
    """One step of a verification.

    Attributes:
        name: numbers, manifest, training, replay or audit.
        passed: Whether what the entry claims held.
        message: What was found, or why the entry is refused.
    """

    name: str
    passed: bool
    message: str


@dataclass(frozen=True)
class Verification:
    """What verifying an entry found.

    Attributes:
        path: The entry's file.
        checks: The steps that ran.
        rows: What was shown of each row; empty before replay.
        headline: The record of the row that the board ranks by.
        refuted: Whether something that the entry claims does not hold. Where nothing is, but rows lack adversarial
            examples or the data are not at hand, replay has failed all the same: those rows stay claimed.
        entry_sha256: Of the entry's file that was verified.
        manifest_sha256: Of its manifest; '' where that was not reached.
    """

    path: Path
    checks: tuple[Check, ...]
    rows: tuple[VerifiedRow, ...] = ()
    headline: str = ""
    refuted: bool = False
    entry_sha256: str = ""
    manifest_sha256: str = ""

    @property
    def passed(self) -> bool:
        """Whether everything that was asked for held, in every row."""
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """Why the entry did not pass; '' where it did."""
        return next((check.message for check in self.checks if not check.passed), "")

    @property
    def shown(self) -> bool:
        """Whether nothing was refuted, and at least one row was replayed."""
        return not self.refuted and any(row.state != "claimed" for row in self.rows)

    @property
    def state(self) -> State:
        """How far the row that the board ranks by is verified."""
        shown = () if self.refuted else self.rows
        return next((row.state for row in shown if row.record == self.headline), "claimed")


@dataclass(frozen=True)
class Means:
    """What a verifier needs beside the entry.

    Attributes:
        test: The test images of a card's data set.
        training: Refuses a card whose training cost cannot be; returns what was found.
        zoo: Folder of the zoo; default `$SAM_BENCH_ZOO`, else `./model_zoo`.
        device: Where the model runs.
        audit: How many of the examples that a row claims to be robust are audited; 0: nothing is.
        beacon: A public text made after the entry, such as a commit's hash; it decides which.
        attack_again: Attack what rows without adversarial examples call broken, so that these are replayed, too.
    """

    test: Callable[[ModelCard], Split]
    training: Callable[[ModelCard], str]
    zoo: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    audit: int = 0
    beacon: str = ""
    attack_again: bool = False


def verify_entry(path: Path, means: Means) -> Verification:
    """Check an entry, replay its records, and audit it if that is asked for; nothing is written.

    Args:
        path: The entry's file, `<folder>/<dataset>/<threat>/<name>.json`.
        means: What is needed for it.
    """
    verifying = _Verifying(path.absolute(), means)
    steps = [verifying.numbers, verifying.manifest, verifying.training, verifying.replay]
    checks: list[Check] = []
    refuted = False
    for step in [*steps, verifying.audit] if means.audit else steps:
        try:
            checks.append(Check(step.__name__, True, step()))
        except _LacksEvidenceError as lacking:
            checks.append(Check(step.__name__, False, str(lacking)))
        except _CannotCheckError as error:
            checks.append(Check(step.__name__, False, f"this could not be checked: {error}"))
            break
        except (torch.OutOfMemoryError, MemoryError) as error:
            checks.append(Check(step.__name__, False, f"this could not be checked: {shown(str(error))}"))
            break
        except (SamBenchError, RuntimeError) as error:
            # PyTorch refuses a network or an input with a RuntimeError.
            ours = isinstance(error, SamBenchError)
            why = str(error) if ours else f"the model cannot be run: {shown(str(error))}"
            checks.append(Check(step.__name__, False, why))
            refuted = True
            break
    return Verification(
        path,
        tuple(checks),
        tuple(verifying.rows),
        verifying.headline,
        refuted,
        verifying.entry_sha256,
        verifying.manifest_sha256,
    )


def write_report(verification: Verification) -> Path:
    """Write what a verification has shown beside its entry; what was shown of the same files before is kept.

    Raises:
        InputError: Something was refuted, or no row was replayed; or the entry has changed since.
    """
    if not verification.shown:
        raise InputError(f"{verification.path} was refused, so there is nothing to report: {verification.reason}")
    verified = verification.entry_sha256, verification.manifest_sha256
    path = report_path(verification.path)
    with claimed(verification.path.parent):  # two that verify at once would each keep its own findings alone
        if verified != (digest_of(verification.path), digest_of(manifest_path(verification.path))):
            raise InputError(f"{verification.path} or its manifest has changed since it was verified: verify it again")
        before = report_of(verification.path)
        known = {row.record: row for row in before.rows} if before else {}
        report = VerificationReport(
            entry_sha256=verification.entry_sha256,
            manifest_sha256=verification.manifest_sha256,
            rows=[_with_what_was_shown(row, known.get(row.record)) for row in verification.rows],
            packages=package_versions(),
            created=timestamp(),
        )
        write_record(path, report)
    return path


def _with_what_was_shown(row: VerifiedRow, before: VerifiedRow | None) -> VerifiedRow:
    """A row with the upper bound of an earlier verification where this one has none, and the larger of both audits."""
    if before is None:
        return row
    at_most = before.at_most if row.at_most is None else row.at_most
    audits = [audit for audit in (row.audit, before.audit) if audit is not None]
    audit = max(audits, key=lambda audit: len(audit.drawn), default=None)  # the newer one of two that are as large
    return row.model_copy(update={"at_most": at_most, "audit": audit})


class _LacksEvidenceError(SamBenchError):
    """Nothing was refuted, but some rows have no adversarial examples."""


class _CannotCheckError(SamBenchError):
    """Nothing was refuted: what the verifier needs is not at hand."""


class _Verifying:
    """The steps, each of which takes up what the one before it found."""

    def __init__(self, path: Path, means: Means) -> None:
        self._path, self._means = path, means
        self.rows: list[VerifiedRow] = []
        self.headline = self.entry_sha256 = self.manifest_sha256 = ""

    def numbers(self) -> str:
        self.entry_sha256 = digest_of(self._path)
        stored = read_entry(self._path)
        check_places(stored)
        (self._checked,) = check_entries([stored], self._means.zoo)
        self._card = _card_of(self._checked)
        top = headline_of(stored.entry)
        self.headline = top.record if top else ""
        return f"every number follows from {len(stored.entry.sam_bench.rows)} records and the card"

    def manifest(self) -> str:
        self.manifest_sha256 = check_manifest(self._checked.stored, self._card)
        return "card, weights, records and adversarial examples are the files that the manifest names"

    def training(self) -> str:
        return self._means.training(self._card)

    def replay(self) -> str:
        card = self._card
        self._module = zoos.load_model(self._checked.stored.card_path(), device=self._means.device).module
        self._test = self._images(card)
        if self._test.fingerprint != card.test_fingerprint:
            raise InputError(
                f"the test images here have fingerprint {self._test.fingerprint}, those on the card of {card.name} "
                f"{card.test_fingerprint}: give the data set {card.dataset}"
            )
        _check_network(card, self._module, self._test)
        lacking, proven = [], 0
        stored = stored_examples(self._checked.evidence, self._test)
        failed = self._attack_again(stored) if self._means.attack_again else {}
        for (row, record), found in zip(self._checked.rows, stored, strict=True):
            at_most = None
            if self._has_evidence(row.record, record, found):
                at_most = self._replayed(row.record, record, found)
                proven += len(record.verdicts) - record.verdicts.count(ROBUST)
            else:
                lacking.append(row.record)
            self.rows.append(VerifiedRow(record=row.record, at_most=at_most))
        if lacking:
            raise _LacksEvidenceError(_lacking(lacking, len(self.rows), failed))
        return f"{proven:,} verdicts are shown to hold: the robust accuracies are upper bounds"

    def audit(self) -> str:
        beacon, device = self._means.beacon, self._means.device
        told = []
        for at, (row, record) in enumerate(self._checked.rows):
            if row.attack != AUTOATTACK or self.rows[at].at_most is None:
                continue  # another attack's row does not claim that AutoAttack fails
            claimed = [place for place, verdict in enumerate(record.verdicts) if verdict == ROBUST]
            drawn = draw(
                claimed,
                self._means.audit,
                beacon=beacon,
                manifest_sha256=self.manifest_sha256,
                record_sha256=row.record_sha256,
            )
            test = tested_by(record, self._test)
            found = audit(self._module, test, record, drawn, beacon=beacon, device=device)
            _refuse_false_claims(row.record, found)
            self.rows[at] = self.rows[at].model_copy(update={"audit": found})
            told.append(
                f"{row.record}: AutoAttack broke {len(found.broken)} of {len(drawn):,} examples claimed robust, so the "
                f"robust accuracy is at least {percent(found.at_least)} % (at {100 * found.level:.0f} %)"
            )
        return "; ".join(told) or "there is no replayed row of AutoAttack"

    def _images(self, card: ModelCard) -> Split:
        try:
            return self._means.test(card)
        except SamBenchError as error:
            raise _CannotCheckError(
                f"give the test images of {card.dataset} with `dataset`; without it: {error}"
            ) from error

    def _attack_again(self, stored: Sequence[dict[int, Any]]) -> dict[str, str]:
        """Find adversarial examples for rows that have none; those of a smaller ball serve the larger ones, too.

        Returns:
            The rows for which not all were found, and why.
        """
        failed = {}
        for at in sorted(range(len(stored)), key=lambda at: self._checked.rows[at][1].eps):
            row, record = self._checked.rows[at]
            if record.broken.keys() <= stored[at].keys():
                continue
            test = tested_by(record, self._test)
            try:
                again = find_again(self._module, test, record, known=stored[at], device=self._means.device).x_adv
            except InputError as error:
                failed[row.record] = str(error)
                continue
            share_with_larger(self._checked.evidence, stored, at, again)
        return failed

    def _has_evidence(self, name: str, record: EvaluationRecord, stored: Mapping[int, Any]) -> bool:
        """Whether the files hold what it needs; only what was carried over may lie in a smaller ball's, not given."""
        missing = len(record.broken.keys() - stored.keys())
        file = read_bundle(adversarial_path(self._checked.stored.path.parent / name))
        return not missing or (bool(file) and missing > record.carried)

    def _replayed(self, name: str, record: EvaluationRecord, stored: Mapping[int, Any]) -> float:
        try:
            return replay(self._module, tested_by(record, self._test), record, stored, device=self._means.device)
        except SamBenchError as error:
            raise InputError(f"{name}: {error}") from error


def _lacking(names: Sequence[str], rows: int, failed: Mapping[str, str]) -> str:
    """What is said of rows that stay claimed, some of which were attacked again in vain."""
    few = f"{len(names)} of {rows} rows have no adversarial examples and stay claimed: {', '.join(names)}"
    if failed:
        return f"{few}; {'; '.join(f'{name}: {why}' for name, why in failed.items())}"
    return f"{few}; attacking again shows them for this check, `sam-bench leaderboard evidence` finds and keeps them"


def _card_of(checked: CheckedEntry) -> ModelCard:
    if checked.found.card is None:
        raise InputError(f"{checked.stored.path} cannot be verified: {checked.found.missing}")
    return checked.found.card


def _check_network(card: ModelCard, module: nn.Module, test: Split) -> None:
    """Refuse a card whose model has another size, does not take these images, or does not know their classes."""
    count = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    if count != card.parameters:
        raise InputError(f"the model of {card.name} has {count:,} parameters, but its card states {card.parameters:,}")
    network, given = card.architecture, list(test.shape[1:])
    takes = [network.in_channels, network.image_size, network.image_size]
    if takes != given:
        raise InputError(f"the model of {card.name} takes images of {takes}, but {card.dataset} has {given}")
    classes = int(test.labels.max()) + 1
    if classes > network.num_classes:
        raise InputError(
            f"the model of {card.name} knows {network.num_classes} classes, but {card.dataset} has {classes}"
        )


def _refuse_false_claims(name: str, found: Audit) -> None:
    """Refuse a row of which, surely enough, too many claims are false."""
    broken, drawn = len(found.broken), len(found.drawn)
    at_least = 1 - clopper_pearson(drawn - broken, drawn, LEVEL) if broken else 0.0
    if at_least > TOLERATED:
        raise InputError(
            f"{name}: AutoAttack broke {broken} of {drawn:,} examples that it claims to be robust, so at "
            f"{100 * LEVEL:.0f} % more than {100 * at_least:.2f} % of these claims are false"
        )
