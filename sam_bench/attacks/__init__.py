"""Attacks: what searches for adversarial examples, each behind a base that verifies what it found.

A new attack is one file here that registers one class, and nothing else.
"""

from sam_bench.attacks import autoattack, gradient, reference
from sam_bench.attacks.base import ATTACKS, Attack, AttackResult, ExampleAttack
from sam_bench.attacks.events import AttackWarning, Event, Examples, Progress, Verdict
from sam_bench.attacks.verify import Verifier
from sam_bench.registry import import_all

import_all(__name__, __path__)

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackResult",
    "AttackWarning",
    "Event",
    "ExampleAttack",
    "Examples",
    "Progress",
    "Verdict",
    "Verifier",
    "autoattack",
    "gradient",
    "reference",
]
