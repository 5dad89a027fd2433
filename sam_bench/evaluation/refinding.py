"""Adversarial examples for a record that was made without keeping them: what it calls broken is attacked again."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import nn

from sam_bench.attacks import ATTACKS
from sam_bench.attacks.events import Examples, Verdict
from sam_bench.data import Split, to_float
from sam_bench.errors import InputError
from sam_bench.evaluation.adversarial import AdversarialExamples, about_record
from sam_bench.evaluation.replay import broken_places, compact
from sam_bench.perturb.ball import Ball
from sam_bench.records import ComponentSpec, EvaluationRecord


def find_again(
    module: nn.Module,
    test: Split,
    record: EvaluationRecord,
    *,
    known: Container[int] = (),
    device: torch.device,
    batch_size: int = 128,
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
        batch_size: Examples at a time.

    Raises:
        InputError: Some are not broken again; says how many.
    """
    index = torch.tensor(sorted(place for place in broken_places(record) if place not in known), dtype=torch.int64)
    found = {}
    if len(index):
        part = test.select(index)
        examples = Examples(to_float(part.images).cpu(), part.labels.cpu(), index, torch.zeros_like(index))
        attack = ATTACKS.build(ComponentSpec(method="autoattack", version="standard"))
        ball = Ball(record.norm, float(record.eps))
        for event in attack.run_events(
            module, examples, ball=ball, seed=record.seed, batch_size=batch_size, device=device
        ):
            if isinstance(event, Verdict) and event.x_adv is not None:
                found[event.example] = event.x_adv.numpy()
    if len(found) < len(index):
        raise InputError(
            f"AutoAttack did not break {len(index) - len(found):,} of the {len(index):,} examples again that the "
            "record calls broken: evaluate with `save_adversarial=True`"
        )
    return compact(module, test, record, AdversarialExamples(about_record(record), found), device=device)
