"""What makes a timm network fit small images: softer stems, smaller patches.

timm's networks are drawn for 224 pixels: their stems shrink the image four times before the first
block, which leaves a 32-pixel image 1x1 pixels at the end. Here are the choices for small images; they are
written into `Architecture.options`, so that a card says what was built.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

SMALL_IMAGE = 64
"""Images up to this size get the small stem."""


@dataclass(frozen=True)
class ConvStem:
    """Where a family of networks keeps its stem: attribute paths below the network."""

    convolutions: tuple[str, ...]
    poolings: tuple[str, ...] = ()


# The first row whose every path exists, with a strided convolution in it, is the network's.
CONV_STEMS = (
    ConvStem(("conv1",), ("maxpool",)),  # ResNet, ResNeXt, SE-ResNet, Res2Net, ResNeSt, SKNet
    ConvStem(("conv1", "conv2")),  # HRNet
    ConvStem(("features.conv0",), ("features.pool0",)),  # DenseNet
    ConvStem(("conv_stem",)),  # EfficientNet, MobileNet, MNASNet, GhostNet, RepGhostNet
    ConvStem(("stem.conv",), ("stem.pool",)),  # ResNetV2 (BiT), ByobNet
    ConvStem(("stem.conv1",), ("stem.pool",)),  # ResNetV2 and ByobNet with deep stems
    ConvStem(("stem.conv",)),  # RegNet, ReXNet
)


def _modules_at(net: nn.Module, paths: tuple[str, ...]) -> list[nn.Module] | None:
    found = []
    for path in paths:
        module: Any = net
        for part in path.split("."):
            module = getattr(module, part, None)
        if not isinstance(module, nn.Module):
            return None
        found.append(module)
    return found


def _strided(module: nn.Module) -> nn.Conv2d | None:
    """The first convolution with a stride at or below `module`."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1:
            return child
    return None


def _matches(net: nn.Module) -> Iterator[tuple[ConvStem, list[nn.Conv2d]]]:
    for row in CONV_STEMS:
        modules = _modules_at(net, row.convolutions)
        if modules is None or _modules_at(net, row.poolings) is None:
            continue
        convolutions = [convolution for module in modules if (convolution := _strided(module)) is not None]
        if len(convolutions) == len(modules):
            yield row, convolutions


def has_conv_stem(net: nn.Module) -> bool:
    """Whether `soften_conv_stem` knows where this network's stem is."""
    return next(_matches(net), None) is not None


def soften_conv_stem(net: nn.Module) -> bool:
    """Let a convolutional stem keep the resolution, in place: stride 1, at most 3x3, no pooling.

    A convolution larger than 3x3 becomes 3x3 with new weights (He initialisation, fan out, as timm's
    own); a smaller one only loses its stride.

    Args:
        net: A freshly built network of timm.

    Returns:
        Whether the stem was found; the network is untouched otherwise.
    """
    match = next(_matches(net), None)
    if match is None:
        return False
    row, convolutions = match
    for convolution in convolutions:
        _keep_resolution(convolution)
    for path in row.poolings:
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, nn.Identity())
    return True


def _keep_resolution(convolution: nn.Conv2d) -> None:
    convolution.stride = (1, 1)
    if max(convolution.kernel_size) <= 3:
        return
    # The layer's class stays (weight standardisation, 'same' padding); only its window changes.
    outputs, inputs = convolution.weight.shape[:2]
    convolution.kernel_size = (3, 3)
    if not isinstance(convolution.padding, str) and max(convolution.padding) > 0:
        convolution.padding = (1, 1)
    convolution.weight = nn.Parameter(convolution.weight.new_empty(outputs, inputs, 3, 3))
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")


def fitting_patch(image_size: int, cells: int) -> int:
    """The patch size that cuts an image into about `cells` x `cells` patches and divides its size.

    Args:
        image_size: Height and width in pixels.
        cells: Patches wished for along a side.

    Returns:
        The divisor of `image_size` nearest to `image_size / cells`, the smaller of two as near; at least 1.
    """
    divisors = [size for size in range(1, image_size + 1) if image_size % size == 0]
    return min(divisors, key=lambda size: (abs(size - image_size / cells), size))
