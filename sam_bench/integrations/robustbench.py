"""Patches of RobustBench, applied when it is imported.

What `robustbench.benchmark` gains: a device may be given by name, a state path may be text and gives
the right number, AutoAttack can be seeded (`autoattack_seed`), and the corruptions of CIFAR can be measured.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt

from sam_bench.errors import InputError
from sam_bench.integrations.finder import is_shim

_seed: ContextVar[int | None] = ContextVar("autoattack_seed", default=None)


@contextmanager
def autoattack_seed(seed: int) -> Iterator[None]:
    """Seed the AutoAttack that `robustbench.benchmark` runs inside this block.

    RobustBench leaves AutoAttack's seed to the clock, so that no number comes out twice, and has no
    argument for it. With the same seed, batch size and machine, results are the same.

        with autoattack_seed(0):
            robustbench.benchmark(model, n_examples=1000, eps=8 / 255)

    Args:
        seed: Any integer.
    """
    token = _seed.set(seed)
    try:
        yield
    finally:
        _seed.reset(token)


def patch_loaders(module: ModuleType) -> None:
    """Forget the shim for `pkg_resources` once `robustbench.loaders` has it, so that nobody else meets it."""
    found = sys.modules.get("pkg_resources")
    if found is not None and is_shim(found.__spec__):
        del sys.modules["pkg_resources"]


def patch_eval(module: ModuleType) -> None:
    """Patch `robustbench.eval`, just imported. A name that a later RobustBench lacks is left alone."""
    if hasattr(module, "AutoAttack"):
        wrapt.wrap_function_wrapper(module, "AutoAttack", _seeded_engine)
    if hasattr(module, "EvaluationState"):
        module.EvaluationState = _StateReader(module.EvaluationState)  # type: ignore[attr-defined]
    for loaders in getattr(module, "CORRUPTION_DATASET_LOADERS", {}).values():
        for threat, load in loaders.items():
            if "prepr" not in inspect.signature(load).parameters:
                loaders[threat] = _without_preprocessing(load)
    if hasattr(module, "corruptions_evaluation"):
        wrapt.wrap_function_wrapper(module, "corruptions_evaluation", _without_alexnet)
    if hasattr(module, "benchmark"):
        original = module.benchmark
        wrapt.wrap_function_wrapper(module, "benchmark", _with_plain_arguments)
        package = sys.modules.get("robustbench")
        # `robustbench` binds the function by name: reach that, too, where it was imported before us.
        if package is not None and getattr(package, "benchmark", None) is original:
            package.benchmark = module.benchmark  # type: ignore[attr-defined]


def _seeded_engine(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    seed = _seed.get()
    if seed is not None:
        kwargs.setdefault("seed", seed)
    engine = os.environ.get("SAM_BENCH_ENGINE", "upstream")
    if engine not in ("upstream", "fast"):
        raise InputError(f"the environment variable SAM_BENCH_ENGINE must be upstream or fast, not {engine!r}")
    if engine == "fast":
        import sam_bench  # it stands above this room

        wrapped = sam_bench.AutoAttack
    return wrapped(*args, **kwargs)


def _without_preprocessing(load: Callable[..., Any]) -> Callable[..., Any]:
    """CIFAR's loaders take the argument that all are called with under another name, and do not use it."""

    @functools.wraps(load)
    def loaded(*args: Any, prepr: Any = None, **kwargs: Any) -> Any:
        return load(*args, **kwargs)

    return loaded


def _without_alexnet(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Accuracy under corruptions also where no AlexNet was measured, which the mean corruption error is relative to.

    RobustBench's package lacks the file with AlexNet's numbers, and its repository has none for CIFAR. The error is
    then NaN.
    """
    module = sys.modules["robustbench.eval"]
    measured, found = module.clean_accuracy, []

    def noted(*given: Any, **named: Any) -> Any:
        found.append(measured(*given, **named))
        return found[-1]

    module.clean_accuracy = noted  # type: ignore[attr-defined]
    try:
        return wrapped(*args, **kwargs)
    except KeyError as error:
        if error.args != ("AlexNet",):
            raise
        return sum(found) / len(found), math.nan
    finally:
        module.clean_accuracy = measured  # type: ignore[attr-defined]


def _with_plain_arguments(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call `benchmark` with a device and a path where text was given.

    It takes a text for a sequence of devices, which it refuses, and opens the state through the path's methods.
    """
    import torch

    try:
        bound = inspect.signature(wrapped).bind(*args, **kwargs)
    except TypeError:
        return wrapped(*args, **kwargs)  # its own complaint about the arguments
    given = bound.arguments
    if isinstance(given.get("device"), str):
        given["device"] = torch.device(given["device"])
    if isinstance(given.get("aa_state_path"), str):
        given["aa_state_path"] = Path(given["aa_state_path"])
    return wrapped(*bound.args, **bound.kwargs)


class _StateReader(wrapt.ObjectProxy):
    """`EvaluationState` as `benchmark` reads it: the mean of its flags is the robust accuracy."""

    def from_disk(self, path: str | Path) -> Any:
        return _State(self.__wrapped__.from_disk(Path(path)))


class _State(wrapt.ObjectProxy):
    @property
    def robust_flags(self) -> Any:
        # torch refuses the mean of booleans, which is what `benchmark` asks for.
        flags = self.__wrapped__.robust_flags
        return None if flags is None else flags.float()
