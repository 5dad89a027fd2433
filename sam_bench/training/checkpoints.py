"""A run's checkpoints, of one process or several: rank 0 writes them, and reads them for all."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam_bench.distributed import Team
from sam_bench.errors import SamBenchError
from sam_bench.training.folder import RunFolder
from sam_bench.training.state import RunConfig, RunState
from sam_bench.training.step import TrainingStep


class DivergedError(SamBenchError):
    """The loss or the weights became NaN or infinite."""


class Checkpoints:
    """Saves and restores a training step together with the state of its run.

    Args:
        folder: Where they are.
        step: What is saved and restored.
        config: The run's.
        steps_per_epoch: Steps in an epoch.
        team: The processes that share the run.
    """

    def __init__(
        self, folder: RunFolder, step: TrainingStep, config: RunConfig, *, steps_per_epoch: int, team: Team
    ) -> None:
        self.folder = folder
        self._step, self._config, self._steps_per_epoch, self._team = step, config, steps_per_epoch, team
        self._last_saved, self._saved_at = "", -math.inf
        self._best: tuple[int, dict[str, Tensor]] | None = None  # of an epoch after the last checkpoint

    def where(self, state: RunState) -> str:
        """How far the run is, in words."""
        text = f"epoch {state.epoch} of {self._config.recipe.epochs}"
        return text + (f" and batch {state.batch} of {self._steps_per_epoch} of the next" if state.batch else "")

    def save_first(self, state: RunState) -> None:
        """Write the untrained network, for a run that may have to go back to it."""
        self._save(state, self._tensors(), keep=2)

    def due(self, seconds: float) -> bool:
        """Whether the last checkpoint of this process is so old, in any process of the team; there may be none."""
        return bool(self._team.all_reduce_max(time.monotonic() - self._saved_at >= seconds))

    def keep_best(self, epoch: int, weights: dict[str, Tensor]) -> None:
        """Have the next checkpoint write these weights, too: the file then always fits the checkpoint beside it."""
        self._best = epoch, {name: tensor.clone() for name, tensor in weights.items()}

    def save_epoch(self, state: RunState, *, keep: int) -> None:
        """Write a checkpoint after an epoch.

        Args:
            state: How far the run is.
            keep: How many epochs' checkpoints stay.
        """
        self._save(state, self._tensors(), keep=keep)
        self._last_saved, self._saved_at = self.where(state), time.monotonic()

    def save_within_epoch(self, state: RunState) -> None:
        """Write a checkpoint between two batches.

        It holds the mean of the processes' BatchNorm statistics, and each process's own. The processes go on with
        their own, here and when as many resume the run: when a checkpoint was written does not change the result.
        """
        own = [each.clone() for each in self._statistics()]
        self.settle()
        self.check_weights(state)
        of_all = self._team.gather([each.cpu() for each in own])
        apart = {"statistics": of_all} if self._team.size > 1 else {}
        self._save(state, self._tensors() | apart)
        self._take(own)
        self._last_saved, self._saved_at = self.where(state), time.monotonic()

    def load(self, path: Path | None = None) -> RunState:
        """Restore a checkpoint, the last one by default. Rank 0 reads: the others may not see its folder.

        Args:
            path: Another checkpoint; only rank 0's counts.
        """
        state, tensors = self._team.broadcast(self.folder.load(path) if self._team.is_main else (RunState(), {}))
        self._last_saved = self.where(state)
        step = self._step
        step.model.load_state_dict(tensors["model"])
        step.optimizer.load_state_dict(tensors["optimizer"])
        if step.average is not None:
            step.average.load_state_dict(tensors["average"])
        of_inputs = tensors.get("inputs_of_all", [])
        own = of_inputs[self._team.rank] if len(of_inputs) == self._team.size else tensors["inputs"]
        step.recipe.inputs.load_state_dict(own)
        step.recipe.weights.load_state_dict(tensors["weights"])
        of_all = tensors.get("statistics", [])
        if len(of_all) == self._team.size:
            self._take(of_all[self._team.rank])
        return state

    def load_best(self) -> dict[str, Tensor]:
        """The weights of the best epoch, in every process."""
        return self._team.broadcast(self.folder.load_best() if self._team.is_main else {})

    def settle(self) -> None:
        """Give every process the same BatchNorm statistics: the mean of what each has seen."""
        self._team.average_(self._statistics())

    def check_weights(self, state: RunState) -> None:
        """Refuse weights that are not finite. The last loss is that of the weights before them.

        Raises:
            DivergedError: A tensor has NaN or infinity in it.
        """
        weights = self._step.model.state_dict()
        if self._step.average is not None:
            weights |= self._step.average.state_dict()  # its names begin with `module.`
        for name, tensor in weights.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise self.diverged(f"{name} became NaN or infinite in epoch {state.epoch + 1}")

    def diverged(self, what: str) -> DivergedError:
        """The error that says what happened, and how to go on.

        Args:
            what: What became NaN or infinite, as a clause.
        """
        last = "no checkpoint was saved before it"
        if self._last_saved:
            last = f"the last good checkpoint is {self.folder.checkpoint_file} (after {self._last_saved})"
        stops = self._config.on_nan == "stop"
        way = ", or `on_nan='rollback'` to have the run go back by itself" if stops else ""
        smaller = "`lr` or `rho`" if "rho" in self._config.recipe.weights.settings else "`lr`"
        return DivergedError(f"training diverged: {what}; {last}. Try a smaller {smaller}{way}.")

    def _save(self, state: RunState, tensors: dict[str, Any], *, keep: int = 1) -> None:
        if self._team.is_main:
            if self._best is not None:
                self.folder.save_best(*self._best)
            self.folder.save(state, tensors, keep=keep)
        self._best = None

    def _tensors(self) -> dict[str, Any]:
        """What a checkpoint holds. A perturbation may remember something of each process's own examples."""
        step = self._step
        of_inputs = self._team.gather(step.recipe.inputs.state_dict()) if self._team.size > 1 else []
        apart = {"inputs_of_all": of_inputs} if any(of_inputs) else {}
        return apart | {
            "model": step.model.state_dict(),
            "optimizer": step.optimizer.state_dict(),
            "average": step.average.state_dict() if step.average is not None else {},
            "inputs": step.recipe.inputs.state_dict(),
            "weights": step.recipe.weights.state_dict(),
        }

    def _statistics(self) -> list[Tensor]:
        """BatchNorm's, of the network and of its average: within an epoch each process of a team has its own."""
        networks = [each for each in (self._step.model, self._step.average) if each is not None]
        return [buffer for network in networks for buffer in network.buffers() if buffer.is_floating_point()]

    @torch.no_grad()
    def _take(self, statistics: list[Tensor]) -> None:
        for buffer, value in zip(self._statistics(), statistics, strict=True):
            buffer.copy_(value)
