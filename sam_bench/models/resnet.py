"""ResNet-18 for small images, with the layers and keys of RobustBench's.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016 (arXiv 1512.03385). The stem is a 3x3
convolution of stride 1 without pooling. A state dict that RobustBench's `ResNet(BasicBlock, [2, 2, 2, 2])` saved fits.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sam_bench.models.activations import Activation, activation_layer
from sam_bench.models.preactresnet import Width, conv3x3
from sam_bench.models.registry import register_architecture


class Block(nn.Module):
    """Two 3x3 convolutions, each before BatchNorm; the shortcut is added before the last activation.

    Args:
        inputs: Channels that come in.
        outputs: Channels of both convolutions.
        stride: Of the first convolution and the shortcut.
        activation: Which.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        self.activation = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H/stride, W/stride], rounded up."""
        out: Tensor = self.bn2(self.conv2(self.activation(self.bn1(self.conv1(x)))))
        out = self.activation(out + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """Four stages of two blocks at width, 2, 4 and 8 times width; strides 1, 2, 2, 2."""

    def __init__(self, *, num_classes: int, in_channels: int, width: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        channels = [width, width, 2 * width, 4 * width, 8 * width]
        for stage in range(1, 5):
            first = Block(channels[stage - 1], channels[stage], 1 if stage == 1 else 2, activation)
            second = Block(channels[stage], channels[stage], 1, activation)
            self.add_module(f"layer{stage}", nn.Sequential(first, second))
        self.linear = nn.Linear(channels[-1], num_classes)
        self.activation = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, in_channels, H, W] to logits [B, num_classes]."""
        out = self.activation(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            out = stage(out)
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits


@register_architecture("resnet18-cifar")
def resnet18_cifar(*, num_classes: int, in_channels: int, width: Width = 64, activation: Activation = "relu") -> ResNet:
    """The ResNet-18 of RobustBench's small images: 11.17 million parameters."""
    return ResNet(num_classes=num_classes, in_channels=in_channels, width=width, activation=activation)
