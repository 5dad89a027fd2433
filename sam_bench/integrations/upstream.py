"""AutoAttack as its authors wrote it, under whichever name it is installed, one attack and one batch at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from sam_bench.errors import unknown_name
from sam_bench.integrations.finder import is_shim

# Which part of an AutoAttack object runs an attack, and what is set in it before.
STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "apgd-ce": ("apgd", {"loss": "ce"}),
    "apgd-dlr": ("apgd", {"loss": "dlr"}),
    "fab": ("fab", {"targeted": False}),
    "square": ("square", {}),
    "apgd-t": ("apgd_targeted", {}),
    "fab-t": ("fab", {"targeted": True, "n_restarts": 1}),
}


class Messages:
    """Stands in for upstream's logger: keeps the warnings, lets the rest go."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, message: str) -> None:
        """What pyautoattack calls."""
        self.warnings.append(message)

    def log(self, message: str) -> None:
        """What autoattack calls, for warnings and progress alike."""
        if message.startswith("Warning: "):
            self.warnings.append(message.removeprefix("Warning: "))

    def info(self, message: str) -> None:
        """Progress, which we count ourselves."""

    debug = info


def package() -> str:
    """Name of the package that runs: 'autoattack' where that is really installed, else 'pyautoattack'."""
    spec = find_spec("autoattack")
    # Somebody's alias of pyautoattack under the other name has pyautoattack's interface.
    real = spec is not None and spec.name == "autoattack" and not is_shim(spec)
    return "autoattack" if real else "pyautoattack"


def package_and_version() -> str:
    """As a record names the engine: 'pyautoattack 0.2.0'."""
    name = package()
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:  # a checkout on the path, not installed
        return f"{name} (unknown version)"


def build(model: Any, *, norm: str, eps: float, seed: int, version: str, device: torch.device) -> Any:
    """Upstream's AutoAttack object, silent, its settings those of `version`.

    Its parts `apgd`, `apgd_targeted`, `fab` and `square` can be set before `run_attack`; its logger is
    a `Messages`.
    """
    name = package()
    settings: dict[str, Any] = {"norm": norm, "eps": eps, "seed": seed, "device": device, "version": version}
    if name == "autoattack":
        suite = import_module(name).AutoAttack(model, verbose=False, **settings)
    else:
        # Its constructor announces a named version through logging; set afterwards, it is quiet.
        suite = import_module(name).AutoAttack(model, attacks=[], **{**settings, "version": "custom"})
        suite.verbose, suite.version = False, version
        suite._set_version(version)
    set_logger(suite, Messages())
    return suite


def set_logger(suite: Any, logger: Any) -> None:
    """Let everything in an AutoAttack object speak to `logger`."""
    suite.logger = suite.apgd.logger = suite.apgd_targeted.logger = logger


def checks() -> Any:
    """The installed package's module of checks."""
    return import_module(f"{package()}.checks")


@contextmanager
def clean_checks() -> Iterator[None]:
    """Give AutoAttack's check for dynamic defences a clean start, and undo what it leaves behind.

    It counts calls in a table that is never reset, so that one dynamic model would mark every later
    one, and it takes the interpreter's trace function away from debuggers and coverage.
    """
    tables = [
        module.funcs
        for name in ("autoattack.checks", "pyautoattack.checks")
        if (module := sys.modules.get(name)) is not None
    ]
    tracer = sys.gettrace()
    _reset(tables)
    try:
        yield
    finally:
        _reset(tables)
        sys.settrace(tracer)


def _reset(tables: list[dict[str, int]]) -> None:
    for table in tables:
        table.update(dict.fromkeys(table, 0))


@contextmanager
def gradients_kept(model: Any) -> Iterator[None]:
    """Give the parameters' `.grad` back as it was: FAB leaves its own in every parameter that takes one."""
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def check_defence(suite: Any, x: Tensor, y: Tensor, *, batch_size: int) -> int:
    """Upstream's checks of the model on the first batch, in its order; they speak to the suite's logger.

    Args:
        x: Inputs, float32 [N, ...] in [0, 1], on any device.
        y: Labels, int64 [N].

    Returns:
        The number of classes.
    """
    module = checks()
    first, labels = x[:batch_size].to(suite.device), y[:batch_size].to(suite.device)
    if suite.version != "rand":
        module.check_randomized(suite.get_logits, first, labels, bs=batch_size, logger=suite.logger)
    classes = int(module.check_range_output(suite.get_logits, first, logger=suite.logger))
    with clean_checks():
        module.check_dynamic(suite.model, first, False, logger=suite.logger)
    return classes


def run_attack(suite: Any, attack: str, x: Tensor, y: Tensor) -> Tensor:
    """One attack on one batch, exactly as `run_standard_evaluation` would run it on this batch.

    Args:
        suite: What `build` returned, or any AutoAttack object.
        attack: One of `STEPS`.
        x: Inputs, float32 [B, C, H, W] in [0, 1], on the suite's device.
        y: Their labels, int64 [B], on the suite's device.

    Returns:
        Candidates, float32 [B, C, H, W]; the clean input where none was found.
    """
    part, settings = STEPS[attack]
    attacker = getattr(suite, part)
    for name, value in settings.items():
        setattr(attacker, name, value)
    attacker.seed = suite.get_seed()
    with torch.no_grad():
        candidates: Tensor = attacker.perturb(x, y)
    return candidates.detach()


def refuse_unknown_attacks(attacks: list[str]) -> None:
    """Stop before any work for a name that is none.

    Raises:
        InputError: One of `attacks` is not one of AutoAttack's; names the nearest.
    """
    for attack in attacks:
        if attack not in STEPS:
            raise unknown_name("attack in attacks_to_run", attack, STEPS)
