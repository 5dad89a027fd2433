"""What Python callers give the verbs, checked as click checks what is typed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sam_bench.errors import InputError, unknown_name
from sam_bench.perturb.ball import check_eps
from sam_bench.records import Norm, Radius
from sam_bench.training import Method

StrPath = str | os.PathLike[str]


def check_choice(option: str, value: Any, choices: Iterable[str]) -> None:
    """Refuse what is not among the choices; None stands for a default and passes.

    Raises:
        InputError: It is not; names the nearest.
    """
    known = list(choices)
    if value is not None and value not in known:
        raise unknown_name(option, str(value), known)


def check_at_least(option: str, value: Any, least: int) -> None:
    """Refuse a number below `least`; None stands for a default and passes.

    Raises:
        InputError: It is, or is no whole number.
    """
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise InputError(f"{option} must be a whole number of at least {least}, not {value!r}")


def path_of(value: StrPath | None) -> Path | None:
    """A path, however it was written."""
    return None if value is None else Path(value)


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
