"""The grid of a sweep: every combination of values becomes a run with a name of its own."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_bench.api.arguments import check_lengths
from sam_bench.api.naming import default_name
from sam_bench.api.training import train
from sam_bench.errors import InputError, unknown_name
from sam_bench.records import Augmentation, Recipe
from sam_bench.seeds import check_seed
from sam_bench.training import PARTS, build_method, load_recipe, override, settings_of_methods

LARGEST = 1000  # runs of a sweep

_OF_A_RUN = {
    "name",
    "run_dir",
    "resume",
    "reporter",
    "command",
    "settings",
    "arch_options",
    "zoo",
    "data_dir",
    "device",
}
_ARGUMENTS = set(inspect.signature(train).parameters) - _OF_A_RUN
_IN_THE_NAME = {"recipe", "arch", "width"}  # by what `train` calls a run itself


@dataclass(frozen=True)
class Run:
    """A point of the grid.

    Attributes:
        name: Of the model and its folder.
        varies: Its values of what differs among the runs.
        arguments: What `train` is given.
    """

    name: str
    varies: Mapping[str, Any]
    arguments: Mapping[str, Any]


def plan_runs(grid: Mapping[str, Sequence[Any]], *, arch_options: Mapping[str, Any]) -> list[Run]:
    """The runs of a grid, each with a name of its own; arguments and errors as for `sweep`."""
    known = {*settings_of_methods(), *Augmentation.model_fields, *PARTS, "epochs", "batch_size"}
    for key in grid:
        if key not in known | _ARGUMENTS | {"width"}:
            raise unknown_name("setting", key, known | _ARGUMENTS | {"width"})
    count = math.prod(len(values) for values in grid.values())
    if not 1 <= count <= LARGEST:
        sizes = " x ".join(f"{len(values)} {key}" for key, values in grid.items() if len(values) != 1)
        raise InputError(f"a sweep has 1 to {LARGEST:,} runs, not {count:,} ({sizes}); take values away or make two")
    runs: dict[str, Run] = {}
    recipes: dict[tuple[Any, ...], Recipe] = {}  # a file is read once, however many runs follow it
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        varies = {key: value for key, value in point.items() if len(grid[key]) > 1}
        arguments: dict[str, Any] = {key: value for key, value in point.items() if key in _ARGUMENTS}
        arguments["arch_options"] = dict(arch_options) | {k: v for k, v in point.items() if k == "width"}
        arguments["settings"] = {k: v for k, v in point.items() if k not in _ARGUMENTS and k != "width"}
        named = arguments.get("recipe", "standard"), arguments.get("faithful", False)
        if named not in recipes:
            recipes[named] = load_recipe(named[0], faithful=named[1])
        run = Run(_name(recipes[named], arguments, varies), varies, arguments)
        if run.name in runs:
            alike = " and ".join(_told(each.varies) for each in (runs[run.name], run))
            raise InputError(f"two runs of the sweep would be called {run.name}: {alike}; take one of them away")
        runs[run.name] = run
    return list(runs.values())


def _name(base: Recipe, arguments: Mapping[str, Any], varies: Mapping[str, Any]) -> str:
    """What `train` would call the run, and what varies besides; refuses what `train` would."""
    method = build_method(override(base, arguments["settings"]))
    check_lengths(method, allow_large=arguments.get("allow_large_eps", False))
    check_seed(arguments.get("seed", 0))
    name = default_name(
        method.recipe,
        base,
        arguments.get("arch", "preactresnet18"),
        arguments["arch_options"],
        seed=0 if "seed" in varies else arguments.get("seed", 0),
    )
    told = _IN_THE_NAME | {"inputs", "weights"} | {*method.recipe.inputs.settings, *method.recipe.weights.settings}
    for key, value in varies.items():
        if key not in told:
            name += "-" + re.sub(r"[^A-Za-z0-9_-]", "", f"{key}{_text(value)}".replace("/", "over"))
    return name if len(name) <= 100 else f"{name[:91]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
    """A value in a name: of a path the last part, of several their row."""
    if isinstance(value, (list, tuple)):
        return "-".join(map(str, value))
    text = str(value)
    return Path(text).stem if text.endswith((".npz", ".yaml", ".yml")) or Path(text).is_dir() else text


def _told(varies: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in varies.items()) or "one without settings"
