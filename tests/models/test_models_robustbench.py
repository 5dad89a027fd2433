"""WideResNet and ResNet-18 against RobustBench's own classes, and the activations against their equations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sam_bench.errors import InputError
from sam_bench.models import architecture_for, architectures, count_parameters, create_model
from sam_bench.records import Architecture
from sam_bench.zoo import load_model
from sam_bench.zoo.checkpoint import fit_external

OURS = [name for name in architectures() if name.startswith(("preactresnet", "resnet", "wideresnet"))]


def wide_resnet(**options: object) -> nn.Module:
    from robustbench.model_zoo.architectures.wide_resnet import WideResNet

    made: nn.Module = WideResNet(**options)
    return made


def ours(name: str, *, size: int = 32, **options: object) -> Architecture:
    return architecture_for(name, num_classes=10, in_channels=3, image_size=size, options=options)


def away_from_new(module: nn.Module) -> nn.Module:
    """Statistics, scales and shifts that are not those of a new layer."""
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if value.is_floating_point() and value.dim() == 1:
                value.copy_(0.5 + torch.rand_like(value) * (0.2 if "running_mean" in key else 1))
    return module.eval()


@pytest.mark.parametrize("sub_block", [False, True], ids=["Standard", "Carmon2019Unlabeled"])
@torch.no_grad()
def test_wideresnet_takes_robustbenchs_state_dict_and_gives_its_logits(sub_block: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = away_from_new(wide_resnet(depth=16, widen_factor=2, sub_block1=sub_block))
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": {f"module.{key}": value for key, value in theirs.state_dict().items()}}, path)
    loaded = load_model(path, architecture=ours("wideresnet", depth=16, width=2)).module
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(loaded(x), theirs(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_resnet18_takes_robustbenchs_state_dict_and_gives_its_logits() -> None:
    from robustbench.model_zoo.architectures.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    theirs = away_from_new(ResNet(BasicBlock, [2, 2, 2, 2]))
    mine = create_model(ours("resnet18-cifar")).eval()
    fit_external(mine, theirs.state_dict(), "theirs", "resnet18-cifar")
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert count_parameters(mine) == count_parameters(theirs)


@pytest.mark.parametrize(("depth", "millions"), [(28, 36.479194), (34, 46.160474)])
def test_wideresnets_have_their_published_sizes(depth: int, millions: float) -> None:
    with torch.device("meta"):
        model = create_model(ours("wideresnet", depth=depth, width=10))
    assert count_parameters(model) == pytest.approx(1e6 * millions, abs=0.5)


def test_a_key_that_belongs_nowhere_is_still_refused() -> None:
    theirs = wide_resnet(depth=10, widen_factor=1)
    state = dict(theirs.state_dict()) | {"other.weight": torch.zeros(1)}
    with pytest.raises(InputError, match=r"other\.weight"):
        fit_external(create_model(ours("wideresnet", depth=10, width=1)), state, "theirs", "wideresnet")


@pytest.mark.parametrize("depth", [9, 12, 29])
def test_a_depth_that_three_stages_cannot_have_is_refused(depth: int) -> None:
    with pytest.raises(InputError, match=r"depth.*(multiple of 6|greater than or equal to 10)"):
        ours("wideresnet", depth=depth)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("activation", ["silu", "gelu", "softplus"])
def test_another_activation_stands_in_every_place_of_relu(name: str, activation: str) -> None:
    """The logits are those of the ReLU network with its activations replaced one by one."""
    kinds = {"silu": nn.SiLU(), "gelu": nn.GELU(), "softplus": nn.Softplus()}
    size = {"depth": 10, "width": 1} if name == "wideresnet" else {"width": 2}
    smooth, plain = (create_model(ours(name, size=8, **size, **more)) for more in ({"activation": activation}, {}))
    plain.load_state_dict(smooth.state_dict())
    assert not any(isinstance(each, nn.ReLU) for each in smooth.modules())
    places = [key for key, each in plain.named_modules() if isinstance(each, nn.ReLU)]
    for key in places:
        plain.set_submodule(key, kinds[activation])
    x = torch.rand(4, 3, 8, 8)
    assert places and torch.equal(smooth.train()(x), plain.train()(x))
    seen: list[int] = []
    for each in smooth.modules():
        if isinstance(each, type(kinds[activation])):
            each.register_forward_hook(lambda *_: seen.append(1))
    smooth(x)
    assert len(seen) == sum(isinstance(each, nn.BatchNorm2d) for each in smooth.modules()) - _without(name, smooth)


def _without(name: str, model: nn.Module) -> int:
    """BatchNorms that no activation follows: those of ResNet's projection shortcuts."""
    return sum("shortcut.1" in key for key, _ in model.named_modules()) if name.startswith("resnet") else 0


@pytest.mark.parametrize("name", OURS)
def test_relu_is_the_default_and_leaves_cards_as_they_were(name: str) -> None:
    plain, said, smooth = ours(name), ours(name, activation="relu"), ours(name, activation="silu")
    assert plain == said and "activation" not in plain.options and smooth.options["activation"] == "silu"
    assert plain.sha256 == said.sha256 != smooth.sha256
    with pytest.raises(InputError, match=r"activation.*'relu', 'silu', 'gelu' or 'softplus'"):
        ours(name, activation="tanh")
