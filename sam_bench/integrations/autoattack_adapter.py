"""The classic `autoattack.AutoAttack` over `pyautoattack`, with state files that can be resumed from."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyautoattack
import torch
from pyautoattack import checks
from torch import Tensor

from sam_bench.errors import InputError, unknown_name
from sam_bench.integrations.state import EvaluationState
from sam_bench.integrations.state_identity import identity_of
from sam_bench.integrations.upstream import (
    check_defence,
    gradients_kept,
    refuse_unknown_attacks,
    run_attack,
    set_logger,
)

_VERSIONS = ("standard", "plus", "rand", "custom")


class _Log:
    """Prints, and appends to a file, as the classic package does; who is not verbose sends only warnings."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)

    def log(self, message: str) -> None:
        print(message)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(message + "\n")

    def warning(self, message: str) -> None:
        self.log(f"Warning: {message}")

    info = debug = log


class AutoAttack(pyautoattack.AutoAttack):
    """AutoAttack with the constructor and methods of the package `autoattack`.

    The attacks are pyautoattack's own; given a seed, the adversarial examples are those of its
    `run_standard_evaluation`, bit for bit. As there, the parts `apgd`, `apgd_targeted`, `fab`,
    `square` and the list `attacks_to_run` can be changed before a run.

    Args:
        model: Maps float32 [B, C, H, W] in [0, 1] to logits [B, classes].
        norm: 'Linf', 'L2' or 'L1'.
        eps: Radius of the ball.
        seed: Decides every random draw; None takes the clock.
        verbose: Print progress.
        attacks_to_run: For version 'custom': which attacks, in order.
        version: 'standard', 'plus', 'rand' or 'custom'.
        is_tf_model: False; TensorFlow models need the package `autoattack` itself.
        device: Where the model is; None takes a GPU where there is one.
        log_path: File to append what is printed to.

    Raises:
        InputError: Unknown version or attack, or a TensorFlow model.
        ValueError: `attacks_to_run` given together with another version than 'custom'.
    """

    attacks_to_run: list[str]
    verbose: bool

    def __init__(
        self,
        model: Any,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Iterable[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: torch.device | str | None = None,
        log_path: str | Path | None = None,
    ) -> None:
        attacks = list(attacks_to_run)
        if is_tf_model:
            raise InputError("is_tf_model=True: TensorFlow models need the package autoattack itself, not pyautoattack")
        if version not in _VERSIONS:
            raise unknown_name("AutoAttack version", version, _VERSIONS)
        if version != "custom" and attacks:
            raise InputError(f"attacks_to_run goes with version='custom'; version {version!r} decides its own attacks")
        refuse_unknown_attacks(attacks)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        # A named version is set below: the constructor would announce it through logging.
        super().__init__(model, attacks=attacks, device=device, eps=eps, norm=norm, seed=seed, version="custom")
        self.verbose, self.version, self.is_tf_model = verbose, version, False
        set_logger(self, _Log(log_path))
        if version != "custom":
            self.set_version(version)

    def set_version(self, version: str = "standard") -> None:
        """Take over the settings of 'standard', 'plus' or 'rand'."""
        self._set_version(version)

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: Path | str | None = None,
    ) -> Any:
        """Run the attacks in order, each on what is still robust.

        Args:
            x_orig: Inputs, float32 [N, C, H, W] in [0, 1].
            y_orig: Labels, int64 [N].
            bs: Batch size; part of the result, since random draws are made per batch.
            return_labels: Also return what the model predicts on the result.
            state_path: File with the state: where there is one, the run goes on from it and returns
                only the adversarial examples it finds itself.

        Returns:
            Adversarial examples [N, C, H, W], the clean input where there is none; with
            `return_labels` a pair of them and the predictions, int64 [N].

        Raises:
            InputError: Unknown attack, or a state that belongs to another run.
        """
        refuse_unknown_attacks(self.attacks_to_run)
        state = self._open(None if state_path is None else Path(state_path), x_orig, y_orig)
        attacks = [attack for attack in self.attacks_to_run if attack not in state.run_attacks]
        self._say(f"using {self.version} version including {', '.join(attacks)}.")
        if state.run_attacks:
            self._say(f"{', '.join(sorted(state.run_attacks))} was/were already run.")
        with gradients_kept(self.model):
            classes = check_defence(self, x_orig, y_orig, batch_size=bs)
            checks.check_n_classes(
                classes,
                self.attacks_to_run,
                self.apgd_targeted.n_target_classes,
                self.fab.n_target_classes,
                logger=self.logger,
            )
            with torch.no_grad():
                result = self._evaluate(x_orig, y_orig, bs, state, attacks)
        return result if return_labels else result[0]

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """Run each attack on all examples, for its own success rate.

        Returns:
            For each attack what `run_standard_evaluation` returns.
        """
        attacks, verbose = self.attacks_to_run, self.verbose
        self._say(f"using {self.version} version including {', '.join(attacks)}.")
        results: dict[str, Any] = {}
        try:
            for attack in attacks:
                started = time.time()
                self.attacks_to_run, self.verbose = [attack], False
                x_adv, y_adv = self.run_standard_evaluation(x_orig, y_orig, bs=bs, return_labels=True)
                results[attack] = (x_adv, y_adv) if return_labels else x_adv
                accuracy = float((y_adv == y_orig).float().mean())
                seconds = time.time() - started
                self.verbose = verbose
                self._say(f"robust accuracy by {attack.upper()} \t {accuracy:.2%} \t (time attack: {seconds:.1f} s)")
        finally:
            self.attacks_to_run, self.verbose = attacks, verbose
        return results

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """Share of `x_orig` that the model classifies as `y_orig`, in [0, 1]."""
        with torch.no_grad():
            accuracy = float((self._classify(x_orig, bs) == y_orig.cpu()).float().mean())
        self._say(f"clean accuracy: {accuracy:.2%}")
        return accuracy

    def _open(self, path: Path | None, x: Tensor, y: Tensor) -> EvaluationState:
        if path is None:
            return EvaluationState(self.attacks_to_run)
        identity = identity_of(self.model, self.get_logits, x, y, norm=self.norm, eps=self.epsilon, device=self.device)
        if not path.exists():
            state = EvaluationState(self.attacks_to_run, path, identity)
            state.to_disk()
            return state
        state = EvaluationState.from_disk(path)
        if state.attacks_to_run != set(self.attacks_to_run):
            raise InputError(
                f"state_path: {path} belongs to a run of {', '.join(sorted(state.attacks_to_run))}, "
                f"not of {', '.join(self.attacks_to_run)}"
            )
        if state.robust_flags is not None and len(state.robust_flags) != len(x):
            raise InputError(
                f"state_path: {path} belongs to a run on {len(state.robust_flags)} examples, not on {len(x)}"
            )
        if state.identity is None:
            warnings.warn(
                f"{path} does not say which model, images, norm and eps it belongs to: be sure that they are these",
                stacklevel=3,
            )
        elif (difference := state.identity.difference(identity)) is not None:
            raise InputError(
                f"state_path: {path} belongs to a run {difference}; delete it to start again, or name another"
            )
        self._say(
            f"Restored state from {path}\nSince the state has been restored, **only** the adversarial examples "
            "from the current run are going to be returned."
        )
        return state

    def _evaluate(
        self, x_orig: Tensor, y_orig: Tensor, bs: int, state: EvaluationState, attacks: list[str]
    ) -> tuple[Tensor, Tensor]:
        y_adv = self._classify(x_orig, bs).to(y_orig.device)
        if state.robust_flags is None:
            robust = (y_adv == y_orig).cpu()
            state.clean_accuracy = float(robust.float().mean())
            state.robust_flags = robust
        else:
            robust = state.robust_flags.clone()
        accuracy = float(robust.float().mean())
        after = {"clean": state.clean_accuracy}
        self._say(f"initial accuracy: {state.clean_accuracy:.2%}")
        if state.run_attacks:
            after["restored"] = accuracy
            self._say(f"robust accuracy at the time of restoring the state: {accuracy:.2%}")
        x_adv = x_orig.detach().clone()
        started = time.time()
        for attack in attacks:
            if not robust.any():
                break
            entered, done = state.enter(attack, bs)
            batches = entered.nonzero().flatten().split(bs)
            for number, index in enumerate(batches[done:], start=done + 1):
                there = index.to(x_orig.device)
                x, y = x_orig[there].to(self.device), y_orig[there].to(self.device)
                candidate = run_attack(self, attack, x, y)
                output = self.get_logits(candidate).argmax(1)
                broken = output != y
                robust[index[broken.cpu()]] = False
                found = there[broken.to(there.device)]
                x_adv[found] = candidate[broken].to(x_adv)
                y_adv[found] = output[broken].to(y_adv)
                state.batch_done(robust)
                perturbed = f"{int(broken.sum())} out of {len(index)} successfully perturbed"
                self._say(f"{attack} - {number}/{len(batches)} - {perturbed}")
            accuracy = after[attack] = float(robust.float().mean())
            state.add_run_attack(attack)
            self._say(
                f"robust accuracy after {attack.upper()}: {accuracy:.2%} (total time {time.time() - started:.1f} s)"
            )
        checks.check_square_sr(after, logger=self.logger)
        self._summarise(x_orig, x_adv, accuracy)
        return x_adv, y_adv

    def _summarise(self, x_orig: Tensor, x_adv: Tensor, accuracy: float) -> None:
        order = {"Linf": float("inf"), "L2": 2.0, "L1": 1.0}[self.norm]
        size = torch.linalg.vector_norm((x_adv - x_orig).flatten(1), ord=order, dim=1).max()
        self._say(
            f"max {self.norm} perturbation: {size:.5f}, nan in tensor: {x_adv.isnan().sum()}, "
            f"max: {x_adv.max():.5f}, min: {x_adv.min():.5f}"
        )
        self._say(f"robust accuracy: {accuracy:.2%}")

    def _classify(self, x: Tensor, bs: int) -> Tensor:
        return torch.cat([self.get_logits(part.to(self.device)).argmax(1).cpu() for part in x.split(bs)])

    def _say(self, message: str) -> None:
        if self.verbose:
            self.logger.log(message)
