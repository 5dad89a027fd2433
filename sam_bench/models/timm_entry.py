"""Calling timm's model functions so that what the caller gives wins over what the function sets."""

from __future__ import annotations

from types import FunctionType
from typing import Any, cast

import timm
from timm.models import model_entrypoint
from torch import nn

from sam_bench.errors import SamBenchError

_CLASH = "got multiple values for keyword argument"


def call_timm(name: str, *, num_classes: int, in_channels: int, arguments: dict[str, Any]) -> nn.Module:
    """timm's network `name` with random weights.

    Most of timm's functions let a caller replace their settings; some (the Mixers' patch size) do not
    and fail on a keyword given twice. Those are called through a copy of the function whose inner call
    takes the arguments last, so that a Mixer can have a patch size that fits. timm itself is untouched.

    Args:
        name: As timm lists it.
        num_classes: Width of the logits.
        in_channels: Channels of the images.
        arguments: For the function, or for the network's class.

    Raises:
        Exception: Whatever timm's constructors raise for arguments they refuse.
    """
    fixed: dict[str, Any] = {"pretrained": False, "num_classes": num_classes, "in_chans": in_channels}
    try:
        return cast(nn.Module, timm.create_model(name, **fixed, **arguments))
    except TypeError as error:
        if _CLASH not in str(error):
            raise
    return cast(nn.Module, _caller_wins(model_entrypoint(name), arguments)(**fixed))


def pretrained_timm(name: str, *, num_classes: int, in_channels: int, arguments: dict[str, Any]) -> nn.Module:
    """timm's network with its pretrained weights, which timm fits to other sizes, channels and classes where it can.

    Args:
        name: As timm lists it, with or without the tag of some weights.
        num_classes: Of the logits; the last layer is new where the weights have another number.
        in_channels: Channels of the images.
        arguments: For the function, or for the network's class.

    Raises:
        SamBenchError: The weights cannot be had, or timm cannot fit them.
    """
    base, _, tag = name.partition(".")
    fixed: dict[str, Any] = {"pretrained": True, "num_classes": num_classes, "in_chans": in_channels}
    try:
        net = _caller_wins(model_entrypoint(base), arguments)(pretrained_cfg=tag or None, **fixed)
    # The hub's client, the file system and the model's constructor each have errors of their own.
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise SamBenchError(
            f"timm could not load {name!r}: {type(error).__name__}: {lines[0][:300]}; without a network only cached "
            "models load"
        ) from error
    return cast(nn.Module, net)


def _caller_wins(entry: FunctionType, arguments: dict[str, Any]) -> FunctionType:
    """A copy of a model function whose private helper (`_create_mixer`) gets `arguments` on top of its own."""

    def last(helper: FunctionType) -> Any:
        return lambda *args, **kwargs: helper(*args, **{**kwargs, **arguments})

    # Every function of timm's ends in a call of one private function of its own file.
    helpers = {
        name: last(value)
        for name in entry.__code__.co_names
        if name.startswith("_") and isinstance(value := entry.__globals__.get(name), FunctionType)
    }
    copy = FunctionType(
        entry.__code__, {**entry.__globals__, **helpers}, entry.__name__, entry.__defaults__, entry.__closure__
    )
    copy.__kwdefaults__ = entry.__kwdefaults__
    return copy
