"""AutoAttack run by its authors' implementation: the reference that a faster engine has to equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sam_bench.attacks.autoattack.square import refuse_what_upstreams_square_cannot
from sam_bench.attacks.autoattack.suite import Version, attacks_of, build_suite, fit_to_classes
from sam_bench.attacks.events import AttackWarning, Event, Examples, Progress
from sam_bench.attacks.verify import Verifier
from sam_bench.attacks.warnings import explain
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
        """Run the attacks in order on what is still robust; see `Attack.events`.

        Raises:
            InputError: The model has too few classes for this version's losses, or upstream's Square fails on
                images of this shape.
        """
        x, y = examples.x, examples.y
        self.check_images(ball.norm, x.shape[-2], x.shape[-1])
        with upstream.gradients_kept(model):
            suite = self.suite(model, ball=ball, seed=seed, device=device)
            classes = upstream.check_defence(suite, x, y, batch_size=batch_size)
            limited = self._limit_targets(suite, classes)
            robust = torch.ones(len(x), dtype=torch.bool)
            for attack in self.attacks:
                survivors = robust.nonzero().flatten()
                if not len(survivors):
                    break
                done = 0
                yield Progress(attack, done, len(survivors), len(survivors))
                for rows in survivors.split(batch_size):
                    candidate = upstream.run_attack(suite, attack, x[rows].to(device), y[rows].to(device))
                    # The verdict itself, not upstream's one look at every candidate: a random model would say
                    # something else if it were asked again.
                    broken = rows[verifier.check(rows, candidate)]
                    robust[broken] = False
                    yield from examples.verdicts(broken, attack)
                    done += len(rows)
                    yield Progress(attack, done, len(survivors), int(robust.sum()))
        yield from limited + explain(suite.logger.warnings)

    def _limit_targets(self, suite: Any, classes: int) -> list[AttackWarning]:
        configs, warnings = fit_to_classes(build_suite(self.version, self.suite_of_custom, norm=suite.norm), classes)
        for config in configs:
            if config.targeted and warnings:
                attacker = suite.apgd_targeted if config.attack == "apgd-t" else suite.fab
                attacker.n_target_classes = config.restarts_or_targets
        return warnings
