"""Networks whose code is the user's own: `python:MODULE:FACTORY`.

Importing a module runs it, and a card may come from anywhere. So a module is imported only if this user has named it:
in this process by `allow`, or in the environment variable `SAM_BENCH_CODE`.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from sam_bench.errors import InputError, SamBenchError, shortened

PYTHON = "python:"
CODE_VARIABLE = "SAM_BENCH_CODE"
_FORM = re.compile(r"python:(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<factory>[A-Za-z_]\w*)", re.ASCII)
_allowed: set[str] = set()


def allow(architecture: str) -> None:
    """Let this process import the module of an architecture that the user has named: `python:MODULE:FACTORY`.

    Raises:
        InputError: It has another form.
    """
    _allowed.add(_parts(architecture)[0])


def build_own(architecture: str, options: Mapping[str, Any]) -> nn.Module:
    """The network that the user's factory makes.

    Args:
        architecture: `python:MODULE:FACTORY`.
        options: Keywords of the factory.

    Raises:
        InputError: The user has not named the module, it cannot be imported, or the factory gives no module.
        SamBenchError: The factory fails; says how.
    """
    name, function = _parts(architecture)
    if name not in _allowed | set(os.environ.get(CODE_VARIABLE, "").split(",")):
        raise InputError(
            f"this model's network is code of its own, {name}:{function}, which loading it would run: if you trust "
            f"that module, set the environment variable {CODE_VARIABLE}={name}"
        )
    try:
        factory = getattr(importlib.import_module(name), function)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"the network {name}:{function} cannot be imported ({error}): install its package, or put its folder on "
            "PYTHONPATH"
        ) from error
    try:
        network = factory(**options)
    # Whatever somebody's constructor raises.
    except Exception as error:
        said = shortened(str(error).partition("\n")[0], 200)
        raise SamBenchError(f"{name}:{function} failed: {type(error).__name__}: {said}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{name}:{function} gives a {type(network).__name__}, not a torch.nn.Module")
    return network


def _parts(architecture: str) -> tuple[str, str]:
    form = _FORM.fullmatch(architecture)
    if form is None:
        given = shortened(architecture.removeprefix(PYTHON))
        raise InputError(f"{given!r} is not MODULE:FACTORY, as in mypackage.networks:wide_resnet")
    return form["module"], form["factory"]
