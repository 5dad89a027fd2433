"""With `perturb_only` the radius is that of the weights that move, in the network as it is trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from weights_samples import build, data, flat, moves, net


@pytest.mark.parametrize("method", ["sam", "looksam", "asam"])
@pytest.mark.parametrize("rho", [0.1, 0.7])
def test_the_ascent_has_the_length_rho_over_the_weights_that_move(method: str, rho: float) -> None:
    model, (x, y) = net(), data()
    with torch.no_grad():
        model[0].weight.mul_(0.1)  # the gradients of the layer that stays are then the larger ones
    (moved,) = moves(build(method, rho=rho, perturb_only="last"), model, x, y)
    still, last = flat(moved[:2]), flat(moved[2:])
    assert not still.any()
    length = flat([move / scale for move, scale in zip(moved[2:], scales(method, model[3]), strict=True)]).norm()
    assert length.item() == pytest.approx(rho, rel=1e-6) and last.norm() > 0


def scales(method: str, layer: nn.Module) -> list[Tensor]:
    """What ASAM measures each weight by; 1 for the others."""
    ones = [torch.ones_like(parameter) for parameter in layer.parameters()]
    return [layer.weight.detach().abs() + 0.01, ones[1]] if method == "asam" else ones
