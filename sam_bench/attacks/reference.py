"""AutoAttack run by its authors' implementation: the reference that a faster engine has to equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sam_bench.attacks.autoattack.plan import Version, attacks_of, fit_to_classes, plan
from sam_bench.attacks.autoattack.square import refuse_what_upstreams_square_cannot
from sam_bench.attacks.base import ExampleAttack, Progress, Task
from sam_bench.attacks.doubts import explain
from sam_bench.attacks.random_state import random_state_kept, seed_generators
from sam_bench.integrations import upstream
from sam_bench.perturb.ball import Ball
from sam_bench.records import Norm


@dataclass(frozen=True)
class ReferenceAutoAttack:
    """Upstream's attacks, driven one batch at a time, so that it is known which attack broke which example.

    With the seed and batch size given, the examples broken are those that upstream's own
    `run_standard_evaluation` breaks: as there, each attack sees what is still robust, batched anew in
    the examples' order.
    """

    version: Version = "standard"
    suite_of_custom: tuple[str, ...] = ()

    @property
    def engine(self) -> str:
        """The package that runs, with its version."""
        return upstream.package_and_version()

    @property
    def attacks(self) -> list[str]:
        """Names of the attacks of this version, in order."""
        return attacks_of(self.version, self.suite_of_custom)

    def check_images(self, norm: Norm, height: int, width: int) -> None:
        """Refuse images that upstream's Square fails on.

        Raises:
            InputError: It does.
        """
        if "square" in self.attacks:
            refuse_what_upstreams_square_cannot(height, width, norm)

    def suite(self, model: nn.Module, *, ball: Ball, seed: int, device: torch.device) -> Any:
        """Upstream's AutoAttack object with this version's settings."""
        return upstream.build(model, norm=ball.norm, eps=ball.eps, seed=seed, version=self.version, device=device)

    def seek(self, model: nn.Module, task: Task) -> list[str]:
        """Run the attacks in order on what is still robust; arguments and result as in `Attack.seek`.

        Raises:
            InputError: The model has too few classes for this version's losses, or upstream's Square fails on
                images of this shape.
        """
        x, y, ball, device, progress = task.x, task.y, task.ball, task.device, task.progress
        self.check_images(ball.norm, x.shape[-2], x.shape[-1])
        total = len(x)
        with random_state_kept(device), upstream.gradients_kept(model):
            seed_generators(task.seed)
            suite = self.suite(model, ball=ball, seed=task.seed, device=device)
            classes = upstream.check_defence(suite, x, y, batch_size=task.batch_size)
            limited = self._limit_targets(suite, classes)
            robust = torch.ones(total, dtype=torch.bool)
            for attack in self.attacks:
                if not robust.any():
                    break
                survivors = robust.nonzero().flatten()
                done = 0
                progress(Progress(stage=attack, done=done, total=len(survivors), robust=int(robust.sum())))
                for index in survivors.split(task.batch_size):
                    clean, labels = x[index].to(device), y[index].to(device)
                    candidate = upstream.run_attack(suite, attack, clean, labels)
                    # The verdict itself, in the place of upstream's one look at every candidate: a model that
                    # is random would say something else if it were asked again.
                    robust[index[task.confirm(index, candidate, attack)]] = False
                    done += len(index)
                    progress(Progress(stage=attack, done=done, total=len(survivors), robust=int(robust.sum())))
        return limited + explain(suite.logger.warnings)

    def _limit_targets(self, suite: Any, classes: int) -> list[str]:
        parts, doubts = fit_to_classes(plan(self.version, self.suite_of_custom, norm=suite.norm), classes)
        for part in parts:
            if part.targeted and doubts:
                attacker = suite.apgd_targeted if part.attack == "apgd-t" else suite.fab
                attacker.n_target_classes = part.trials
        return doubts


class AutoAttack(ExampleAttack):
    """AutoAttack by upstream's code; the registered `autoattack` runs it as its engine `reference`."""

    method = "autoattack"
    version: Version = "standard"
    suite: tuple[str, ...] = ()

    @property
    def _driver(self) -> ReferenceAutoAttack:
        return ReferenceAutoAttack(self.version, self.suite)

    @property
    def implementation(self) -> str:
        """The package that runs, with its version: 'pyautoattack 0.2.0'."""
        return self._driver.engine

    @property
    def attacks(self) -> list[str]:
        """Names of the attacks of this version, in order."""
        return self._driver.attacks

    @property
    def per_example(self) -> bool:
        """No: upstream's draws depend on the batch."""
        return False

    def seek(self, model: nn.Module, task: Task) -> list[str]:
        """See `ReferenceAutoAttack.seek`."""
        return self._driver.seek(model, task)
