"""Borrowed modes and flags come back exactly."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sam_bench.models import architecture_for, create_model
from sam_bench.modes import attacking, batch_norm_statistics_kept, batch_norms, frozen, training_mode

Borrow = Callable[[nn.Module], AbstractContextManager[object]]


def _tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)))


def _state(model: nn.Module) -> tuple[list[bool], list[bool], list[bool]]:
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [layer.track_running_stats for layer in batch_norms(model)],
    )


BORROWS: list[Borrow] = [
    lambda model: training_mode(model, True),
    lambda model: training_mode(model, False),
    frozen,
    attacking,
    batch_norm_statistics_kept,
]


@settings(max_examples=60, deadline=None)
@given(
    borrow=st.sampled_from(BORROWS),
    modes=st.lists(st.booleans(), min_size=6, max_size=6),
    gradients=st.lists(st.booleans(), min_size=6, max_size=6),
    tracks=st.booleans(),
    fails=st.booleans(),
)
def test_every_mode_and_flag_comes_back_whatever_it_was_also_after_an_exception(
    borrow: Borrow, modes: list[bool], gradients: list[bool], tracks: bool, fails: bool
) -> None:
    model = _tiny()
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.requires_grad_(gradient)
    for layer in batch_norms(model):
        layer.track_running_stats = tracks
    before = _state(model)

    def body() -> None:
        with borrow(model):
            if fails:
                raise KeyError("inside")

    if fails:
        with pytest.raises(KeyError, match="inside"):
            body()
    else:
        body()
    assert _state(model) == before


def test_attacking_means_eval_mode_and_no_parameter_gradients_while_the_input_keeps_its_own() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).train()
    x = torch.rand(4, 3, requires_grad=True)
    with attacking(model):
        assert not any(module.training for module in model.modules())
        model(x).sum().backward()
    assert x.grad is not None and bool(x.grad.abs().sum() > 0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(4), (8, 4)),
        (nn.BatchNorm2d(4), (8, 4, 3, 3)),
        (nn.BatchNorm3d(4), (8, 4, 2, 2, 2)),
        (nn.BatchNorm2d(4, momentum=None), (8, 4, 3, 3)),
        (nn.SyncBatchNorm(4), (8, 4, 3, 3)),
    ],
    ids=["1d", "2d", "3d", "cumulative", "sync"],
)
def test_kept_statistics_do_not_move_while_outputs_are_those_of_training(
    layer: nn.modules.batchnorm._BatchNorm, shape: tuple[int, ...]
) -> None:
    # One process: SyncBatchNorm computes as BatchNorm does, through the same flags.
    layer.train()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 1
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with batch_norm_statistics_kept(layer):
        kept = layer(x)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert {"running_mean", "running_var", "num_batches_tracked"} <= set(before)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    by_hand = (x - x.mean(axes, keepdim=True)) / (x.var(axes, correction=0, keepdim=True) + layer.eps).sqrt()
    torch.testing.assert_close(kept, by_hand, atol=1e-5, rtol=1e-5)
    assert torch.equal(kept, layer(x))
    assert int(layer.num_batches_tracked) == 1, "outside, the layer counts again"


@pytest.mark.parametrize(
    ("name", "options"),
    [("preactresnet10", {"width": 4}), ("timm:regnetx_002", {}), ("timm:mobilenetv3_small_050", {})],
)
def test_a_whole_networks_buffers_stay_through_a_forward_and_backward_pass_with_kept_statistics(
    name: str, options: dict[str, int]
) -> None:
    # timm's networks use their own subclass with an activation inside.
    architecture = architecture_for(name, num_classes=3, in_channels=3, image_size=16, options=options)
    model = create_model(architecture).train()
    x = torch.rand(4, 3, 16, 16)
    before = {key: value.clone() for key, value in model.named_buffers()}
    with batch_norm_statistics_kept(model):
        model(x).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    model(x)
    assert all(
        not torch.equal(value, before[key])
        for key, value in model.named_buffers()
        if key.endswith("num_batches_tracked")
    )
