"""Attacks on the CPU and elsewhere; prints for each the verdicts of both and what was waited for a model's call."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import ClassVar

import elsewhere
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "attacks"))
from autoattack_samples import Conv, examples

import sam_bench
from sam_bench.attacks import Attack, Examples, Verifier
from sam_bench.attacks.autoattack import AutoAttack
from sam_bench.attacks.gradient import FGSMAttack, PGDAttack
from sam_bench.attacks.margin import PGDMarginAttack
from sam_bench.perturb import Ball
from sam_bench.records import Norm

RADII: dict[Norm, float] = {"Linf": 0.03, "L2": 0.4, "L1": 2.5}


def _suite(*names: str, rng: str = "counter") -> AutoAttack:
    return AutoAttack(version="custom", suite=list(names), rng=rng)


CASES: list[tuple[str, Attack, Norm, int]] = [
    *((f"pgd {norm}", PGDAttack(steps=10, restarts=2), norm, 12) for norm in ("Linf", "L2")),
    *((f"fgsm {norm}", FGSMAttack(), norm, 12) for norm in ("Linf", "L2")),
    *((f"pgd-margin {norm}", PGDMarginAttack(steps=10, restarts=2), norm, 12) for norm in ("Linf", "L2")),
    *((f"apgd {norm}", _suite("apgd-ce"), norm, 4) for norm in RADII),
    ("apgd Linf, upstream's draws", _suite("apgd-ce", rng="upstream"), "Linf", 2),
    *((f"fab {norm}", _suite("fab"), norm, 2) for norm in RADII),
    ("square Linf", _suite("square"), "Linf", 2),
]


class Counted(Conv):
    """Knows how often it was called, and how many rows it was given at once."""

    calls = 0
    rows: ClassVar[set[int]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.rows.add(len(x))
        return super().forward(x)


def _attack_a_function(model: Counted, x: Tensor, y: Tensor) -> None:
    """A script's function says nothing of the device that it takes its inputs on."""
    adversary = sam_bench.AutoAttack(
        lambda images: model(images),
        eps=0.03,
        seed=0,
        verbose=False,
        device=elsewhere.NAME,
        version="custom",
        attacks_to_run=["apgd-ce"],
    )
    adversary.apgd.n_iter = 5
    adversary.run_standard_evaluation(x, y)
    assert set(adversary.verdicts) == {"robust", "apgd-ce"}, adversary.verdicts


def main() -> None:
    """A line of JSON a case."""
    model = Counted(dtype=torch.float32)
    x, y = examples(model, 12, of=60)
    with elsewhere.Device():
        # A GPU chooses its kernels by the shape: the verifier's batches have one size, whatever is asked of it.
        model.to(elsewhere.NAME).rows.clear()
        ball, there = Ball(norm="Linf", eps=0.1), torch.device(elsewhere.NAME)
        for batch_size, rows in ((4, 16), (10, 16), (20, 20), (1000, 128)):
            verifier = Verifier(model, ball=ball, batch_size=batch_size, device=there)
            verifier.clean(Examples.of(x, y))
            verifier.check(torch.arange(2), x[:2])
            assert model.rows == {rows}, model.rows
            model.rows.clear()
        _attack_a_function(model, x, y)
        for name, attack, norm, count in CASES:
            verdicts = {}
            for device in ("cpu", elsewhere.NAME):
                model.to(device).calls = 0
                elsewhere.waits.clear()
                ball = {"norm": norm, "eps": RADII[norm], "batch_size": 5, "device": device}
                verdicts[device] = attack.run(model, x[:count], y[:count], **ball).verdicts
            print(
                json.dumps(
                    {
                        "case": name,
                        "here": verdicts["cpu"],
                        "there": verdicts[elsewhere.NAME],
                        "calls": model.calls,
                        "waits": dict(elsewhere.waits),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
