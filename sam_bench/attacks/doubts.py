"""Until the branches are merged: the names that other rooms still use."""

from __future__ import annotations

from sam_bench.attacks.warnings import second_attack_warnings, square_warnings


def square_doubts(verdicts: list[str], attacks: list[str]) -> list[str]:
    """See `square_warnings`."""
    return [str(each) for each in square_warnings(verdicts, attacks)]


def second_opinion_doubts(attack: str, other: str, gap: float) -> list[str]:
    """See `second_attack_warnings`."""
    return [str(each) for each in second_attack_warnings(attack, other, gap)]
