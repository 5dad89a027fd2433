"""Evaluation: one attack, at one radius, on one model, becomes a record with a verdict for every example."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

import torch

from sam_bench.attacks import Attack, Verdict
from sam_bench.attacks.doubts import square_doubts
from sam_bench.data import Split
from sam_bench.device import package_versions
from sam_bench.distributed import ALONE, Team
from sam_bench.errors import InputError
from sam_bench.evaluation.journal import Journal, Known
from sam_bench.evaluation.shards import Executor, Shard, Workplace, attack_in_processes, attack_shard
from sam_bench.models import check_input_gradient, check_model
from sam_bench.modes import attacking
from sam_bench.parallel import why_not_sent
from sam_bench.progress import Reporter
from sam_bench.records import EvaluationRecord, Norm, Radius, accuracies
from sam_bench.zoo import LoadedModel


@dataclass(frozen=True)
class Evaluation:
    """One attack at one radius on one model: what decides every verdict.

    Attributes:
        model: What `zoo.load_model` returned.
        test: The examples, in the order of the data set.
        dataset: Name of the data set for the record.
        attack: What to run.
        norm: Norm of the ball.
        eps: Its radius for inputs in [0, 1], as written.
        seed: Decides every random draw.
        batch_size: Examples at a time.
        carried: Examples that the same run broke in a smaller ball: place in the data set to the verdict.
    """

    model: LoadedModel
    test: Split
    dataset: str
    attack: Attack
    norm: Norm
    eps: Radius
    seed: int
    batch_size: int
    carried: Mapping[int, Verdict] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What has to be the same for verdicts to belong together."""
        decides = {
            "checkpoint_sha256": self.model.sha256,
            "architecture_sha256": self.model.architecture_sha256,
            "dataset": self.dataset,
            "dataset_fingerprint": self.test.fingerprint,
            "n_examples": len(self.test),
            "attack": self.attack.method,
            "engine": self.attack.implementation,
            "settings": self.attack.model_dump(mode="json"),
            "norm": self.norm,
            "eps": str(self.eps),
            "seed": self.seed,
        }
        if self.attack.per_example:
            return decides
        # Which examples share a batch decides, too: how many there are in one, and which are left out.
        return decides | {"carried": _digest(self.carried), "batch_size": self.batch_size}

    def check(self) -> None:
        """Refuse what cannot work, before anything is attacked.

        Raises:
            InputError: The model does not fit the data (wrong input shape or number of classes) or the attack.
            SamBenchError: The model returns NaN or infinite logits.
        """
        model, test = self.model, self.test
        if not len(test):
            raise InputError(f"data set {self.dataset} has no test images: there is nothing to attack")
        shape = (test.images.shape[1], test.images.shape[2], test.images.shape[3])
        if model.input_shape is not None and model.input_shape != shape:
            raise InputError(
                f"model {model.name} takes images of {_size(model.input_shape)}, but data set {self.dataset} has "
                f"{_size(shape)}"
            )
        highest = int(test.labels.max())
        if highest >= model.num_classes:
            raise InputError(
                f"model {model.name} knows {model.num_classes} classes, but data set {self.dataset} has labels up to "
                f"{highest}"
            )
        name = f"model {model.name}"
        with attacking(model.module):
            check_model(model.module, num_classes=model.num_classes, input_shape=shape, name=name)
        if self.attack.needs_gradients:
            check_input_gradient(model.module, shape, attack=self.attack.method, name=name)
        self.attack.check_model(self.norm, classes=model.num_classes, shape=shape)

    def standing(self, known: Known) -> tuple[dict[int, Verdict], list[int]]:
        """What is said of each example, what was carried over included, and the places of those not settled yet."""
        verdicts = known.verdicts | dict(self.carried)
        settled = {place for place, verdict in verdicts.items() if verdict.verdict is not None}
        return verdicts, [place for place in range(len(self.test)) if place not in settled]

    def shards(self, known: Mapping[int, Verdict], examples: list[int], count: int) -> list[Shard]:
        """Examples dealt out in turn: those that resist longest are spread over the shards.

        Args:
            known: What was found out earlier: place in the data set to the verdict.
            examples: Places of those that are not settled.
            count: How many shards.
        """
        images, labels = self.test.images.cpu(), self.test.labels.cpu()
        return [
            Shard(
                number=number,
                images=images[part],
                labels=labels[part],
                index=torch.tensor(part, dtype=torch.int64),
                withstood=torch.tensor([known[place].withstood if place in known else 0 for place in part]),
                norm=self.norm,
                eps=float(self.eps),
                seed=self.seed,
                batch_size=self.batch_size,
            )
            for number, part in enumerate(examples[number::count] for number in range(count))
        ]


def run_evaluation(
    evaluation: Evaluation,
    journal: Journal,
    *,
    resume: bool,
    workers: int,
    device: torch.device,
    reporter: Reporter,
    keep_witnesses: bool = False,
    team: Team = ALONE,
    executor: Executor | None = None,
) -> Known:
    """Attack what is not settled yet; every verdict goes into the journal as it is found.

    Args:
        evaluation: What to do; its model is on `device`.
        journal: Where verdicts go.
        resume: Go on with what the journal holds.
        workers: Processes on this machine that share the examples.
        device: Where to run.
        reporter: Where progress goes.
        keep_witnesses: Put the adversarial examples into the journal, too.
        team: Processes started by `torchrun` that share the examples.
        executor: Where the examples are attacked, if not on this machine.

    Returns:
        A verdict for every example.

    Raises:
        InputError: The journal holds another evaluation or is in use, or the attack cannot be shared.
        SamBenchError: A file could not be written, or a worker died.
    """
    attack = evaluation.attack
    if (workers > 1 or team.size > 1 or executor) and not attack.per_example:
        raise InputError(
            f"{attack.method} as asked for ({attack.implementation}) cannot be shared among processes: what it draws "
            f"for an example depends on the others in its batch; leave {'--executor' if executor else '--workers'} away"
        )
    if not executor:
        attack.check_device(device)
    if workers > 1 and team.size == 1 and not executor and (reason := why_not_sent(evaluation.model.module)):
        raise InputError(
            f"workers={workers} needs a module that can be pickled, and {evaluation.model.name} cannot ({reason}): "
            "define its class at the top of a file of its own, or leave workers away"
        )
    with journal.claimed() if team.is_main else nullcontext():
        # Rank 0 first: it speaks. Then every other one, whose disk may be another, with leftovers of its own.
        if team.is_main:
            journal.open(evaluation.identity(), resume=resume, attacks=attack.attacks)
        team.wait()
        opened = journal.open(evaluation.identity(), resume=resume, attacks=attack.attacks)
        known = Known.together(team.collect(opened))
        if known.damaged:
            more = len(known.damaged) - 1
            reporter.say(
                f"a damaged line is left out, its example attacked again: {known.damaged[0]}"
                + (f" (and {more} more)" if more else "")
            )
        verdicts, left = evaluation.standing(known)
        if left and known.verdicts and not attack.per_example:
            # Stopped as it told them: what is left would make other batches than all of them.
            journal.forget()
            known = Known({}, [], {})
            verdicts, left = evaluation.standing(known)
        if known.verdicts:
            settled = len(evaluation.test) - len(left)
            reporter.say(f"resuming {journal.path}: {settled:,} of {len(evaluation.test):,} examples are settled")
        place = Workplace(
            module=evaluation.model.module,
            attack=attack,
            folder=journal.path,
            session=max(team.collect(journal.new_session())),
            keep_witnesses=keep_witnesses,
        )
        if left and executor:
            executor.attack(evaluation.shards(verdicts, left, executor.count(len(left))), place, reporter=reporter)
        elif left and workers > 1 and team.size == 1:
            shards = evaluation.shards(verdicts, left, min(workers, len(left)))
            attack_in_processes(shards, place, device=device, reporter=reporter)
        elif left:
            mine = evaluation.shards(verdicts, left, team.size)[team.rank]
            if len(mine.index):
                attack_shard(mine, place, device=device, reporter=reporter)
        team.wait()
        # Each process reads its own files, which it can see wherever they are; rank 0 alone takes the witnesses.
        share = team.rank, team.size
        found = Known.together([*team.collect(journal.read(witnesses=False, share=share)), known])
        if keep_witnesses:
            found = Known.together([found, *team.gather(journal.read(share=share))])
    verdicts = found.verdicts | dict(evaluation.carried)
    return replace(found, verdicts=verdicts, doubts=_doubts_of_the_whole(attack, verdicts, found.doubts))


def settings_of(attack: Attack) -> dict[str, Any]:
    """An attack's settings as a record has them: those that say something, the version apart."""
    given = attack.model_dump(mode="json", exclude={"version"}, exclude_none=True)
    return {key: value for key, value in given.items() if value != []}


def _doubts_of_the_whole(attack: Attack, verdicts: Mapping[int, Verdict], found: list[str]) -> list[str]:
    """Each doubt once; what compares attacks with each other is computed from all examples, not from a shard's."""
    told = [str(each.verdict) for each in verdicts.values()]
    return list(dict.fromkeys([*attack.caveats, *found])) + square_doubts(told, attack.attacks)


def record_of(evaluation: Evaluation, known: Known, *, device: str, spelled: str, command: str) -> EvaluationRecord:
    """The record of a finished evaluation.

    Args:
        evaluation: What was done.
        known: What came out.
        device: What it ran on is called.
        spelled: MODEL as the user gave it.
        command: The command line.
    """
    attack = evaluation.attack
    verdicts = [str(known.verdicts[place].verdict) for place in range(len(evaluation.test))]
    return EvaluationRecord(
        model=spelled,
        checkpoint_sha256=evaluation.model.sha256,
        architecture_sha256=evaluation.model.architecture_sha256,
        dataset=evaluation.dataset,
        dataset_fingerprint=evaluation.test.fingerprint,
        attack=attack.method,
        version=str(attack.model_dump().get("version", "")),
        engine=attack.implementation,
        settings=settings_of(attack),
        norm=evaluation.norm,
        eps=evaluation.eps,
        eps_float=float(evaluation.eps),
        seed=evaluation.seed,
        batch_size=evaluation.batch_size,
        n_examples=len(evaluation.test),
        carried=len(evaluation.carried),
        warnings=known.doubts,
        seconds=known.seconds,
        device=device,
        packages=package_versions(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        verdicts=verdicts,
        **accuracies(verdicts, attack.attacks),
    )


def _digest(carried: Mapping[int, Verdict]) -> str:
    """Says in short which examples were carried over, and from which attack."""
    if not carried:
        return "none"
    text = ",".join(f"{place}:{carried[place].verdict}" for place in sorted(carried))
    return f"{len(carried)} examples, SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[0]} channel{'s' if shape[0] > 1 else ''} of {shape[1]}x{shape[2]}"
