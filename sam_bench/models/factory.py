"""From a name and a data set to an Architecture, and from an Architecture to a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from torch import nn

from sam_bench.errors import InputError, shortened
from sam_bench.models.normalize import NormalizedModel, check_normalisation
from sam_bench.models.own_code import PYTHON, build_own
from sam_bench.models.registry import ArchitectureEntry, architecture_entry, architectures
from sam_bench.records import Architecture, first_problem

TIMM = "timm:"


def architecture_for(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    options: Mapping[str, Any] | None = None,
) -> Architecture:
    """Everything needed to build a model for a data set, defaults filled in, tried before it is returned.

    Args:
        name: A registered architecture, 'timm:NAME', or 'python:MODULE:FACTORY' for the user's own code.
        num_classes: At least 2.
        in_channels: Channels of the images.
        image_size: Height and width of the images, in pixels.
        mean: Of the training images in [0, 1], one number a channel; empty for no normalisation.
        std: As `mean`, each above 0.
        options: What the architecture takes: `width`; for timm `stem`, `patch_size`, and any keyword of timm's.

    Returns:
        The architecture, with every option explicit.

    Raises:
        InputError: Unknown name or option, a value out of range, or a network that cannot take such images.
    """
    check_normalisation(mean, std, in_channels)
    given = dict(options or {})
    try:
        architecture = Architecture(
            name=name,
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            mean=tuple(float(value) for value in mean),
            std=tuple(float(value) for value in std),
        )
    except ValidationError as error:
        raise InputError(f"architecture {shortened(name)!r}: {first_problem(error)}") from error
    if name.startswith(TIMM):
        from sam_bench.models.timm_models import resolve_timm_options  # slow to import, so only when asked for

        complete = resolve_timm_options(
            name, num_classes=num_classes, in_channels=in_channels, image_size=image_size, options=given
        )
    elif name.startswith(PYTHON):
        complete = given
    else:
        complete = _entry(name).check_options(given)
    return architecture.model_copy(update={"options": complete})


def create_model(architecture: Architecture) -> NormalizedModel:
    """The model, with new random weights from torch's global generator, in train mode on the CPU.

    Args:
        architecture: From `architecture_for` or a card. A missing option has its default; for a timm model that
            is timm's own, without regard to the image size.

    Returns:
        A model that takes float images [batch, in_channels, image_size, image_size] in [0, 1]. The keys of its
        state dict start with "net." and contain neither "model." nor "module." anywhere.

    Raises:
        InputError: Unknown name, or options that the architecture does not take.
    """
    check_normalisation(architecture.mean, architecture.std, architecture.in_channels)
    net: nn.Module
    if architecture.name.startswith(TIMM):
        from sam_bench.models.timm_models import build_timm

        net = build_timm(
            architecture.name,
            num_classes=architecture.num_classes,
            in_channels=architecture.in_channels,
            options=architecture.options,
        )
    elif architecture.name.startswith(PYTHON):
        net = build_own(architecture.name, architecture.options)
    else:
        entry = _entry(architecture.name)
        from_data = {key: getattr(architecture, key) for key in entry.takes}
        net = entry.build(**from_data, **entry.check_options(architecture.options))
    return NormalizedModel(net, architecture.mean, architecture.std)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters (those whose gradients are on)."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _entry(name: str) -> ArchitectureEntry:
    if name not in architectures():
        from sam_bench.models.timm_models import is_timm_name

        if is_timm_name(name):
            raise InputError(f"unknown architecture {name!r}; timm has it: write '{TIMM}{name}'")
    return architecture_entry(name)
