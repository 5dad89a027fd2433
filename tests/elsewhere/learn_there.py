"""Trains on the CPU and elsewhere; prints for each method how far the weights are apart and what was waited for."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import elsewhere
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "training"))
from training_samples import digits, method_of, run, tiny_net

from sam_bench.data.batches import Batches
from sam_bench.training import PARTS
from sam_bench.training.loop import TrainingStep

_QUICK: dict[str, dict[str, Any]] = {
    # What it keeps of two gradients is their difference, made as long as they are: with a short ascent that is
    # mostly rounding, which is another one there.
    "looksam": {"rho": 1.0},
    # Nine times the difference of two gradients is nine times its rounding.
    "wsam": {"sharpness_weight": 0.7},
    "pgd": {"steps": 2},
    # Eight steps a batch have eight times the rounding.
    "free": {"replays": 2},
    "entropy-sgd": {"inner_steps": 2},
    "swa": {"average_from": 0.0},
}
PGD = {"inputs": "pgd", "steps": 2}

CASES: dict[str, dict[str, Any]] = {
    **{f"weights {name}": {"weights": name, **_QUICK.get(name, {})} for name in PARTS["weights"].names()},
    **{f"inputs {name}": {"inputs": name, **_QUICK.get(name, {})} for name in PARTS["inputs"].names()},
    **{f"averaging {name}": {"averaging": name, **_QUICK.get(name, {})} for name in PARTS["averaging"].names()},
    **{
        f"objective {name}": {"objective": name, **({} if name == "input-gradient" else PGD)}
        for name in PARTS["objective"].names()
    },
    "restarts": {**PGD, "restarts": 2},
    "kl": {**PGD, "loss": "kl", "start": "gaussian", "objective": "trades", "weights": "awp"},
    "best in L2": {**PGD, "norm": "L2", "eps": 0.5, "iterate": "best", "weights": "sam"},
    "published BatchNorm": {**PGD, "bn_mode": "update", "weights": "asam"},
    # Adam's first steps divide by gradients near zero: what differs there by rounding is moved by a whole rate.
    "adamw": {"optimizer": "adamw", "lr": 1e-5},
    "part of a batch": {**PGD, "weights": "sam", "micro_batch": 3},
}


class _Epoch(Iterator[tuple[Tensor, Tensor]]):
    """An epoch's batches, one at a time."""

    def __init__(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        self._batches = batches

    def __next__(self) -> tuple[Tensor, Tensor]:
        return next(self._batches)


_plain_epoch = Batches.epoch
Batches.epoch = lambda self, *args, **options: _Epoch(_plain_epoch(self, *args, **options))  # type: ignore[method-assign]


def learned(settings: dict[str, Any], device: str) -> dict[str, Tensor]:
    """The weights after two epochs."""
    micro_batch = settings.get("micro_batch")
    settings = {key: value for key, value in settings.items() if key != "micro_batch"}
    with tempfile.TemporaryDirectory() as folder:
        trained = run(
            Path(folder),
            method_of("standard", settings),
            train=digits().head(24).to(torch.device(device)),
            model=tiny_net().to(device),
            micro_batch=micro_batch,
        )
    return {name: each.detach().cpu() for name, each in trained.model.state_dict().items()}


class Watched:
    """Counts what is waited for inside one method of a class."""

    def __init__(self, owner: type, name: str) -> None:
        self.calls, self.waits = 0, Counter[str]()
        plain = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            before = elsewhere.waits.copy()
            result = plain(*args, **options)
            self.calls += 1
            self.waits += elsewhere.waits - before
            return result

        setattr(owner, name, call)


def main() -> None:
    """A line of JSON a case: its name, the largest deviation, the steps, the waits within them and their batches."""
    steps, batches = Watched(TrainingStep, "__call__"), Watched(_Epoch, "__next__")
    with elsewhere.Device():
        for name, settings in CASES.items():
            here = learned(settings, "cpu")
            steps.calls, steps.waits, batches.waits = 0, Counter(), Counter()
            there = learned(settings, elsewhere.NAME)
            apart = max(float((here[key].double() - there[key].double()).abs().max()) for key in here)
            waits = dict(steps.waits + batches.waits)
            print(json.dumps({"case": name, "apart": apart, "steps": steps.calls, "waits": waits}), flush=True)


if __name__ == "__main__":
    main()
