"""AutoAttack with a proven gap: its expensive attacks run on a random sample of what the cheap ones leave.

FAB-T and Square are three quarters of AutoAttack's work and break almost nothing that APGD has left. What they would
break of the examples outside the sample is bounded exactly, since the sample is random: by the hypergeometric
distribution of what they broke in it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from sam_bench.attacks.autoattack.attack import FastAttack
from sam_bench.attacks.autoattack.engine import Engine
from sam_bench.attacks.autoattack.suite import attacks_of, build_suite
from sam_bench.attacks.base import ATTACKS, ENGINE_REVISION
from sam_bench.attacks.events import AttackWarning
from sam_bench.attacks.warnings import warning
from sam_bench.records import Norm

SAMPLED = ("fab-t", "square")
"""The attacks that run on the sample alone."""


@dataclass(frozen=True)
class Sample:
    """Which examples are in the sample. It depends on the key and the example's place alone, not on the seed.

    Attributes:
        key: What nobody can choose: a digest of the model, the images and the ball.
        share: The share of examples, above 0.
    """

    key: str
    share: float

    def contains(self, index: Tensor) -> Tensor:
        """Whether each is in it: bool [N] for places in the data set, int64 [N]."""
        return torch.tensor([self._uniform(place) < self.share for place in index.tolist()], dtype=torch.bool)

    def _uniform(self, place: int) -> float:
        """A number in [0, 1) that is as good as random."""
        digest = hashlib.sha256(f"{self.key}:{place}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2.0**64


@dataclass(frozen=True)
class SampledEngine(Engine):
    """The engine, with two attacks that see a sample only.

    Attributes:
        sample: Which examples they see.
    """

    sample: Sample = Sample("", 1.0)

    def seen_by(self, attack: str, index: Tensor) -> Tensor:
        return self.sample.contains(index) if attack in SAMPLED else super().seen_by(attack, index)


@ATTACKS.register("autoattack-sampled")
class AutoAttackSampled(FastAttack):
    """AutoAttack whose FAB-T and Square run on a random sample; the record bounds what that leaves out."""

    sample: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="share of the examples left by APGD that FAB-T and Square are run on; the bound needs some hundred",
    )

    _key: str = PrivateAttr(default="")

    @property
    def attacks(self) -> list[str]:
        """Those of version standard."""
        return attacks_of("standard")

    @property
    def warnings(self) -> list[AttackWarning]:
        """That this is not AutoAttack."""
        return [warning("sampled")]

    @property
    def engine_revision(self) -> int | None:
        """One more: the first drew its sample by how eps was written, and another one in other processes."""
        return ENGINE_REVISION + 1

    @property
    def curves(self) -> bool:
        """No: what a smaller ball broke is in no sample of this one."""
        return False

    def keyed(self, key: str) -> AutoAttackSampled:
        if self._key:
            return self
        copy = self.model_copy()
        copy._key = key
        return copy

    @property
    def chosen(self) -> Sample:
        """The sample."""
        return Sample(self._key, self.sample)

    def engine_to_run(self, norm: Norm) -> Engine:
        return SampledEngine(build_suite("standard", norm=norm), compiled=self.compile == "on", sample=self.chosen)
