"""Small models and upstream's attacks, for the tests of the fast engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sam_bench.attacks.autoattack import AutoAttack, AutoAttackBF16, AutoAttackScreen, Engine
from sam_bench.attacks.autoattack.apgd import APGD
from sam_bench.attacks.autoattack.apgd_l1 import SparseAPGD
from sam_bench.attacks.autoattack.fab import FAB
from sam_bench.attacks.autoattack.oracle import Oracle
from sam_bench.attacks.autoattack.plan import Part
from sam_bench.attacks.autoattack.rows import Cases, Search
from sam_bench.attacks.autoattack.square import Square
from sam_bench.attacks.base import Task
from sam_bench.attacks.draws import Draws
from sam_bench.attacks.reference import ReferenceAutoAttack
from sam_bench.integrations import upstream
from sam_bench.perturb.ball import Ball
from sam_bench.records import Norm

CPU = torch.device("cpu")
SIDE = 11
LOSSES = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "dlr-targeted"}


class Conv(nn.Module):
    """Ten classes of 3x11x11 images, computed in float64 by default; keeps what it was asked.

    Args:
        rounds: Give the logits as float32: upstream's FAB takes no others.
    """

    def __init__(self, seed: int = 0, *, dtype: torch.dtype = torch.float64, rounds: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1, bias=False),
                nn.Tanh(),
                nn.AvgPool2d(3),
                nn.Flatten(),
                nn.Linear(54, 10, bias=False),
            ).to(dtype)
            with torch.no_grad():
                self.net[0].weight *= 6
                self.net[-1].weight *= 6
        self.dtype, self.rounds = dtype, rounds
        self.asked: list[Tensor] | None = None
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.asked is not None:
            self.asked.append(x.detach().clone())
        logits = self.net(x.to(self.dtype) - 0.5)
        return logits.float() if self.rounds else logits


def examples(model: nn.Module, count: int, *, of: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images with what the model says of them for labels; the surest so many of `of`."""
    x = torch.rand(max(count, of), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        first, second = model(x).topk(2, dim=1)[0].unbind(1)
        if of:
            x = x[(first - second).argsort(descending=True)[:count].sort()[0]]
        return x, model(x).argmax(1)


def task_of(x: Tensor, y: Tensor, ball: Ball, *, seed: int, batch_size: int) -> Task:
    """What `Attack.run` hands to a search, without a judge."""

    def unasked(*_: Any) -> Any:
        raise AssertionError("a search by itself has nobody to tell")

    return Task(
        x=x,
        y=y,
        index=torch.arange(len(x)),
        withstood=torch.zeros(len(x), dtype=torch.int64),
        ball=ball,
        seed=seed,
        batch_size=batch_size,
        device=CPU,
        confirm=unasked,
        withstand=unasked,
        progress=lambda _: None,
        doubt=lambda _: None,
    )


def asked_by(model: Conv, run: Any, clean: Tensor) -> list[Tensor]:
    """The inputs that `run` has the model classify, the clean ones left out."""
    model.asked = []
    try:
        run()
        return [x for x in model.asked if not (x.shape == clean.shape and torch.equal(x, clean))]
    finally:
        model.asked = None


def make_search(
    attack: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    draws: Draws,
    steps: int,
    trials: int = 1,
    widened: bool = False,
) -> Search[Any]:
    """A search by name, its iterations cut, on a batch that is not padded."""
    with torch.no_grad():
        logits = model(x)
    cases = Cases(
        x=x, y=y, index=torch.arange(len(x)), ranked=logits.sort(dim=1)[1], logits_dtype=logits.dtype, device=CPU
    )
    where = cases, ball, Oracle(model, rows=1, device=CPU), draws
    if attack == "square":
        return Square(*where, queries=steps, trials=trials)
    if attack.startswith("fab"):
        return FAB(*where, targeted=attack == "fab-t", iterations=steps, trials=trials)
    if ball.norm == "L1":
        return SparseAPGD(*where, loss=LOSSES[attack], iterations=steps, trials=trials, widened=widened)
    return APGD(*where, loss=LOSSES[attack], iterations=steps, trials=trials)


def shortened(suite: Any, *, steps: int, queries: int, targets: int) -> Any:
    """Upstream's object with its iterations cut."""
    for attacker in (suite.apgd, suite.apgd_targeted):
        attacker.n_iter = attacker.n_iter_orig = steps
        attacker.n_iter_2, attacker.n_iter_min, attacker.size_decr = (
            max(int(share * steps), 1) for share in (0.22, 0.06, 0.03)
        )
    suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = targets
    suite.fab.n_iter, suite.square.n_queries = steps, queries
    return suite


def shortened_parts(parts: list[Part], *, steps: int, queries: int, targets: int) -> list[Part]:
    """The same for the fast engine."""
    return [
        replace(
            part,
            iterations=queries if part.attack == "square" else steps,
            trials=targets if part.targeted else part.trials,
        )
        for part in parts
    ]


SHORT = {"steps": 16, "queries": 90, "targets": 2}


class ShortReference(ReferenceAutoAttack):
    """Upstream with its iterations cut."""

    def suite(self, *args: Any, **kwargs: Any) -> Any:
        return shortened(super().suite(*args, **kwargs), **SHORT)


class Short(AutoAttack):
    """The registered attack with the iterations of either engine cut, everything else as it is."""

    method = "autoattack"

    @property
    def _driver(self) -> ReferenceAutoAttack:
        return ShortReference(self.version, self.suite)

    def engine_to_run(self, norm: Norm) -> Engine:
        engine = super().engine_to_run(norm)
        return replace(engine, parts=shortened_parts(engine.parts, **SHORT))


class ShortBF16(AutoAttackBF16):
    """The same for the search in bfloat16."""

    method = "autoattack-bf16"

    def engine_to_run(self, norm: Norm) -> Engine:
        engine = super().engine_to_run(norm)
        return replace(engine, parts=shortened_parts(engine.parts, **SHORT))


class ShortScreen(AutoAttackScreen):
    """The same for the screen."""

    method = "autoattack-screen"

    def engine_to_run(self, norm: Norm) -> Engine:
        engine = super().engine_to_run(norm)
        return replace(engine, parts=shortened_parts(engine.parts, **SHORT))


def upstreams(
    model: nn.Module,
    ball: Ball,
    *,
    seed: int,
    steps: int,
    queries: int = 60,
    targets: int = 1,
    version: str = "standard",
) -> Any:
    """Upstream's object."""
    suite = upstream.build(model, norm=ball.norm, eps=ball.eps, seed=seed, version=version, device=CPU)
    return shortened(suite, steps=steps, queries=queries, targets=targets)
