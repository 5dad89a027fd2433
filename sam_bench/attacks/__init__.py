"""Attacks: what searches for adversarial examples, each behind a base that verifies what it found.

A new attack is one file here that registers one class; `attacks` imports it.
"""

from sam_bench.attacks import autoattack, gradient, reference
from sam_bench.attacks.base import ATTACKS, Attack, AttackResult, Progress
from sam_bench.attacks.judge import Verdict

__all__ = ["ATTACKS", "Attack", "AttackResult", "Progress", "Verdict", "autoattack", "gradient", "reference"]
