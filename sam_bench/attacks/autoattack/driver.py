"""AutoAttack's order of things: each attack sees what the ones before it left standing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sam_bench.attacks.autoattack.apgd import APGD
from sam_bench.attacks.autoattack.apgd_l1 import SparseAPGD
from sam_bench.attacks.autoattack.ascent import Loss
from sam_bench.attacks.autoattack.checks import model_doubts
from sam_bench.attacks.autoattack.fab import FAB
from sam_bench.attacks.autoattack.oracle import Oracle, runs_channels_last
from sam_bench.attacks.autoattack.plan import Part, fit_to_classes
from sam_bench.attacks.autoattack.pool import Pool
from sam_bench.attacks.autoattack.rows import Cases, Search
from sam_bench.attacks.autoattack.square import Square, refuse_small_images
from sam_bench.attacks.base import Progress, Task
from sam_bench.attacks.doubts import doubt
from sam_bench.attacks.draws import CounterDraws, Draws, UpstreamDraws
from sam_bench.attacks.judge import SMALLEST_BATCH
from sam_bench.attacks.random_state import random_state_kept, seed_generators
from sam_bench.records import Norm

RNG = Literal["counter", "upstream"]

_OF_GRADIENTS = "zero-gradients", "nan-gradients"
"""Doubts that are counted on the device, in the order of the counts: asking for them waits for it once."""

_LOSSES: dict[str, Loss] = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "dlr-targeted"}


@dataclass(frozen=True)
class Engine:
    """Runs the parts of AutoAttack over any subset of a data set.

    Attributes:
        parts: What to run, in order.
        rng: "counter": an example's draws depend on the seed and its place in the data set alone, so its
            verdict does not depend on batch, order or shard. "upstream": batches and draws are upstream's.
        bf16: Search in bfloat16.
        compiled: Run the model through `torch.compile`, not with upstream's draws.
    """

    parts: list[Part]
    rng: RNG = "counter"
    bf16: bool = False
    compiled: bool = False

    def check_images(self, norm: Norm, height: int, width: int) -> None:
        """Refuse images that are too small for one of the attacks.

        Raises:
            InputError: They are.
        """
        if any(part.attack == "square" for part in self.parts):
            refuse_small_images(height, width, norm)

    @torch.no_grad()
    def run(self, model: nn.Module, task: Task) -> None:
        """Search; arguments as in `Attack.seek`.

        Raises:
            InputError: The model has too few classes, or the images are too small, for one of the attacks.
        """
        self.check_images(task.ball.norm, task.x.shape[-2], task.x.shape[-1])
        with random_state_kept(task.device):
            seed_generators(task.seed)  # for models that are random; the attacks' own draws do not come from here
            doubts = model_doubts(model, task, random_expected=any(part.eot > 1 for part in self.parts))
            cases = _cases(model, task)
            parts, limited = fit_to_classes(self.parts, cases.ranked.shape[1])
            for text in limited + doubts:
                task.doubt(text)
            run = _Run(self, model, cases, task, once=doubt("randomized") in doubts)
            for before, part in enumerate(parts):
                if not bool(run.standing.any()):
                    break
                run.attack(part, before)


class _Run:
    """One run of an engine: who still stands, and how to make each search.

    Args:
        once: The model is random though the version is not made for that: each attack has one candidate an example
            judged, as upstream does. To have every error of the search judged would be to draw lots until one wins.
    """

    def __init__(self, engine: Engine, model: nn.Module, cases: Cases, task: Task, *, once: bool) -> None:
        self._engine, self._cases, self._task, self._once = engine, cases, task, once
        as_upstream = engine.rng == "upstream"
        self._capacity = task.batch_size if as_upstream else max(task.batch_size, SMALLEST_BATCH)
        on_cpu = cases.device.type == "cpu"
        self._oracle = Oracle(
            model,
            # A GPU chooses its kernels by the batch's shape: one shape throughout. A CPU's agree from 16 rows on.
            rows=1 if as_upstream else SMALLEST_BATCH if on_cpu else self._capacity,
            device=cases.device,
            bf16=engine.bf16,
            # Not where verdicts are to be upstream's: it leaves images as they are.
            channels_last=not as_upstream
            and (engine.bf16 or on_cpu)
            and runs_channels_last(
                model, cases.x[:1], device=cases.device, gradients=any(part.attack != "square" for part in engine.parts)
            ),
            compiled=engine.compiled,
        )
        self.standing = torch.ones(len(cases.x), dtype=torch.bool)
        self._gradients = torch.zeros(len(_OF_GRADIENTS), dtype=torch.int64, device=cases.device)
        self._untold = set(_OF_GRADIENTS)

    def attack(self, part: Part, before: int) -> None:
        """Run one part on what still stands and has not withstood it in an earlier run.

        Args:
            part: What to run.
            before: How many parts came before it.
        """
        task = self._task
        positions = (self.standing & (task.withstood <= before)).nonzero().flatten()
        total, done, robust = len(positions), 0, int(self.standing.sum())

        # Told at every look and of all that it settled at once: Square's and FAB's examples end together, and an
        # estimate made from the first of them would be of hours.
        def tell(share: float = 0.0) -> None:
            task.progress(Progress(part.attack, done, total, robust, share))

        def settled(position: int, stands: bool) -> None:
            nonlocal done, robust
            done, robust = done + 1, robust - (not stands)
            self._tell_of_gradients()
            self.standing[position] = stands
            if stands:
                task.withstand(position, before + 1)

        def confirm(positions: Tensor, candidates: Tensor) -> Tensor:
            self._tell_of_gradients()
            if not self._once:
                return task.confirm(positions, candidates, part.attack)
            rows, broken = ~asked[positions], torch.zeros(len(positions), dtype=torch.bool)
            if bool(rows.any()):
                asked[positions[rows]] = True
                broken[rows] = task.confirm(positions[rows], candidates[rows.to(candidates.device)], part.attack)
            return broken

        asked = torch.zeros(len(task.x), dtype=torch.bool)
        tell()
        pool = Pool(capacity=self._capacity, confirm=confirm, settled=settled, looked=tell)
        if self._engine.rng == "upstream":
            pool.in_cohorts(lambda: self._search(part, UpstreamDraws(task.seed)), positions)
        else:
            places = self._cases.index.to(self._cases.device)
            pool.refilled(self._search(part, CounterDraws(task.seed, part.attack, places)), positions)

    def _tell_of_gradients(self) -> None:
        # Before a verdict is told: whoever goes on from that verdict does not run the example again.
        if not self._untold:
            return
        for code, count in zip(_OF_GRADIENTS, self._gradients.tolist(), strict=True):
            if count and code in self._untold:
                self._untold.remove(code)
                self._task.doubt(doubt(code))

    def _search(self, part: Part, draws: Draws) -> Search[Any]:
        common: dict[str, Any] = {"trials": part.trials}
        flat_starts, not_finite = self._gradients
        where = self._cases, self._task.ball, self._oracle, draws
        if part.attack == "square":
            return Square(*where, queries=part.iterations, **common)
        if part.attack.startswith("fab"):
            return FAB(*where, targeted=part.targeted, iterations=part.iterations, not_finite=not_finite, **common)
        common |= {
            "loss": _LOSSES[part.attack],
            "iterations": part.iterations,
            "eot": part.eot,
            "flat_starts": flat_starts,
            "not_finite": not_finite,
        }
        if self._task.ball.norm == "L1":
            return SparseAPGD(*where, widened=part.widened, **common)
        return APGD(*where, **common)


def _cases(model: nn.Module, task: Task) -> Cases:
    oracle = Oracle(model, rows=SMALLEST_BATCH, device=task.device)
    ranked, dtype = [], torch.float32
    for part in task.x.split(task.batch_size):
        logits = oracle.logits(part.to(task.device))
        ranked.append(logits.sort(dim=1)[1].cpu())
        dtype = logits.dtype
    return Cases(x=task.x, y=task.y, index=task.index, ranked=torch.cat(ranked), logits_dtype=dtype, device=task.device)
