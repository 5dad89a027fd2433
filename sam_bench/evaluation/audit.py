"""Audit: AutoAttack again, on random examples of those that a record claims to be robust."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

from sam_bench.data import Split
from sam_bench.evaluation.refinding import attack_again
from sam_bench.records import ROBUST, Audit, EvaluationRecord
from sam_bench.records.sampling import LEVEL, clopper_pearson


def draw(claimed: list[int], count: int, *, beacon: str, manifest_sha256: str, record_sha256: str) -> list[int]:
    """Random examples of those claimed robust, ascending; anybody can draw the same ones again.

    Nobody knows them before the beacon is there: they are those with the smallest SHA-256 of beacon, manifest, record
    and place.

    Args:
        claimed: Places in the data set.
        count: How many to draw, or all where there are fewer.
        beacon: A public text made after the entry, such as a commit's hash.
        manifest_sha256: Of the manifest's file; it stands for the model and all evidence.
        record_sha256: Of the record's file.
    """

    def number(place: int) -> str:
        return hashlib.sha256(json.dumps([beacon, manifest_sha256, record_sha256, place]).encode()).hexdigest()

    return sorted(sorted(claimed, key=number)[:count])


def audit(
    module: nn.Module,
    test: Split,
    record: EvaluationRecord,
    drawn: list[int],
    *,
    beacon: str,
    device: torch.device,
) -> Audit:
    """Run AutoAttack (standard) on the examples drawn, and bound how many claims can be false.

    Args:
        module: The record's model.
        test: The test examples of the record.
        record: What is claimed.
        drawn: See `draw`.
        beacon: What decided the draw; it decides the attack's random numbers, too.
        device: Where the model is.
    """
    seed = int.from_bytes(hashlib.sha256(beacon.encode()).digest()[:4], "big")
    verdicts = attack_again(module, test, record, drawn, seed=seed, device=device)
    broken = sorted(verdict.example for verdict in verdicts if verdict.outcome not in (None, ROBUST))
    claims = record.verdicts.count(ROBUST)
    share = clopper_pearson(len(broken), len(drawn), LEVEL)
    if len(drawn) == claims:
        share = len(broken) / claims if claims else 0.0  # nothing is left to chance
    return Audit(
        beacon=beacon,
        seed=seed,
        drawn=drawn,
        broken=broken,
        may_be_false=share,
        at_least=claims * (1 - share) / record.n_examples,
    )
