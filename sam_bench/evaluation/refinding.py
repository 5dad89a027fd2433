"""Adversarial examples for a record that was made without keeping them: what it calls broken is attacked again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from sam_bench.attacks import ATTACKS
from sam_bench.attacks.events import Examples, Verdict
from sam_bench.data import Split, to_float
from sam_bench.errors import InputError
from sam_bench.evaluation.adversarial import AdversarialExamples, about_record
from sam_bench.evaluation.replay import compact
from sam_bench.perturb.ball import Ball
from sam_bench.records import ComponentSpec, EvaluationRecord

_BATCH = 128


def attack_again(
    module: nn.Module,
    test: Split,
    record: EvaluationRecord,
    places: Sequence[int],
    *,
    seed: int,
    device: torch.device,
) -> Iterator[Verdict]:
    """Run AutoAttack (standard) on some examples of a record, in its ball; the verdicts as they come.

    Args:
        module: The record's model.
        test: The test examples of the record.
        record: Says the ball.
        places: Which examples.
        seed: Decides the attack's random numbers.
        device: Where the model is.
    """
    if not places:
        return
    index = torch.tensor(places, dtype=torch.int64)
    part = test.select(index)
    examples = Examples(to_float(part.images).cpu(), part.labels.cpu(), index, torch.zeros_like(index))
    attack = ATTACKS.build(ComponentSpec(method="autoattack", version="standard"))
    ball = Ball(record.norm, float(record.eps))
    events = attack.run_events(module, examples, ball=ball, seed=seed, batch_size=_BATCH, device=device)
    yield from (event for event in events if isinstance(event, Verdict))


def find_again(
    module: nn.Module,
    test: Split,
    record: EvaluationRecord,
    *,
    known: Iterable[int] = (),
    device: torch.device,
) -> AdversarialExamples:
    """An adversarial example for each test example that a record calls broken, found by AutoAttack (standard).

    Who found it does not matter: it shows that the example is not robust. What is robust is not attacked, so this
    takes a small part of the evaluation's time.

    Args:
        module: The record's model.
        test: The test examples of the record.
        record: What is claimed.
        known: Places that have an adversarial example already, in a smaller ball.
        device: Where the model is.

    Raises:
        InputError: Some are not broken again; says how many.
    """
    places = sorted(record.broken.keys() - set(known))
    verdicts = attack_again(module, test, record, places, seed=record.seed, device=device)
    found = {verdict.example: verdict.x_adv.numpy() for verdict in verdicts if verdict.x_adv is not None}
    if len(found) < len(places):
        raise InputError(
            f"AutoAttack did not break {len(places) - len(found):,} of the {len(places):,} examples again that the "
            "record calls broken: evaluate with `save_adversarial=True`"
        )
    return compact(module, test, record, AdversarialExamples(about_record(record), found), device=device)
