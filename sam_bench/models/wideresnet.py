"""WideResNet of any depth and width, with the layers and keys of RobustBench's.

Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016 (arXiv 1605.07146), as in the code of TRADES, which RobustBench
took over: WRN-28-10 is `depth` 28 and `width` 10. Weights start as there: He's normal initialisation by a
convolution's outputs. A projection shortcut reads the activated input, an identity shortcut the input itself.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from sam_bench.models.activations import Activation, activation_layer
from sam_bench.models.preactresnet import conv3x3
from sam_bench.models.registry import register_architecture


def _three_stages(depth: int) -> int:
    if (depth - 4) % 6:
        raise ValueError("depth must be 4 more than a multiple of 6: 10, 16, 22, 28, 34, 40, 70, …")
    return depth


Depth = Annotated[int, Field(ge=10, le=1000, description="layers: 6 n + 4"), AfterValidator(_three_stages)]
Widening = Annotated[int, Field(ge=1, le=64, description="the first stage has 16 times so many channels")]


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and activation.

    Args:
        inputs: Channels that come in.
        outputs: Channels of both convolutions.
        stride: Of the first convolution and the shortcut.
        activation: Which.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.convShortcut: nn.Conv2d | None = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
        self.activation = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H/stride, W/stride], rounded up."""
        active = self.activation(self.bn1(x))
        out: Tensor = self.conv2(self.activation(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class _Stage(nn.Module):
    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int, activation: Activation) -> None:
        super().__init__()
        first = WideBlock(inputs, outputs, stride, activation)
        self.layer = nn.Sequential(first, *(WideBlock(outputs, outputs, 1, activation) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """Three stages of (depth - 4) / 6 blocks at 16, 32 and 64 times width; strides 1, 2, 2."""

    ignored_keys: ClassVar[tuple[str, ...]] = ("sub_block1.",)
    """Some published state dicts (Carmon et al. 2019) hold a second first stage, which no forward pass runs."""

    def __init__(self, *, depth: int, width: int, num_classes: int, in_channels: int, activation: Activation) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = conv3x3(in_channels, 16)
        self.block1 = _Stage(blocks, 16, 16 * width, 1, activation)
        self.block2 = _Stage(blocks, 16 * width, 32 * width, 2, activation)
        self.block3 = _Stage(blocks, 32 * width, 64 * width, 2, activation)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        self.activation = activation_layer(activation)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
                nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, in_channels, H, W] to logits [B, num_classes]."""
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        features = self.activation(self.bn1(out))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(features, 1).flatten(1))
        return logits


@register_architecture("wideresnet")
def wideresnet(
    *, num_classes: int, in_channels: int, depth: Depth = 28, width: Widening = 10, activation: Activation = "relu"
) -> WideResNet:
    """The large network of the robustness literature: WRN-28-10 has 36.5 million parameters, WRN-34-10 46.2."""
    return WideResNet(depth=depth, width=width, num_classes=num_classes, in_channels=in_channels, activation=activation)
