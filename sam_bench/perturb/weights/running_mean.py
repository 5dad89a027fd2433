"""What ascents share that keep a running mean of the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from sam_bench.perturb.weights.ascent import Ascent
from sam_bench.perturb.weights.loss import BatchLoss


class RunningMeanAscent(Ascent):
    """Base of the ascents along a running mean of the gradients at `w`, or away from one.

    On several devices the mean and the ascent are those of the whole batch's gradients, so that all keep the same
    mean. Only steps with an ascent change it.
    """

    rho: float = Field(default=0.05, ge=0, description="radius of the ascent in weight space (L2 over all parameters)")

    _mean: list[Tensor] = PrivateAttr(default_factory=list)  # for each parameter that is perturbed

    def ascent_gradient(self, batch: BatchLoss, chosen: Sequence[nn.Parameter] | None) -> Tensor:
        """The gradient of the whole batch."""
        return batch.backward(only=chosen).loss

    def mean_before(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The mean so far, on the gradients' devices; copies of these at the first."""
        if self._mean:
            self._mean = [mean.to(each.device) for mean, each in zip(self._mean, gradients, strict=True)]
        else:
            self._mean = [each.clone() for each in gradients]
        return self._mean

    def forget(self) -> None:
        """No gradient seen yet."""
        self._mean = []

    def state_dict(self) -> dict[str, Any]:
        """The mean."""
        return {"mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved mean."""
        self._mean = list(state["mean"])
