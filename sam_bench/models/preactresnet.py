"""PreActResNet for small images: any depth, any width.

He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, ECCV 2016 (arXiv 1603.05027). Every
block normalises and activates *before* its convolutions, so that the identity path stays free, and
the last block is followed by one more BatchNorm and ReLU before the pooling, as in the paper. (Of the
public CIFAR versions used for robustness some leave that last pair out; its 2 x 512 parameters
are the only difference.) The stem is a 3x3 convolution of stride 1 without pooling, for images of 8 to
64 pixels; pooling is global, so that any size from 4 pixels works. A projection shortcut reads the
activated input, an identity shortcut the input itself. Initialisation is PyTorch's own, as in the
training code of the robustness literature: no zero-initialised last scale.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sam_bench.models.activations import Activation, activation_layer
from sam_bench.models.registry import register_architecture

Width = Annotated[int, Field(ge=1, le=4096, description="channels of the first stage; the next have 2, 4 and 8 times")]


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the resolution at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Conv2d | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU.

    Args:
        inputs: Channels that come in.
        planes: Channels of both convolutions; `planes * expansion` go out.
        stride: Of the first convolution and the shortcut.
        activation: What follows each BatchNorm.
    """

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, activation: Activation = "relu") -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.shortcut = _shortcut(inputs, planes, stride)
        self.activation = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, planes, H/stride, W/stride], rounded up."""
        active = self.activation(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(self.activation(self.bn2(self.conv1(active))))
        return out + skip


class PreActBottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution, each after BatchNorm and ReLU; arguments as `PreActBlock`."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, activation: Activation = "relu") -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, planes, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, kernel_size=1, bias=False)
        self.shortcut = _shortcut(inputs, outputs, stride)
        self.activation = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, 4 planes, H/stride, W/stride], rounded up."""
        active = self.activation(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv1(active)
        out = self.conv2(self.activation(self.bn2(out)))
        out = self.conv3(self.activation(self.bn3(out)))
        return out + skip


class PreActResNet(nn.Module):
    """Four stages of pre-activation blocks at width, 2, 4 and 8 times width; strides 1, 2, 2, 2.

    Args:
        block: `PreActBlock` or `PreActBottleneck`.
        depths: Blocks in each of the four stages.
        num_classes: Width of the logits.
        in_channels: 3 for colour, 1 for grey.
        width: Channels of the stem and the first stage.
        activation: What follows each BatchNorm.
    """

    def __init__(
        self,
        *,
        block: type[PreActBlock] | type[PreActBottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width)
        channels = width
        stages = []
        for index, depth in enumerate(depths):
            planes = width * 2**index
            blocks = []
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(block(channels, planes, stride, activation))
                channels = planes * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)
        self.activation = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, in_channels, H, W] to logits [B, num_classes]."""
        features = self.activation(self.bn(self.stages(self.conv1(x))))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(features, 1).flatten(1))
        return logits


def _preactresnet(
    block: type[PreActBlock] | type[PreActBottleneck],
    depths: tuple[int, int, int, int],
    num_classes: int,
    in_channels: int,
    width: int,
    activation: Activation,
) -> PreActResNet:
    return PreActResNet(
        block=block, depths=depths, num_classes=num_classes, in_channels=in_channels, width=width, activation=activation
    )


@register_architecture("preactresnet10")
def preactresnet10(
    *, num_classes: int, in_channels: int, width: Width = 64, activation: Activation = "relu"
) -> PreActResNet:
    """One basic block a stage: for trials and tests."""
    return _preactresnet(PreActBlock, (1, 1, 1, 1), num_classes, in_channels, width, activation)


@register_architecture("preactresnet18")
def preactresnet18(
    *, num_classes: int, in_channels: int, width: Width = 64, activation: Activation = "relu"
) -> PreActResNet:
    """The usual network of the robustness literature on CIFAR: 11.17 million parameters, 0.56 GMAC at 32x32."""
    return _preactresnet(PreActBlock, (2, 2, 2, 2), num_classes, in_channels, width, activation)


@register_architecture("preactresnet34")
def preactresnet34(
    *, num_classes: int, in_channels: int, width: Width = 64, activation: Activation = "relu"
) -> PreActResNet:
    """Basic blocks, 3, 4, 6 and 3 of them."""
    return _preactresnet(PreActBlock, (3, 4, 6, 3), num_classes, in_channels, width, activation)


@register_architecture("preactresnet50")
def preactresnet50(
    *, num_classes: int, in_channels: int, width: Width = 64, activation: Activation = "relu"
) -> PreActResNet:
    """Bottleneck blocks, 3, 4, 6 and 3 of them."""
    return _preactresnet(PreActBottleneck, (3, 4, 6, 3), num_classes, in_channels, width, activation)
