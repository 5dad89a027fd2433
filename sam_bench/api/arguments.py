"""What Python callers give the verbs, checked as click checks what is typed."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sam_bench.errors import InputError, unknown_name
from sam_bench.perturb.ball import check_eps
from sam_bench.records import Norm, Radius
from sam_bench.training import Method

StrPath = str | os.PathLike[str]


def check_choice(option: str, value: Any, choices: Iterable[str]) -> None:
    """Refuse what is not among the choices.

    Raises:
        InputError: It is not; names the nearest.
    """
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        raise unknown_name(option, str(value), known)


def whole_number(option: str, value: Any, *, least: int | None = None) -> int:
    """A whole number of any type, such as NumPy's, as Python's own.

    Raises:
        InputError: It is none (`'10'`, `10.0`, `True`), or below `least`.
    """
    number = None if isinstance(value, (bool, np.bool_)) else _indexed(value)
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f" of at least {least}"
        raise InputError(f"{option} must be a whole number{bound}, not {value!r}")
    return number


def _indexed(value: Any) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        return None


def whole_or_none(option: str, value: Any, *, least: int | None = None) -> int | None:
    """As `whole_number`; None stands for a default and passes."""
    return None if value is None else whole_number(option, value, least=least)


def check_text(option: str, value: Any, like: str) -> None:
    """Refuse what is no text, such as None.

    Args:
        option: What takes it.
        value: What was given.
        like: What would be right, in words.

    Raises:
        InputError: It is no text.
    """
    if not isinstance(value, str):
        raise InputError(f"{option} must be {like}, not {_named(value)}")


def model_of(value: Any) -> str | nn.Module:
    """A model as `evaluate` takes it; a path like its text.

    Raises:
        InputError: It is neither text, nor a path, nor a module; says how to make one of it.
    """
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, (str, Path)):
        return str(value)
    advice = ""
    if isinstance(value, Mapping):
        advice = ": load the state dict into its module, and give that"
    elif isinstance(value, type):
        advice = f": give an instance, as in {value.__name__}()"
    elif callable(value):
        advice = ": call it in the forward method of a module, and give that"
    raise InputError(f"the model must be a name, a path or a torch.nn.Module, not {_named(value)}{advice}")


def dataset_of(value: Any) -> str:
    """A data set as `evaluate` takes it; a path like its text.

    Raises:
        InputError: It is neither text nor a path; says how arrays become a file.
    """
    if isinstance(value, (str, Path)):
        return str(value)
    arrays = ": write arrays into a file with numpy.savez('mine.npz', x_test=…, y_test=…), and give 'mine.npz'"
    advice = "" if value is None else arrays
    raise InputError(f"--dataset must be a name, a FILE.npz or a FOLDER, not {_named(value)}{advice}")


def device_of(value: Any) -> str:
    """A device's name; a `torch.device` has one.

    Raises:
        InputError: It is neither a name nor a device.
    """
    name = str(value) if isinstance(value, torch.device) else value
    check_text("--device", name, "auto, cpu or cuda")
    return str(name)


def radius_of(option: str, value: Any) -> Radius:
    """A radius, however it was written; of a NumPy float32 the shortest decimal that is the same float32.

    Raises:
        InputError: It is no radius.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (str, Real)):
        raise InputError(f"{option} must be a number or a text such as '8/255', not {_named(value)}")
    narrow = isinstance(value, np.floating) and not isinstance(value, float)
    try:
        return Radius(str(value) if narrow else value)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(f"{option}: {error}") from error


def path_of(option: str, value: Any) -> Path | None:
    """A path, however it was written; None stands for a default and passes.

    Raises:
        InputError: It is neither text nor a path.
    """
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise InputError(f"{option} must be a path, not {_named(value)}")
    return None if value is None else Path(value)


def settings_of(option: str, value: Any) -> dict[str, Any]:
    """Settings by their names; None stands for none.

    Raises:
        InputError: It is no mapping.
    """
    if value is not None and not isinstance(value, Mapping):
        raise InputError(f"{option} must be a dict, as in {{'steps': 20}}, not {_named(value)}")
    return dict(value or {})


def _named(value: Any) -> str:
    """What was given, in a word or two: a tensor's digits would say nothing."""
    if value is None or isinstance(value, (str, Real)):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def check_lengths(method: Method, *, allow_large: bool) -> None:
    """Refuse a radius, a step or a noise of the inputs that was surely meant in units of 1/255.

    Args:
        method: What is trained.
        allow_large: Accept it.

    Raises:
        InputError: One is as long as the whole range of inputs; names the option.
    """
    norm: Norm = method.inputs.ball.norm if method.inputs.ball else "Linf"
    for name in type(method.inputs).model_fields:
        length = getattr(method.inputs, name)
        if isinstance(length, Radius):
            check_eps(norm, length, allow_large=allow_large, option=f"--{name.replace('_', '-')}")
