"""What a claim still waits for, and what of it this scale cannot test.

It has a verdict once all planned seeds are there, not as soon as it looks decided.
"""

from __future__ import annotations

from collections.abc import Iterator

from sam_bench.studies.claims import Claim, Family, Part, Passes
from sam_bench.studies.measured import Measured


def waits_for(claim: Claim, found: Measured) -> list[str]:
    """The rows of a claim that lack seeds, as `at: 1 of 3 seeds of autoattack`; empty if nothing is missing.

    A row that the scale leaves out is not waited for; see `left_out`.
    """
    lacking: dict[str, None] = {}
    for part in claim.parts:
        of = None if isinstance(part, Passes) else part.of
        for row in _rows(part, found):
            if row not in found.study.rows:
                continue
            done, planned = _done(found, row, of), len(found.study.seeds(row))
            if done < planned:
                lacking[f"{row}: {done} of {planned} seeds" + (f" of {of}" if of else "")] = None
    return list(lacking)


def left_out(claim: Claim, found: Measured) -> list[str]:
    """The rows of a claim that the scale leaves out; of a family all, where too few are left for a curve."""
    study, needed = found.study, set[str]()
    for part in claim.parts:
        needed |= {part.a, part.b} if isinstance(part.b, str) else {part.a}
        if isinstance(part.b, Family) and len(found.family(part.b.family)) < 2:
            needed |= {row for row, each in study.plan.rows.items() if each.family == part.b.family}
    return [row for row in study.plan.rows if row in needed - study.rows.keys()]


def _rows(part: Part, found: Measured) -> Iterator[str]:
    yield part.a
    yield from [part.b] if isinstance(part.b, str) else found.family(part.b.family)


def _done(found: Measured, row: str, of: str | None) -> int:
    """How many seeds of a row are trained, and measured where something is asked of them."""
    if of is None:
        return len(found.cards.get(row, {}))
    measured = found.measured(row, of)
    return 0 if measured is None else len(measured.seeds)
