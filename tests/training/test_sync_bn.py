"""Synchronised BatchNorm is the network it was given: in eval mode bit for bit, in train mode with one process."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from timm.layers.norm_act import SyncBatchNormAct
from torch import Tensor, nn

from sam_bench.errors import InputError
from sam_bench.training.sync_bn import synchronised

CPU, CUDA = torch.device("cpu"), torch.device("cuda")  # a conversion for a GPU needs none

# Plain layers, and timm's own with three activations.
NETWORKS = {
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    "test_efficientnet": {},
    "test_byobnet": {},
    "lcnet_035": {},
    "norm-drop-act": {},
}


def network(name: str) -> nn.Module:
    """Without downloaded weights, and with statistics that are not those it began with."""
    torch.manual_seed(0)
    if name == "norm-drop-act":
        norm = BatchNormAct2d(8, act_layer=nn.Sigmoid, drop_layer=partial(nn.Dropout, 0.3))
        model: nn.Module = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Flatten(), nn.Linear(8 * 30 * 30, 10))
    else:
        model = timm.create_model(name, num_classes=10, **NETWORKS[name])
    model = model.double().train()
    model(images())
    return model


def images() -> Tensor:
    return torch.rand(6, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def team_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_in_eval_mode_it_gives_the_same_logits(name: str, device: torch.device) -> None:
    model, x = network(name), images()
    given = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(x)
        found = synchronised(model, device).eval()(x)
    assert torch.equal(found, expected)
    assert list(model.state_dict()) == list(given)
    assert all(torch.equal(value, given[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_in_train_mode_one_process_learns_what_the_plain_network_does(name: str, team_of_one: None) -> None:
    plain, x = network(name), images()
    ours = synchronised(copy.deepcopy(plain), CPU)
    found = []
    for model in (plain, ours):
        torch.manual_seed(3)  # dropout's and stochastic depth's
        logits = model(x)
        logits.square().sum().backward()
        found.append([logits.detach(), *(each.grad for each in model.parameters()), *model.buffers()])
    for mine, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_on_a_gpu_every_layer_becomes_one_of_its_kind_in_its_mode(name: str) -> None:
    model = network(name)
    for index, layer in enumerate(model.modules()):
        layer.training = bool(index % 2)
    kinds = {key: (type(layer), layer.training) for key, layer in model.named_modules()}
    becomes = {nn.BatchNorm2d: nn.SyncBatchNorm, BatchNormAct2d: SyncBatchNormAct}
    converted = synchronised(model, CUDA)
    found = {key: (type(layer), layer.training) for key, layer in converted.named_modules()}
    assert found == {key: (becomes.get(kind, kind), mode) for key, (kind, mode) in kinds.items()}
    assert any(kind in becomes for kind, _ in kinds.values())


def test_on_a_gpu_ours_is_used_where_an_objective_differentiates_a_gradient() -> None:
    names = {type(layer).__name__ for layer in synchronised(network("resnet18"), CUDA, twice=True).modules()}
    assert "_SyncBatchNorm" in names and not names & {"SyncBatchNorm", "BatchNorm2d"}


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_a_layer_that_does_more_than_is_known_is_refused(device: torch.device) -> None:
    class Doubled(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    with pytest.raises(InputError, match=r"sync_bn does not know what Doubled \(1\) does besides normalising"):
        synchronised(nn.Sequential(nn.Conv2d(3, 4, 3), Doubled(4)), device)
