"""Every architecture of timm as 'timm:NAME', made to fit the images it is trained on.

Weights are never fetched here: they come from a file of ours, or from what `init` names. What is decided for the
user (image size, patch size, stem) goes into the options of the Architecture, and `build_timm` reads nothing else.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import is_model
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sam_bench.errors import InputError, shortened
from sam_bench.models.normalize import NormalizedModel
from sam_bench.models.timm_entry import call_timm
from sam_bench.models.timm_stems import SMALL_IMAGE, fitting_patch, has_conv_stem, soften_conv_stem

PREFIX = "timm:"
STEMS = ("small", "imagenet")
_LONGEST_NAME = 200

# Set from the data set, or a way to files and wrappers that a trained model of ours does not have.
RESERVED = {
    "num_classes": "the number of classes follows the data set",
    "in_chans": "the number of channels follows the data set",
    "pretrained": "weights are never fetched as an option: `init` starts from given ones",
    "pretrained_cfg": "weights are never fetched as an option: `init` starts from given ones",
    "pretrained_cfg_overlay": "weights are never fetched as an option: `init` starts from given ones",
    "pretrained_strict": "weights are never fetched as an option: `init` starts from given ones",
    "checkpoint_path": "weights are never fetched as an option: `init` starts from given ones",
    "cache_dir": "weights are never fetched as an option: `init` starts from given ones",
    "features_only": "a classifier is needed, not features",
    "scriptable": "it would change how the model is built",
    "exportable": "it would change how the model is built",
    "no_jit": "it would change how the model is built",
}

# RobustBench cuts these letters out of a checkpoint's keys before it loads them.
CUT_FROM_KEYS = ("model.", "module.")


class _CannotBuildError(InputError):
    """timm's constructor refused: for what it was given, or because it needs real weights."""


def check_timm_name(name: str) -> str:
    """The bare name of a timm model.

    Args:
        name: With or without the prefix 'timm:'.

    Raises:
        InputError: timm has no such model, or a tag for pretrained weights is part of the name.
    """
    bare = name.removeprefix(PREFIX)
    if len(bare) > _LONGEST_NAME:
        raise InputError(f"unknown architecture {shortened(name)!r}: no name in timm is that long")
    base, dot, tag = bare.partition(".")
    if is_model(bare) and not dot:
        return bare
    if dot and is_model(base):
        raise InputError(
            f"architecture {name!r}: the tag {tag!r} names pretrained weights, not an architecture; "
            f"write '{PREFIX}{base}', and `init='{name}'` to start from these weights"
        )
    known = timm.list_models()
    near = difflib.get_close_matches(bare, known, n=5, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(PREFIX + match) for match in near)}?" if near else ""
    raise InputError(
        f"unknown architecture {name!r}: timm {timm.__version__} has no model {bare!r}.{hint} "
        f"timm.list_models('*{base[:6]}*') in Python lists its {len(known)} models by pattern."
    )


def is_timm_name(name: str) -> bool:
    """Whether timm has a model of this (bare) name."""
    return bool(is_model(name))


def build_timm(name: str, *, num_classes: int, in_channels: int, options: Mapping[str, Any]) -> nn.Module:
    """The network that `options` describe, with new random weights; nothing is guessed.

    Args:
        name: 'timm:NAME'.
        num_classes: Width of the logits.
        in_channels: Channels of the images.
        options: `stem` ("small": a convolutional stem keeps the resolution; "imagenet", the default: as
            timm draws it) and the arguments of timm's function for this model.

    Raises:
        InputError: Unknown name, an option that timm's model refuses, or a model that cannot be stored.
    """
    bare = check_timm_name(name)
    _check_options(name, options)
    arguments = dict(options)
    stem = arguments.pop("stem", "imagenet")
    try:
        net = call_timm(bare, num_classes=num_classes, in_channels=in_channels, arguments=arguments)
    except Exception as error:
        # timm's constructors say no in every way Python has: TypeError, AssertionError, KeyError, RuntimeError.
        refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if refused and refused[1] in arguments:
            raise InputError(
                f"architecture {name!r} has no option {shortened(refused[1])!r}; it takes stem and what timm's model "
                f"takes (help(timm.models.{bare}) in Python)"
            ) from error
        raise _CannotBuildError(
            f"architecture {name!r} cannot be built with {_shown(arguments)}: {_reason(error)}"
        ) from error
    if isinstance(net, NormalizedModel):
        raise InputError(f"architecture {name!r} is a model of a zoo, not an architecture; see its card for the latter")
    _check_storable(name, net)
    # Where timm takes the patch size as an argument, the stem is already small by it.
    if stem == "small" and not soften_conv_stem(net) and "patch_size" not in arguments:
        raise InputError(
            f"architecture {name!r}: sam-bench does not know a small stem for it; use stem=imagenet, "
            "or what timm's model takes itself"
        )
    return net


def resolve_timm_options(
    name: str, *, num_classes: int, in_channels: int, image_size: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options completed by what the image size asks for, and tried on one batch.

    A network that takes `img_size` gets it. On images of at most 64 pixels one that takes `patch_size` gets
    patches that leave about 8x8 of them (16x16 when its later stages shrink the grid further), and a
    convolutional stem that is known gets stride 1 and no pooling. What the user gives is never changed.

    Args:
        name: 'timm:NAME'.
        num_classes: Width of the logits.
        in_channels: Channels of the images.
        image_size: Height and width in pixels.
        options: The user's.

    Returns:
        The options, `stem` always among them: enough for `build_timm`.

    Raises:
        InputError: Unknown name or option, or no choice that works for images of this size.
    """
    given = {key: value for key, value in options.items() if value is not None}
    _check_options(name, given)
    if given.get("img_size", image_size) not in (image_size, [image_size, image_size]):
        raise InputError(
            f"architecture {name!r}: img_size={shortened(str(given['img_size']))} but the images have "
            f"{image_size} pixels; leave img_size out, it follows the data set"
        )
    patch = given.get("patch_size")
    if isinstance(patch, int) and (patch < 1 or image_size % patch):
        divisors = ", ".join(str(size) for size in range(1, image_size + 1) if image_size % size == 0)
        raise InputError(
            f"architecture {name!r}: patch_size={patch} does not divide images of {image_size} pixels; "
            f"use one of {divisors}"
        )
    shape = (in_channels, image_size, image_size)
    with torch.random.fork_rng(devices=[]):
        taken, conv_stem = _taken(name, num_classes, in_channels, given)
        problem = ""
        for candidate in _candidates(given, taken, conv_stem, image_size):
            try:
                _try(name, num_classes, shape, candidate)
            except InputError as error:
                problem = problem or str(error)
            else:
                return candidate
    raise InputError(
        f"architecture {name!r} does not work on {in_channels}x{image_size}x{image_size} images with {_shown(given)}: "
        f"{problem.rstrip('.')}. Try another patch_size or stem=imagenet, another size of images, or another model."
    )


def _candidates(given: dict[str, Any], taken: frozenset[str], conv_stem: bool, image_size: int) -> list[dict[str, Any]]:
    """Complete option sets, the best first."""
    base = {"img_size": image_size, **given} if "img_size" in taken else dict(given)
    own = {**base, "stem": given.get("stem", "imagenet")}
    if image_size > SMALL_IMAGE or given.get("stem") == "imagenet":
        return [own]
    if "patch_size" in taken:
        small = {**base, "stem": "small"}
        if "patch_size" in given:
            return [small]
        # 'depths' means stages, and each shrinks the grid.
        first = 16 if "depths" in taken else 8
        patches = dict.fromkeys(fitting_patch(image_size, cells) for cells in (first, 8, 16, 32))
        return [*({**small, "patch_size": patch} for patch in patches), own]
    if conv_stem or "stem" in given:
        small = {**base, "stem": "small"}
        return [small] if "stem" in given else [small, own]
    return [own]


def _taken(name: str, num_classes: int, in_channels: int, given: dict[str, Any]) -> tuple[frozenset[str], bool]:
    """What the network's class takes, and whether its convolutional stem is known.

    The image-size-dependent options are left out here, since the right ones are not known yet.
    """
    probe = {key: value for key, value in given.items() if key not in ("stem", "img_size", "patch_size")}
    try:
        net = _build_light(name, num_classes, in_channels, probe)
    except _CannotBuildError:
        # Some options only work together with the user's image and patch size.
        net = _build_light(name, num_classes, in_channels, {k: v for k, v in given.items() if k != "stem"})
    taken: set[str] = set()
    for cls in type(net).__mro__:
        if "__init__" in vars(cls) and cls is not nn.Module:
            taken.update(inspect.signature(vars(cls)["__init__"]).parameters)
    return frozenset(taken), has_conv_stem(net)


class _LinspaceOnCpu(TorchFunctionMode):
    """timm reads its drop-path rates out of a `linspace`, which has no numbers on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def _build_light(name: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    """The network without memory for its weights; with, for the few that cannot be built so."""
    try:
        with torch.device("meta"), _LinspaceOnCpu():
            return build_timm(name, num_classes=num_classes, in_channels=in_channels, options=options)
    except _CannotBuildError:
        return build_timm(name, num_classes=num_classes, in_channels=in_channels, options=options)


def _try(name: str, num_classes: int, shape: tuple[int, int, int], options: dict[str, Any]) -> None:
    """One forward pass of two images, on the meta device if it goes there."""
    net = _build_light(name, num_classes, shape[0], options)
    try:
        _forward(net, num_classes, shape)
    except InputError:
        if not any(parameter.is_meta for parameter in net.parameters()):
            raise
        net = build_timm(name, num_classes=num_classes, in_channels=shape[0], options=options)
        _forward(net, num_classes, shape)


def _forward(net: nn.Module, num_classes: int, shape: tuple[int, int, int]) -> None:
    device = next(net.parameters()).device
    try:
        with torch.no_grad():
            logits = net.eval()(torch.zeros(2, *shape, device=device))
    except Exception as error:
        raise InputError(_reason(error)) from error
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, num_classes):
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"it returns {got} for a batch of 2, not logits [2, {num_classes}]")


def _check_storable(name: str, net: nn.Module) -> None:
    keys = (f"net.{key}" for key in net.state_dict())
    bad = next((key for key in keys if any(cut in key for cut in CUT_FROM_KEYS)), None)
    if bad is not None:
        raise InputError(
            f"architecture {name!r} cannot be used: its parameter {bad!r} contains 'model.' or 'module.', "
            "which RobustBench cuts out when it loads a checkpoint; use another timm model"
        )


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    stem = options.get("stem", "imagenet")
    if stem not in STEMS:
        raise InputError(f"architecture {name!r}: stem must be 'small' or 'imagenet', got {shortened(repr(stem))}")
    for key, value in options.items():
        if key in RESERVED:
            raise InputError(f"architecture {name!r}: option {key!r} cannot be given: {RESERVED[key]}")
        try:
            same = json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError):
            same = False
        if not same:
            raise InputError(
                f"architecture {name!r}: option {shortened(key)!r} must be a number, text, true, false or a list of "
                f"them (it is stored in the model's card), got {shortened(repr(value))}"
            )


def _shown(options: Mapping[str, Any]) -> str:
    return shortened(", ".join(f"{key}={value}" for key, value in options.items())) or "its defaults"


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {shortened(lines[0])}" if lines else type(error).__name__
