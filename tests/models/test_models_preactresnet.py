"""PreActResNet against its equations, its published size, and the images it must take."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sam_bench.models import architecture_for, count_parameters, create_model

STAGES = {
    "preactresnet10": (1, 1, 1, 1),
    "preactresnet18": (2, 2, 2, 2),
    "preactresnet34": (3, 4, 6, 3),
    "preactresnet50": (3, 4, 6, 3),
}


def _model(name: str, *, width: int = 64, in_channels: int = 3, image_size: int = 32, num_classes: int = 10):
    return create_model(
        architecture_for(
            name,
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            options={"width": width},
        )
    )


def _by_equations(state: dict[str, Tensor], x: Tensor, depths: tuple[int, ...]) -> Tensor:
    """He et al. 2016, figure 4(e): x + F(BN-ReLU-conv ...), the last sum followed by BN and ReLU.

    Convolutions as sums over shifted images, normalisation from its definition, in float64.
    """
    p = {key.removeprefix("net."): value.double() for key, value in state.items()}

    def conv(key: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = p[f"{key}.weight"]
        reach = weight.shape[-1] // 2
        height, width = x.shape[-2:]
        padded = F.pad(x, (reach,) * 4)
        total = sum(
            torch.einsum("oi,bihw->bohw", weight[:, :, i, j], padded[:, :, i : i + height, j : j + width])
            for i in range(weight.shape[-2])
            for j in range(weight.shape[-1])
        )
        assert isinstance(total, Tensor)
        return total[:, :, ::stride, ::stride]

    def bn_relu(key: str, x: Tensor) -> Tensor:
        def column(name: str) -> Tensor:
            return p[f"{key}.{name}"].reshape(1, -1, 1, 1)

        normal = (x - column("running_mean")) / (column("running_var") + 1e-5).sqrt()
        return (normal * column("weight") + column("bias")).clamp(min=0)

    x = conv("conv1", x.double())
    for stage, depth in enumerate(depths):
        for block in range(depth):
            prefix = f"stages.{stage}.{block}"
            stride = 2 if stage and not block else 1
            bottleneck = f"{prefix}.conv3.weight" in p
            active = bn_relu(f"{prefix}.bn1", x)
            skip = conv(f"{prefix}.shortcut", active, stride) if f"{prefix}.shortcut.weight" in p else x
            out = conv(f"{prefix}.conv1", active, 1 if bottleneck else stride)
            out = conv(f"{prefix}.conv2", bn_relu(f"{prefix}.bn2", out), stride if bottleneck else 1)
            if bottleneck:
                out = conv(f"{prefix}.conv3", bn_relu(f"{prefix}.bn3", out))
            x = skip + out
    return bn_relu("bn", x).mean((2, 3)) @ p["linear.weight"].T + p["linear.bias"]


@pytest.mark.parametrize("name", STAGES)
@torch.no_grad()
def test_logits_are_those_of_the_papers_equations(name: str) -> None:
    torch.manual_seed(1)
    model = _model(name, width=4, num_classes=5).double().eval()
    for key, value in model.state_dict().items():
        if "bn" in key and value.is_floating_point():  # away from the identity that a new layer is
            value.copy_(torch.rand_like(value) + 0.5)
    x = torch.rand(2, 3, 13, 13, dtype=torch.float64)
    expected = _by_equations(model.state_dict(), x, STAGES[name])
    torch.testing.assert_close(model(x), expected, atol=1e-9, rtol=1e-9)


def test_preactresnet18_has_the_size_and_work_of_the_literatures() -> None:
    model = _model("preactresnet18").eval()
    # 11,171,146 as usually quoted for CIFAR-10, plus scale and shift of the last BatchNorm.
    assert count_parameters(model) == 11_171_146 + 2 * 512
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 3, 32, 32))
    assert counter.get_total_flops() / 2 == pytest.approx(0.5558e9, rel=2e-3)


@pytest.mark.parametrize("name", STAGES)
def test_width_scales_every_stage_and_depth_counts_the_weighted_layers(name: str) -> None:
    model = _model(name, width=3)
    convolutions = [module for key, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)]
    layers = sum(module.kernel_size == (3, 3) or "50" in name for module in convolutions)
    shortcuts = sum("shortcut" in key and isinstance(m, torch.nn.Conv2d) for key, m in model.named_modules())
    assert layers - (shortcuts if "50" in name else 0) + 1 == int(name.removeprefix("preactresnet"))
    outputs = {stage: model.get_submodule(f"net.stages.{stage}.0.conv1").out_channels for stage in range(4)}
    assert outputs == {0: 3, 1: 6, 2: 12, 3: 24}


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 8), (1, 28), (3, 31), (3, 64)])
def test_any_image_of_8_to_64_pixels_gives_logits_and_an_input_gradient(channels: int, size: int) -> None:
    model = _model("preactresnet10", width=4, in_channels=channels, image_size=size, num_classes=7)
    x = torch.rand(3, channels, size, size, requires_grad=True)
    logits = model(x)
    logits.logsumexp(1).sum().backward()
    assert logits.shape == (3, 7)
    assert x.grad is not None and bool((x.grad.abs().sum((1, 2, 3)) > 0).all())


@torch.no_grad()
def test_channels_last_changes_nothing_but_rounding_and_bf16_little() -> None:
    torch.manual_seed(0)
    model = _model("preactresnet18", width=8).eval()
    x = torch.rand(4, 3, 16, 16)
    expected = model(x)
    last = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), expected, atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = last(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, atol=0.1, rtol=0.1)


def test_compiling_sees_one_graph_without_breaks() -> None:
    architecture = architecture_for(
        "preactresnet10",
        num_classes=2,
        in_channels=1,
        image_size=8,
        mean=(0.5,),
        std=(0.2,),
        options={"width": 2},
    )
    explained = torch._dynamo.explain(create_model(architecture).train())(torch.rand(2, 1, 8, 8))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
