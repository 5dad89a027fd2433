"""The state of an AutoAttack run on disk, so that a run that was killed goes on where it was."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam_bench.errors import InputError
from sam_bench.integrations.state_identity import RunIdentity
from sam_bench.records.io import write_atomic


@dataclass
class _Running:
    """The attack under way: which examples it began with, in batches of what size, how many are done."""

    attack: str
    batch_size: int
    entered: Tensor
    batches_done: int = 0


class EvaluationState:
    """What is known so far, with the interface of `autoattack.state.EvaluationState`.

    Upstream's own class cannot be resumed from: it writes the set of attacks as text and then finds
    it different from every set. This one reads upstream's files, too. It also keeps how far the
    attack under way is: a resumed run sees the same batches and gives the same verdicts. And it keeps
    what it belongs to, which upstream's files do not.

    Args:
        attacks_to_run: Names of the attacks the whole run consists of.
        path: Where the state lives; None keeps it in memory.
        identity: What the run belongs to; None where that is not known.
    """

    def __init__(
        self, attacks_to_run: Iterable[str], path: Path | None = None, identity: RunIdentity | None = None
    ) -> None:
        self._attacks_to_run = frozenset(attacks_to_run)
        self.path = path
        self.identity = identity
        self.run_attacks: set[str] = set()
        self.clean_accuracy = float("nan")
        self._robust_flags: Tensor | None = None
        self._running: _Running | None = None

    @property
    def attacks_to_run(self) -> set[str]:
        """Names of the attacks the whole run consists of."""
        return set(self._attacks_to_run)

    @property
    def robust_flags(self) -> Tensor | None:
        """bool [N]: which examples are still robust; None before the clean accuracy is known."""
        return self._robust_flags

    @robust_flags.setter
    def robust_flags(self, flags: Tensor) -> None:
        self._robust_flags = flags
        self.to_disk()

    @property
    def robust_accuracy(self) -> float:
        """Share of examples that are still robust, in [0, 1]."""
        if self._robust_flags is None:
            raise ValueError("no robust accuracy yet: start the attack first")
        if self.attacks_to_run - self.run_attacks:
            warnings.warn("robust_accuracy is asked for before all attacks have run", stacklevel=2)
        return float(self._robust_flags.float().mean())

    def enter(self, attack: str, batch_size: int) -> tuple[Tensor, int]:
        """Begin an attack, or go on with the one that was under way.

        Returns:
            bool [N], the examples it began with; and how many of its batches are done.
        """
        running = self._running
        if running is None or (running.attack, running.batch_size) != (attack, batch_size):
            assert self._robust_flags is not None
            running = self._running = _Running(attack, batch_size, self._robust_flags.clone())
        return running.entered, running.batches_done

    def batch_done(self, flags: Tensor) -> None:
        """Store what is robust after one more batch of the attack under way."""
        if self._running is not None:
            self._running.batches_done += 1
        self.robust_flags = flags

    def add_run_attack(self, attack: str) -> None:
        """Store that an attack is finished."""
        self.run_attacks.add(attack)
        self._running = None
        self.to_disk()

    def to_disk(self, force: bool = False) -> None:
        """Write the state, whole or not at all.

        Args:
            force: Accepted for upstream's sake; it is always written.
        """
        if self.path is None:
            return
        content: dict[str, Any] = {
            "_attacks_to_run": sorted(self._attacks_to_run),
            "path": str(self.path),
            "_run_attacks": sorted(self.run_attacks),
            "_robust_flags": None if self._robust_flags is None else self._robust_flags.tolist(),
            "_clean_accuracy": self.clean_accuracy,
        }
        if self.identity is not None:
            content["_identity"] = vars(self.identity)
        if self._running is not None:
            content["_running"] = {**vars(self._running), "entered": self._running.entered.tolist()}
        write_atomic(self.path, json.dumps(content))

    @classmethod
    def from_disk(cls, path: Path | str) -> EvaluationState:
        """Read a state, ours or upstream's.

        Raises:
            InputError: It cannot be read or is no state; names the file.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            attacks = content["_attacks_to_run"]
            state = cls(ast.literal_eval(attacks) if isinstance(attacks, str) else attacks, path)
            state.run_attacks = set(content["_run_attacks"])
            state.clean_accuracy = float(content["_clean_accuracy"])
            state._robust_flags = _flags(content["_robust_flags"])
            identity, running = content.get("_identity"), content.get("_running")
            if identity is not None:
                state.identity = RunIdentity.from_json(identity)
            if running is not None:
                state._running = _Running(**{**running, "entered": torch.tensor(running["entered"], dtype=torch.bool)})
        except OSError as error:
            raise InputError(f"cannot read the AutoAttack state {path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, SyntaxError) as error:
            raise InputError(f"{path} is not an AutoAttack state: delete it to start again, or name another") from error
        return state


def _flags(listed: list[bool] | None) -> Tensor | None:
    return None if listed is None else torch.tensor(listed, dtype=torch.bool)
