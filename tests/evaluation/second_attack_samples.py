"""The second attack, cut short."""

from __future__ import annotations

from pydantic import Field

from sam_bench.attacks.margin import PGDMarginAttack


class ShortMargin(PGDMarginAttack):
    """Two starts of four steps, everything else as it is."""

    method = "pgd-margin"
    steps: int = Field(default=4, ge=1)
    restarts: int = Field(default=2, ge=1)
