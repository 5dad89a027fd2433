"""AutoAttack's order of things: each attack sees what the ones before it left robust."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sam_bench.attacks.autoattack.apgd import APGD
from sam_bench.attacks.autoattack.apgd_l1 import SparseAPGD
from sam_bench.attacks.autoattack.ascent import Loss
from sam_bench.attacks.autoattack.checks import model_warnings
from sam_bench.attacks.autoattack.fab import FAB
from sam_bench.attacks.autoattack.model_calls import ModelCalls, runs_channels_last, takes_cast_weights
from sam_bench.attacks.autoattack.pool import Check, Pool
from sam_bench.attacks.autoattack.square import Square, refuse_small_images
from sam_bench.attacks.autoattack.state import Problem, Search
from sam_bench.attacks.autoattack.suite import AttackConfig, fit_to_classes
from sam_bench.attacks.events import AttackWarning, Event, Examples, Progress, Verdict
from sam_bench.attacks.rng import RNG, CounterRNG, UpstreamRNG
from sam_bench.attacks.verify import SMALLEST_BATCH, Verifier
from sam_bench.attacks.warnings import warning
from sam_bench.graphs import room_for_graphs
from sam_bench.perturb.ball import Ball
from sam_bench.records import Norm

RNGName = Literal["counter", "upstream"]

_LOSSES: dict[str, Loss] = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "dlr-targeted"}


@dataclass(frozen=True)
class Engine:
    """Runs the attacks of AutoAttack over any subset of a data set.

    Attributes:
        suite: What to run, in order.
        rng: "counter": an example's random numbers depend on the seed and its place in the data set alone, so its
            verdict does not depend on batch, order or shard. "upstream": batches and random numbers are upstream's.
        bf16: Search in bfloat16.
        compiled: Run the model through `torch.compile`, not with upstream's random numbers.
    """

    suite: list[AttackConfig]
    rng: RNGName = "counter"
    bf16: bool = False
    compiled: bool = False

    def seen_by(self, attack: str, index: Tensor) -> Tensor:
        """Which of the examples left an attack is run on: bool [N] for places in the data set, int64 [N]."""
        return torch.ones(len(index), dtype=torch.bool)

    def check_images(self, norm: Norm, height: int, width: int) -> None:
        """Refuse images that are too small for one of the attacks.

        Raises:
            InputError: They are.
        """
        if any(config.attack == "square" for config in self.suite):
            refuse_small_images(height, width, norm)

    @torch.no_grad()
    def events(
        self,
        model: nn.Module,
        examples: Examples,
        verifier: Verifier,
        *,
        ball: Ball,
        seed: int,
        batch_size: int,
        device: torch.device,
    ) -> Iterator[Event]:
        """See `Attack.events`.

        Raises:
            InputError: The model has too few classes, or the images are too small, for one of the attacks.
        """
        with room_for_graphs(self.compiled, model):
            self.check_images(ball.norm, examples.x.shape[-2], examples.x.shape[-1])
            averaged = all(config.eot > 1 for config in self.suite)
            warnings = model_warnings(model, examples, batch_size=batch_size, device=device, random_expected=averaged)
            # A random model that an attack is not made for: one candidate an example is verified, as upstream does.
            randomized = warning("randomized") in warnings
            calls = self._calls(model, examples.x[:1], batch_size=batch_size, device=device)
            problem = _problem(model, examples, ball=ball, calls=calls, batch_size=batch_size, device=device)
            suite, limited = fit_to_classes(self.suite, problem.ranked.shape[1])
            yield from limited + warnings
            gradients = _GradientWarnings(problem)
            robust = torch.ones(len(examples), dtype=torch.bool)
            capacity = batch_size if self.rng == "upstream" else max(batch_size, SMALLEST_BATCH)
            for before, config in enumerate(suite):
                if not bool(robust.any()):
                    break
                name = config.attack
                seen = (examples.attacks_survived <= before) & self.seen_by(name, examples.index)
                stage = (robust & seen).nonzero().flatten()
                done, standing = 0, int(robust.sum())
                yield Progress(name, 0, len(stage), standing, 0.0)
                once = randomized and config.eot == 1
                pool = Pool(capacity, check=_Once(verifier.check, len(examples)) if once else verifier.check)
                for outcome in (
                    pool.run_in_batches(lambda: _search(config, problem, UpstreamRNG(seed), once), stage)  # noqa: B023
                    if self.rng == "upstream"
                    else pool.run_refilling(
                        _search(config, problem, CounterRNG(seed, name, examples.index.to(device)), once), stage
                    )
                ):
                    if isinstance(outcome, float):
                        # Square's and FAB's examples end together: an estimate made from the first would be of hours.
                        yield Progress(name, done, len(stage), standing, outcome)
                        continue
                    yield from gradients.new()  # before the verdict: a resumed run does not attack the example again
                    row = outcome.row
                    done, standing = done + 1, standing - (not outcome.robust)
                    robust[row] = outcome.robust
                    index = int(examples.index[row])
                    yield Verdict(index, None, before + 1) if outcome.robust else Verdict(index, name)

    def _calls(self, model: nn.Module, x: Tensor, *, batch_size: int, device: torch.device) -> ModelCalls:
        on_cpu, as_upstream = device.type == "cpu", self.rng == "upstream"
        by_gradient = any(config.attack != "square" for config in self.suite)
        # Not where verdicts are to be upstream's, which leaves images as they are.
        channels_last = not as_upstream
        return ModelCalls(
            model,
            # A GPU chooses its kernels by the batch's shape: one shape throughout. A CPU's agree from 16 rows on.
            least_rows=1 if as_upstream else SMALLEST_BATCH if on_cpu else max(batch_size, SMALLEST_BATCH),
            device=device,
            bf16=self.bf16,
            cast_weights=self.bf16 and takes_cast_weights(model, x, device=device),
            channels_last=channels_last and runs_channels_last(model, x, device=device, gradients=by_gradient),
            compiled=self.compiled,
        )


def _problem(
    model: nn.Module, examples: Examples, *, ball: Ball, calls: ModelCalls, batch_size: int, device: torch.device
) -> Problem:
    # In batches of the search's size, so that an example's targets do not depend on the others either.
    plain = ModelCalls(model, least_rows=max(calls.least_rows, SMALLEST_BATCH), device=device)
    ranked, dtype = [], torch.float32
    for x in examples.x.split(batch_size):
        logits = plain.logits(x.to(device))
        ranked.append(logits.sort(dim=1)[1].cpu())
        dtype = logits.dtype
    return Problem(
        examples=examples,
        ball=ball,
        model=calls,
        ranked=torch.cat(ranked),
        logits_dtype=dtype,
        device=device,
        batch_size=batch_size,
        gradient_counts=torch.zeros(2, dtype=torch.int64, device=device),
    )


class _Once:
    """Has one candidate of each example verified. If every error counted, one lucky draw would break the example."""

    def __init__(self, check: Check, examples: int) -> None:
        self._check, self._asked = check, [False] * examples

    def __call__(self, rows: Tensor, x_adv: Tensor) -> Tensor:
        new, broken = torch.zeros(len(rows), dtype=torch.bool), torch.zeros(len(rows), dtype=torch.bool)
        for place, row in enumerate(rows.tolist()):  # trials side by side can give several of one example
            new[place], self._asked[row] = not self._asked[row], True
        if bool(new.any()):
            broken[new] = self._check(rows[new], x_adv[new.to(x_adv.device)])
        return broken


@dataclass
class _GradientWarnings:
    """What is wrong with gradients, counted on the device: asking for the counts waits for it once."""

    problem: Problem
    _codes: dict[str, int] = field(default_factory=lambda: {"zero-gradients": 0, "nan-gradients": 1})

    def new(self) -> list[AttackWarning]:
        """What has come up since the last time."""
        if not self._codes:
            return []
        counts = self.problem.gradient_counts.tolist()
        found = [code for code, place in self._codes.items() if counts[place]]
        for code in found:
            del self._codes[code]
        return [warning(code) for code in found]


def _search(config: AttackConfig, problem: Problem, rng: RNG, once: bool) -> Search[Any]:
    """The search of an attack; `once`: the model is random, and the attack does not average."""
    trials = config.restarts_or_targets
    if config.attack == "square":
        return Square(problem, rng, queries=config.iterations, restarts_or_targets=trials)
    if config.attack.startswith("fab"):
        return FAB(problem, rng, targeted=config.targeted, iterations=config.iterations, restarts_or_targets=trials)
    ascent: dict[str, Any] = {
        "loss": _LOSSES[config.attack],
        "iterations": config.iterations,
        "eot": config.eot,
        "restarts_or_targets": trials,
        "verified_once": once,
    }
    if problem.ball.norm == "L1":
        return SparseAPGD(problem, rng, widened=config.widened, **ascent)
    return APGD(problem, rng, **ascent)
