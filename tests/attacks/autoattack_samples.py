"""Small models and upstream's attacks, for the tests of the fast engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sam_bench.attacks.autoattack import AutoAttack, AutoAttackBF16, AutoAttackScreen, Engine
from sam_bench.attacks.autoattack.apgd import APGD
from sam_bench.attacks.autoattack.apgd_l1 import SparseAPGD
from sam_bench.attacks.autoattack.fab import FAB
from sam_bench.attacks.autoattack.model_calls import ModelCalls
from sam_bench.attacks.autoattack.square import Square
from sam_bench.attacks.autoattack.state import Problem, Search
from sam_bench.attacks.autoattack.suite import AttackConfig
from sam_bench.attacks.base import Attack
from sam_bench.attacks.events import AttackWarning, Event, Examples, Progress, Verdict
from sam_bench.attacks.reference import ReferenceAutoAttack
from sam_bench.attacks.rng import RNG
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


@dataclass
class Ran:
    """What came out of a run, example by example, and the events in their order."""

    events: list[Event]
    verdicts: list[str]
    x_adv: Tensor

    @property
    def warnings(self) -> list[AttackWarning]:
        return [each for each in self.events if isinstance(each, AttackWarning)]

    @property
    def progress(self) -> list[Progress]:
        return [each for each in self.events if isinstance(each, Progress)]


def events_of(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm,
    eps: float,
    seed: int = 0,
    batch_size: int = 128,
    index: Tensor | None = None,
    attacks_survived: Tensor | None = None,
) -> Iterator[Event]:
    """The events of a run over a part of a data set."""
    whole = Examples.of(x, y)
    part = Examples(
        x,
        y,
        whole.index if index is None else index,
        whole.attacks_survived if attacks_survived is None else attacks_survived,
    )
    return attack.run_events(model, part, ball=Ball(norm=norm, eps=eps), seed=seed, batch_size=batch_size, device=CPU)


def run_part(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, *, index: Tensor, **how: Any) -> Ran:
    """A run over a part of a data set; arguments as for `events_of`."""
    events = list(events_of(attack, model, x, y, index=index, **how))
    final = {each.example: each for each in events if isinstance(each, Verdict) and each.outcome is not None}
    places = index.tolist()
    found = [final[place].x_adv for place in places]
    x_adv = torch.stack([x[row] if each is None else each for row, each in enumerate(found)])
    return Ran(events, [str(final[place].outcome) for place in places], x_adv)


def run_whole(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, **how: Any) -> Ran:
    """The same over all of it."""
    return run_part(attack, model, x, y, index=torch.arange(len(x)), **how)


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
    rng: RNG,
    steps: int,
    trials: int = 1,
    widened: bool = False,
) -> Search[Any]:
    """A search by name, its iterations cut, on a batch that is not padded."""
    where: Any = problem_of(model, x, y, ball=ball), rng
    if attack == "square":
        return Square(*where, queries=steps, restarts_or_targets=trials)
    if attack.startswith("fab"):
        return FAB(*where, targeted=attack == "fab-t", iterations=steps, restarts_or_targets=trials)
    common: Any = {"loss": LOSSES[attack], "iterations": steps, "restarts_or_targets": trials}
    return SparseAPGD(*where, widened=widened, **common) if ball.norm == "L1" else APGD(*where, **common)


def problem_of(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Problem:
    """What a search is given, with a batch that is not padded."""
    with torch.no_grad():
        logits = model(x)
    return Problem(
        examples=Examples.of(x, y),
        ball=ball,
        model=ModelCalls(model, least_rows=1, device=CPU),
        ranked=logits.sort(dim=1)[1],
        logits_dtype=logits.dtype,
        device=CPU,
        batch_size=512,
        gradient_counts=torch.zeros(2, dtype=torch.int64),
    )


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


def shortened_suite(suite: list[AttackConfig], *, steps: int, queries: int, targets: int) -> list[AttackConfig]:
    """The same for the fast engine."""
    return [
        replace(
            config,
            iterations=queries if config.attack == "square" else steps,
            restarts_or_targets=targets if config.targeted else config.restarts_or_targets,
        )
        for config in suite
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
    def _reference(self) -> ReferenceAutoAttack:
        return ShortReference(self.version, self.suite)

    def engine_to_run(self, norm: Norm) -> Engine:
        engine = super().engine_to_run(norm)
        return replace(engine, suite=shortened_suite(engine.suite, **SHORT))


class ShortBF16(AutoAttackBF16):
    """The same for the search in bfloat16."""

    method = "autoattack-bf16"

    def engine_to_run(self, norm: Norm) -> Engine:
        engine = super().engine_to_run(norm)
        return replace(engine, suite=shortened_suite(engine.suite, **SHORT))


class ShortScreen(AutoAttackScreen):
    """The same for the screen."""

    method = "autoattack-screen"

    def engine_to_run(self, norm: Norm) -> Engine:
        engine = super().engine_to_run(norm)
        return replace(engine, suite=shortened_suite(engine.suite, **SHORT))


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
