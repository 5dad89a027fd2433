"""`from sam_bench import AutoAttack`: the class that scripts call today, with our engine behind it.

adversary = AutoAttack(model, norm="Linf", eps=8 / 255, version="standard")
x_adv = adversary.run_standard_evaluation(x_test, y_test, bs=250)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from sam_bench.api.accuracy_lines import AccuracyLines
from sam_bench.api.given_tensors import Called, Inputs, check_tensors
from sam_bench.api.module_identity import identified
from sam_bench.attacks.autoattack.attack import FastAttack
from sam_bench.attacks.autoattack.engine import Engine
from sam_bench.attacks.autoattack.suite import ATTACKS_OF, KNOWN, AttackConfig, build_suite
from sam_bench.attacks.events import AttackWarning, Event, Verdict
from sam_bench.attacks.verify import predict
from sam_bench.attacks.warnings import square_warnings, warning
from sam_bench.device import choose_device
from sam_bench.errors import InputError, unknown_name
from sam_bench.evaluation import Executor, Local, Processes
from sam_bench.evaluation.log import Log
from sam_bench.evaluation.problem import UNASKED, Problem
from sam_bench.integrations.state import EvaluationState
from sam_bench.modes import attacking
from sam_bench.perturb.ball import lengths
from sam_bench.records import MISCLASSIFIED, ROBUST, Norm, Radius
from sam_bench.zoo import LoadedModel

_VERSIONS = (*ATTACKS_OF, "custom")


_APGD = ("n_restarts", "n_iter", "eot_iter", "use_largereps")
_FAB = ("n_restarts", "n_iter", "n_target_classes")
_SQUARE = ("n_restarts", "n_queries")


@dataclass
class Part:
    """The settings of one attack of the ensemble, under upstream's names. Only those that it has can be set.

    Attributes:
        has: Which of the following the attack has.
        n_restarts: Random starts, one after the other.
        n_iter: Steps of one start.
        n_target_classes: Classes that a targeted attack aims at.
        n_queries: Queries of Square.
        eot_iter: Passes over which APGD averages a gradient, for models that are random.
        use_largereps: In L1, APGD begins in larger balls.
    """

    has: tuple[str, ...]
    n_restarts: int = 1
    n_iter: int = 100
    n_target_classes: int = 9
    n_queries: int = 5000
    eot_iter: int = 1
    use_largereps: bool = False

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what would change nothing, and what would attack nothing."""
        unchanged = name in Part.__dataclass_fields__ and value == getattr(Part, name, value)
        if name not in self.__dict__.get("has", ()) and not unchanged:
            raise InputError(f"cannot be set here; what can be: {', '.join(self.has)}", field=name)
        # No step and no query would leave every example robust.
        if name not in ("has", "use_largereps") and not (isinstance(value, Integral) and int(value) >= 1):
            raise InputError("must be a whole number of at least 1", field=name, value=value)
        super().__setattr__(name, value)


class TunedAutoAttack(FastAttack):
    """AutoAttack with any restarts, targets and iterations. It is no entry of the registry."""

    method = "autoattack-tuned"

    suite: tuple[AttackConfig, ...] = Field(description="what runs, in order")
    bf16: bool = Field(default=False, description="search in bfloat16")

    @property
    def attacks(self) -> list[str]:
        """Their names, in order."""
        return [config.attack for config in self.suite]

    @property
    def warnings(self) -> list[AttackWarning]:
        """Where it is not AutoAttack."""
        return [warning("bf16")] if self.bf16 else []

    def engine_to_run(self, norm: Norm) -> Engine:
        return Engine(list(self.suite), bf16=self.bf16)


class AutoAttack:
    """AutoAttack (Croce and Hein 2020, arXiv 2003.01690) with the constructor, attributes and methods of `autoattack`.

    What changing the import gives: an example that is broken leaves the batch, every candidate is verified in float32,
    a run that was killed goes on, several devices share the examples, and the same seed gives the same verdicts for any
    batch size.

    Args:
        model: Maps float32 [B, C, H, W] in [0, 1] to logits [B, classes]: a module, or a function of tensors. A module
            is put into eval mode for the time of the attack and of predictions.
        norm: 'Linf', 'L2' or 'L1'.
        eps: Radius of the ball.
        seed: Decides every random draw; None takes the clock.
        verbose: Print progress.
        attacks_to_run: For version 'custom': which attacks, in order. It can be set later, too.
        version: 'standard', 'plus', 'rand' or 'custom'.
        is_tf_model: False; TensorFlow models need the package `autoattack` itself.
        device: Where the model is; None takes a GPU where there is one.
        log_path: File to append what is printed to.

    Attributes:
        apgd, apgd_targeted, fab, square: The settings of each attack; see `Part`.
        attacks_to_run: Names of the attacks, in order. It and the next two can be set before a run.
        workers: Processes that share the examples; with device "cuda" each takes one of the GPUs in turn.
        search_precision: 'bf16' searches in bfloat16 and checks each success in float32. Then it is not AutoAttack.
        verdicts: After a run, what became of each example: 'robust', 'misclassified' (clean) or the attack's name.
        warnings: After a run, reasons to doubt the accuracy.

    Raises:
        InputError: Unknown norm or version, or a TensorFlow model.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Tensor],
        norm: Norm = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Iterable[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: torch.device | str | None = None,
        log_path: str | Path | None = None,
    ) -> None:
        if is_tf_model:
            raise InputError("TensorFlow models need the package autoattack itself", field="is_tf_model", value=True)
        if norm not in get_args(Norm):
            raise unknown_name("norm", norm, get_args(Norm))
        given = list(attacks_to_run)
        if given and version != "custom":
            raise InputError(f"goes with version='custom'; {version!r} has its own attacks", field="attacks_to_run")
        self.model, self.norm, self.epsilon, self.seed, self.verbose = model, norm, eps, seed, verbose
        self.is_tf_model, self.log_path = False, None if log_path is None else Path(log_path)
        self.device = choose_device(str(device or "auto"))[0]
        self.workers, self.search_precision = 1, "fp32"
        self.verdicts: list[str] = []
        self.warnings: list[AttackWarning] = []
        self.attacks_to_run = given
        self.set_version(version)

    def set_version(self, version: str = "standard") -> None:
        """Take over the settings of 'standard', 'plus' or 'rand'; 'custom' leaves `attacks_to_run` alone."""
        if version not in _VERSIONS:
            raise unknown_name("AutoAttack version", version, _VERSIONS)
        self.version = version
        restarts = 5 if version in ("plus", "custom") else 1
        larger = version == "standard" and self.norm == "L1"
        eot = 20 if version == "rand" else 1
        self.apgd = Part(_APGD, 5 if larger else restarts, eot_iter=eot, use_largereps=larger)
        targeted = (*_APGD, "n_target_classes")
        self.apgd_targeted = Part(targeted, n_target_classes=5 if larger else 9, use_largereps=larger)
        self.fab, self.square = Part(_FAB, restarts), Part(_SQUARE)
        if version != "custom":
            self.attacks_to_run = list(ATTACKS_OF[version])

    def get_logits(self, x: Tensor) -> Tensor:
        """What the model answers."""
        return self.model(x)

    def get_seed(self) -> int:
        """The seed, or the clock."""
        return int(time.time()) if self.seed is None else self.seed

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Any:
        """Run the attacks in order, each on what is still robust.

        Args:
            x_orig: Inputs, float [N, C, H, W] in [0, 1].
            y_orig: Labels, int64 [N].
            bs: Examples at a time. No verdict depends on it.
            return_labels: Also return what the model predicts on the result.
            state_path: File that `EvaluationState` reads once the run is finished. Beside it is a folder with every
                verdict (`….progress`): a run that was killed goes on from there.

        Returns:
            Adversarial examples [N, C, H, W], the clean input where there is none; with `return_labels` a pair of them
            and the predictions, int64 [N]; -1 where a logit is NaN, which is no class.

        Raises:
            InputError: Unknown attack or setting, inputs that are not as above, or a state that belongs to another run.
        """
        if not self.attacks_to_run:
            raise InputError(f"names no attack; known are {', '.join(KNOWN)}", field="attacks_to_run")
        self._say(f"using {self.version} version including {', '.join(self.attacks_to_run)}.")
        state = None if state_path is None else Path(state_path)
        if state is not None and state.exists() and not _journal(state).exists():
            raise InputError(
                "is no state that this class can go on from: remove it, or give another path",
                field="state_path",
                value=str(state),
            )
        problem = self._problem(x_orig, y_orig, bs, state)
        problem.check()
        final, self.warnings = self._run(problem, state)
        self.verdicts = [str(final[index].outcome) for index in range(len(x_orig))]
        self.warnings += square_warnings(self.verdicts, problem.attack.attacks)
        x_adv = x_orig.detach().clone()
        for index, verdict in final.items():
            if verdict.x_adv is not None:
                x_adv[index] = verdict.x_adv.to(x_adv)
        self._summarise(x_orig, x_adv)
        if state is not None:
            self._write_state(state)
        return (x_adv, self._predicted(x_adv, bs).to(y_orig.device)) if return_labels else x_adv

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """Run each attack on all examples, for its own success rate.

        Returns:
            For each attack what `run_standard_evaluation` returns.
        """
        attacks, results = self.attacks_to_run, {}
        try:
            for attack in attacks:
                self.attacks_to_run = [attack]
                results[attack] = self.run_standard_evaluation(x_orig, y_orig, bs=bs, return_labels=return_labels)
        finally:
            self.attacks_to_run = attacks
        return results

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """Share of `x_orig` that the model classifies as `y_orig`, in [0, 1].

        Raises:
            InputError: Inputs or labels are not as for `run_standard_evaluation`.
        """
        check_tensors(x_orig, y_orig, bs)
        accuracy = float((self._predicted(x_orig, bs) == y_orig.cpu()).float().mean())
        self._say(f"clean accuracy: {accuracy:.2%}")
        return accuracy

    def _attack(self) -> TunedAutoAttack:
        """The attacks with the settings as they are now."""
        if self.search_precision not in ("fp32", "bf16"):
            raise unknown_name("search precision", self.search_precision, ["fp32", "bf16"])
        # A name that is unknown, or there twice, is refused there.
        named = [config.attack for config in build_suite("custom", self.attacks_to_run)]
        suite = [self._config(name, named[:place]) for place, name in enumerate(named)]
        return TunedAutoAttack(suite=tuple(suite), bf16=self.search_precision == "bf16")

    def _config(self, attack: str, before: list[str]) -> AttackConfig:
        parts = {"apgd-t": self.apgd_targeted, "fab": self.fab, "fab-t": self.fab, "square": self.square}
        part = parts.get(attack, self.apgd)
        if attack == "apgd-t" and part.n_restarts != 1:
            raise InputError("is 1 for the targeted APGD, which goes through the classes instead", field="n_restarts")
        if part.use_largereps and self.norm != "L1":
            raise InputError("is for norm 'L1' only", field="use_largereps")
        trials = part.n_target_classes if attack.endswith("-t") else part.n_restarts
        if attack == "fab" and "fab-t" in before:
            trials = 1  # upstream's is one object, in which `fab-t` sets the restarts to one
        iterations = part.n_queries if attack == "square" else part.n_iter
        return AttackConfig(attack, trials, iterations, eot=part.eot_iter, widened=part.use_largereps)

    def _problem(self, x: Tensor, y: Tensor, bs: int, state: Path | None) -> Problem:
        check_tensors(x, y, bs)
        module = self._module()
        inputs = Inputs(x.detach().cpu().float(), y.detach().cpu().long())
        sha256, classes = identified(module, (x.shape[1], x.shape[2], x.shape[3]))
        return Problem(
            model=LoadedModel(module, type(self.model).__name__, sha256, None, classes or int(y.max()) + 1, None),
            test=inputs,
            dataset="tensors",
            attack=self._attack(),
            norm=self.norm,
            eps=Radius(self.epsilon),
            seed=self._seed_of(state),
            batch_size=bs,
            save_adversarial=True,
        )

    def _seed_of(self, state: Path | None) -> int:
        """Without a seed, a run that goes on has the seed that it began with."""
        if self.seed is None and state is not None:
            with suppress(OSError, ValueError, KeyError, TypeError):  # where it is damaged, `Log` says so
                return int(json.loads((_journal(state) / "identity.json").read_text())["seed"])
        return self.get_seed()

    def _run(self, problem: Problem, state: Path | None) -> tuple[dict[int, Verdict], list[AttackWarning]]:
        """The final verdicts, with adversarial examples, and the warnings."""
        final: dict[int, Verdict] = {}
        warnings: list[AttackWarning] = []
        executor: Executor = Local(self.device)
        if self.workers > 1:
            executor = Processes(self.workers, self.device)
        executor.check(problem)
        with ExitStack() as stack:
            log, todo = None, dict.fromkeys(range(len(problem.test)), UNASKED)
            if state is not None:
                log = Log(_journal(state), problem)
                stack.enter_context(log.claimed())
                log.open(resume=True)
                todo = log.todo()
                kept = log.adversarial()
                final = {
                    place: replace(known, x_adv=kept.get(place))
                    for place, known in log.verdicts.items()
                    if known.outcome is not None
                }
                warnings = [AttackWarning.parse(text) for text in log.warnings]
                stack.enter_context(log.session())
            events: Iterator[Event] = executor.run(problem, todo) if todo else iter(())
            for event in self._told(events, problem, [] if log is None else [*log.verdicts.values()]):
                if log is not None:
                    log.add(event)
                if isinstance(event, AttackWarning) and event not in warnings:
                    warnings.append(event)
                elif isinstance(event, Verdict) and event.outcome is not None:
                    final.setdefault(event.example, event)
        return final, warnings

    def _told(self, events: Iterator[Event], problem: Problem, known: Iterable[Verdict]) -> Iterator[Event]:
        """The events, with the lines that upstream prints; `known` from a run that this one goes on with."""
        started, lines = time.monotonic(), AccuracyLines(problem.attack.attacks, len(problem.test))

        def say(event: Event) -> None:
            for line in lines.of(event):
                self._say(f"{line} (total time {time.monotonic() - started:.1f} s)")

        for verdict in known:
            say(verdict)
        for event in events:
            if isinstance(event, AttackWarning):
                self._say(f"Warning: {event.text}")
            say(event)
            yield event

    def _summarise(self, x: Tensor, x_adv: Tensor) -> None:
        size = lengths(x_adv - x, self.norm).max()
        self._say(
            f"max {self.norm} perturbation: {size:.5f}, nan in tensor: {x_adv.isnan().sum()}, max: {x_adv.max():.5f}, "
            f"min: {x_adv.min():.5f}"
        )
        self._say(f"robust accuracy: {self.verdicts.count(ROBUST) / len(x):.2%}")

    def _write_state(self, path: Path) -> None:
        state = EvaluationState(self.attacks_to_run, path)
        state.run_attacks = set(self.attacks_to_run)
        state.clean_accuracy = 1 - self.verdicts.count(MISCLASSIFIED) / len(self.verdicts)
        state.robust_flags = torch.tensor([verdict == ROBUST for verdict in self.verdicts])

    def _module(self) -> nn.Module:
        return self.model if isinstance(self.model, nn.Module) else Called(self.model, self.device)

    def _predicted(self, x: Tensor, bs: int) -> Tensor:
        module = self._module()
        with attacking(module):
            return predict(module, x.detach().float(), batch_size=bs, device=self.device)

    def _say(self, message: str) -> None:
        if self.verbose:
            print(message)
        if self.log_path is not None:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(message + "\n")


def _journal(state: Path) -> Path:
    return state.with_name(f"{state.name}.progress")
