"""Averages over the weights of a run, on `torch.optim.swa_utils`."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn, update_bn

from sam_bench.errors import InputError
from sam_bench.modes import batch_norms
from sam_bench.registry import Component, Registry


class RunningAverage(AveragedModel):
    """PyTorch's average over parameters and floating-point buffers, which reads and sends nothing while it moves.

    PyTorch's own sends its count to the device at every update, and waits there for all that was asked before.
    """

    def __init__(self, model: nn.Module, move: Callable[[Sequence[Tensor], Sequence[Tensor], int], None]) -> None:
        super().__init__(model, use_buffers=True)
        self._move = move

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of `model` in; the first ones as they are."""
        count = int(self.n_averaged)  # stays on the CPU
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        for dtype in dict.fromkeys(mine.dtype for mine, _ in pairs):
            alike = [pair for pair in pairs if pair[0].dtype == dtype]
            mine, theirs = [pair[0] for pair in alike], [pair[1] for pair in alike]
            # No mean of integers is an integer: what counts or points keeps its latest value.
            if count and (mine[0].is_floating_point() or mine[0].is_complex()):
                self._move(mine, theirs, count)
            else:
                torch._foreach_copy_(mine, theirs)
        self.n_averaged += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [each.detach() for each in (*model.parameters(), *model.buffers())]


class Averaging(Component):
    """Base of weight averages: makes the averaged model and says when it moves.

    The loop calls `update` after every step, takes `learned` wherever it looks at what was learned so
    far, and calls `finish` once, before the result is registered; not where the best epoch is, as it was measured.
    """

    def check(self, epochs: int) -> None:
        """Refuse a run of so many epochs in which nothing would be averaged.

        Raises:
            InputError: Nothing would.
        """
        return

    @abstractmethod
    def averaged(self, model: nn.Module) -> AveragedModel | None:
        """A running average of `model`, starting from it; None when there is none."""

    def update(self, average: AveragedModel, model: nn.Module, *, progress: float, epoch_ended: bool) -> None:
        """Let the average see the weights after a step.

        Args:
            average: What `averaged` returned.
            model: The network being trained.
            progress: Number of the step over the steps of the run, in [0, 1), as the schedule has it.
            epoch_ended: Whether this was the last step of an epoch.
        """
        average.update_parameters(model)

    def learned(self, average: AveragedModel | None, model: nn.Module) -> nn.Module:
        """What a run has to show: the average; the network itself while nothing was averaged."""
        if average is None or int(average.n_averaged) == 0:
            return model
        network: nn.Module = average.module
        return network

    def finish(self, average: AveragedModel | None, batches: Iterable[Tensor]) -> int:
        """Make the average ready for use at the end of the run.

        Args:
            average: What `averaged` returned.
            batches: One epoch of training inputs, float [B, C, H, W] in [0, 1], augmented as they were
                learned from, in chunks of as many as are learned from at a time; consumed only where needed.

        Returns:
            Examples that were run forward.
        """
        return 0


AVERAGES: Registry[Averaging] = Registry(kind="average", field="averaging", group="sam_bench.averages", base=Averaging)


@AVERAGES.register("none")
class NoAveraging(Averaging):
    """The last weights."""

    def averaged(self, model: nn.Module) -> None:
        """No average."""
        return


@AVERAGES.register("ema")
class EMA(Averaging):
    """Exponential moving average of weights and BatchNorm statistics.

    At the n-th step after its first it keeps `min(decay, (1 + n) / (10 + n))` of itself, as TensorFlow's
    `ExponentialMovingAverage` does where it is told the step: an average that kept `decay` from the start would, in a
    run shorter than its memory of 1 / (1 - decay) steps, be of the untrained network.
    """

    decay: float = Field(
        default=0.999, ge=0, lt=1, description="share of the average that a step keeps, but for the first steps"
    )

    def averaged(self, model: nn.Module) -> AveragedModel:
        """An average over parameters and buffers: recent statistics fit recent weights, nothing is recomputed."""

        def move(mine: Sequence[Tensor], theirs: Sequence[Tensor], count: int) -> None:
            torch._foreach_lerp_(list(mine), list(theirs), 1 - min(self.decay, (1 + count) / (10 + count)))

        return RunningAverage(model, move)


@AVERAGES.register("swa")
class SWA(Averaging):
    """Stochastic weight averaging: the mean of the weights along the last part of a run (Izmailov et al. 2018).

    The mean over the statistics of BatchNorm serves while a run is watched; at its end they are
    recomputed at the averaged weights, which never saw a batch (section 3.2).
    """

    average_from: float = Field(default=0.75, ge=0, lt=1, description="share of the run after which averaging begins")
    average_every: Literal["epoch", "step"] = Field(default="epoch", description="when the average takes the weights")

    def check(self, epochs: int) -> None:
        """Refuse to average less than two epochs' weights."""
        members = epochs - math.floor(self.average_from * epochs + 1e-9)  # an epoch that ends at the share is before it
        if self.average_every == "epoch" and members < 2:
            raise InputError(
                f"leaves the weights after {members} of {epochs} {'epoch' if epochs == 1 else 'epochs'} to average, "
                "and a mean takes two",
                field="average_from",
                value=self.average_from,
                hint="give a smaller share, `average_every='step'`, or more `epochs`",
            )

    def averaged(self, model: nn.Module) -> AveragedModel:
        """A mean over parameters and buffers."""
        return RunningAverage(model, get_swa_multi_avg_fn())

    def update(self, average: AveragedModel, model: nn.Module, *, progress: float, epoch_ended: bool) -> None:
        """One more member of the mean, when it is time."""
        if progress >= self.average_from and (epoch_ended or self.average_every == "step"):
            average.update_parameters(model)

    def finish(self, average: AveragedModel | None, batches: Iterable[Tensor]) -> int:
        """BatchNorm's statistics at the averaged weights, over the inputs given."""
        if average is None or int(average.n_averaged) == 0 or not list(batch_norms(average)):
            return 0
        seen = 0

        def counted() -> Iterable[Tensor]:
            nonlocal seen
            for x in batches:
                seen += len(x)
                yield x

        update_bn(counted(), average.module)
        return seen
