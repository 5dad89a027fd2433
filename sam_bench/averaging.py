"""Averages over the weights of a run, on `torch.optim.swa_utils`."""

from __future__ import annotations

from abc import abstractmethod

from pydantic import Field
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sam_bench.registry import Component, Registry


class Averaging(Component):
    """Base of weight averages: makes the averaged model, which the loop updates after every step."""

    @abstractmethod
    def averaged(self, model: nn.Module) -> AveragedModel | None:
        """A running average of `model`, starting from it; None when there is none."""


AVERAGES: Registry[Averaging] = Registry(kind="average", field="averaging", group="sam_bench.averages")


@AVERAGES.register("none")
class NoAveraging(Averaging):
    """The last weights."""

    def averaged(self, model: nn.Module) -> None:
        """No average."""
        return


@AVERAGES.register("ema")
class EMA(Averaging):
    """Exponential moving average of weights and BatchNorm statistics."""

    decay: float = Field(default=0.999, ge=0, lt=1, description="share of the average that a step keeps")

    def averaged(self, model: nn.Module) -> AveragedModel:
        """An average over parameters and buffers."""
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.decay), use_buffers=True)
