"""Models of equal confidence: logits divided by a temperature (Guo et al. 2017, arXiv 1706.04599, section 4.2).

A temperature changes how sure a model is and no prediction. It also changes gradients, and so what an attack on the
cross-entropy finds. Two models can be compared without that if they are equally sure of clean images.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from sam_bench.errors import InputError
from sam_bench.modes import attacking

_LOG_RANGE = 25.0  # temperatures from e^-25 to e^25
_BATCH = 500


class Tempered(nn.Module):
    """A model whose logits are divided by a temperature.

    Args:
        model: Maps images to logits; used as it is, not copied.
        temperature: Above 0; above 1 the model is less sure. Part of the state dict.

    Raises:
        InputError: `temperature` is not a finite number above 0.
    """

    temperature: Tensor

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise InputError("must be a finite number above 0", field="temperature", value=temperature)
        self.model = model
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        # An attack has both in one mode.
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of images `x`."""
        logits: Tensor = self.model(x) / self.temperature
        return logits


def mean_confidence(model: nn.Module, x: Tensor) -> float:
    """The mean probability of the predicted class, from 1 / classes to 1.

    Args:
        model: Maps float images to logits; in any mode, on any device.
        x: Images, float [N, C, H, W] in [0, 1].
    """
    return _confidence(_logits(model, x, _BATCH), 1.0)


def matching_temperature(model: nn.Module, x: Tensor, target: float, *, batch_size: int = _BATCH) -> float:
    """The temperature at which the mean confidence is `target`; arguments as for `mean_confidence`.

    The probability of the largest logit falls with the temperature, so there is one. The model takes `batch_size`
    images at a time.

    Raises:
        InputError: No temperature gives this confidence: it is not between 1 / classes and 1.
    """
    logits = _logits(model, x, batch_size)
    # Images with equal largest logits share the probability, however low the temperature.
    high, low = (_confidence(logits, math.exp(log)) for log in (-_LOG_RANGE, _LOG_RANGE))
    if not low < target < high:
        raise InputError(f"must lie between {low:.4f} and {high:.4f} for this model", field="target", value=target)
    log = brentq(lambda log: _confidence(logits, math.exp(log)) - target, -_LOG_RANGE, _LOG_RANGE, xtol=1e-12)
    return math.exp(log)


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """float64 [N, classes] on the CPU."""
    where = next((each.device for each in model.parameters()), x.device)
    with attacking(model):
        logits = torch.cat([model(each.to(where)).double().cpu() for each in x.split(batch_size)])
    if not logits.isfinite().all():
        raise InputError("the model gives logits that are not finite, so it has no confidence")
    return logits


def _confidence(logits: Tensor, temperature: float) -> float:
    return float((logits / temperature).softmax(1).amax(1).mean())
