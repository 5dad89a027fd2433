"""SweepSpec: a training, an evaluation or none, and which fields take several values."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from sam_bench.api.specs.base import Spec, option
from sam_bench.api.specs.checks import Place, Text, Whole, named
from sam_bench.api.specs.evaluate import EvalSpec
from sam_bench.api.specs.shared import RunSpec
from sam_bench.api.specs.train import TrainSpec, in_words, settings_of_recipes
from sam_bench.errors import InputError, unknown_name
from sam_bench.records import Recipe
from sam_bench.training import PARTS

LARGEST = 1000  # runs of a sweep


@dataclass(frozen=True)
class Run:
    """A point of the grid.

    Attributes:
        name: Of the model and its folder.
        varies: Its values of what differs among the runs.
        spec: How it is trained.
    """

    name: str
    varies: Mapping[str, Any]
    spec: TrainSpec


class SweepSpec(Spec):
    """A grid of trainings, and what each model is attacked with."""

    positional: ClassVar[tuple[str, ...]] = ("grid",)

    train: TrainSpec = TrainSpec()
    """What all runs have in common."""
    varies: Mapping[str, tuple[Any, ...]] = {}
    """What differs: a field of the training, a setting or part of the recipe, or `width`, with its values."""
    evaluation: EvalSpec | None = None
    """The attack on each model; None for none."""

    workers: Annotated[
        int | None,
        Whole(1),
        option("Runs side by side.", group="device", default="1; with Ray: as many as there is room for"),
    ] = None
    executor: Annotated[
        Literal["local", "ray"],
        option("Where the work is done: on this machine, or on a Ray cluster.", group="device"),
    ] = "local"
    ray_address: Annotated[
        str | None,
        Text("auto, local or HOST:PORT"),
        option(
            "auto or HOST:PORT of a Ray cluster; local: start one here.",
            group="device",
            metavar="ADDRESS",
            default="$RAY_ADDRESS, else local",
        ),
    ] = None
    run_dir: Annotated[Path, Place(), option("Folder of the runs' folders.")] = Path("runs")

    @classmethod
    def of(cls, *given: Any, **fields: Any) -> SweepSpec:
        """The spec for a grid, or a spec and changes.

        Args:
            given: A mapping of names to values; or a spec.
            fields: Fields of this spec, of the training that all runs share, and of the attack (`attack_fields`).

        Raises:
            InputError: A name is unknown or a value wrong; names the field.
        """
        if given and isinstance(given[0], cls):
            return super().of(*given, **fields)
        grid = dict(given[0] if given else fields.pop("grid", {}))
        _check_grid(grid)
        own = {name: fields.pop(name) for name in cls.options().keys() & fields.keys()}
        attack = {name: fields.pop(name) for name in attack_fields().keys() & fields.keys()}
        once = {name: values[0] for name, values in grid.items() if len(values) == 1}
        train = _with(TrainSpec(), {**fields, **once})
        spec = cls(
            train=train,
            varies={name: tuple(values) for name, values in grid.items() if len(values) != 1},
            evaluation=_evaluation(train, attack) if attack.get("attack") is not None else None,
            **own,
        )
        spec.check()
        return spec

    def check(self) -> None:
        """Refuse an attack that cannot be made; the runs are checked when they are listed."""
        if self.evaluation is not None:
            try:
                self.evaluation.check()
            except InputError as error:
                raise _of_the_attack(error) from error

    def runs(self) -> list[Run]:
        """Every combination of the values, each with a name that no other has.

        Raises:
            InputError: There are none or too many, two have one name, or one cannot be trained.
        """
        count = math.prod(len(values) for values in self.varies.values())
        if not 1 <= count <= LARGEST:
            sizes = " x ".join(f"{len(values)} {key}" for key, values in self.varies.items())
            raise InputError(
                f"a sweep has 1 to {LARGEST:,} runs, not {count:,} ({sizes}); take values away or make two"
            )
        runs: dict[str, Run] = {}
        recipes: dict[tuple[str, bool], Recipe] = {}
        for values in itertools.product(*self.varies.values()):
            varies = dict(zip(self.varies, values, strict=True))
            spec = _with(self.train, varies)
            spec.read_with(recipes)
            self._check_run(spec)
            run = Run(spec.default_name(varies), varies, spec)
            if run.name in runs:
                alike = " and ".join(_told(each.varies) for each in (runs[run.name], run))
                raise InputError(f"two runs of the sweep would be called {run.name}: {alike}; take one of them away")
            runs[run.name] = run
        return list(runs.values())

    def _check_run(self, spec: TrainSpec) -> None:
        try:
            spec.check()
        except InputError as error:
            inputs = spec.settings.get("inputs", spec.base.inputs.method)
            if (
                self.evaluation is None
                or "eps" not in spec.settings
                or "eps" in PARTS["inputs"].get(inputs).model_fields
            ):
                raise
            hint = "the radius of the attack on the trained models is `attack_eps`"
            raise InputError(error.problem, field=error.field, value=error.value, hint=hint) from error


def attack_fields() -> dict[str, str]:
    """What a sweep calls the fields of its attack: as `EvalSpec` does, unless the training has one of that name."""
    taken = {*TrainSpec.model_fields, *settings_of_recipes()}
    return {
        f"attack_{name}" if name in taken else name: name
        for name, each in EvalSpec.options().items()
        if each.sweep and name not in RunSpec.model_fields
    }


def _check_grid(grid: Mapping[str, Sequence[Any]]) -> None:
    options = TrainSpec.options()
    offered = {name for name, each in options.items() if each.sweep is not None}
    known = offered | {*settings_of_recipes(), "width"}
    for name, values in grid.items():
        if name not in known:
            raise unknown_name("setting", name, known)
        if isinstance(values, (str, Mapping)) or not isinstance(values, Sized):  # a text would be its letters
            raise InputError(f"must be a list of values, as in {{'rho': [0.1, 0.2]}}, not {named(values)}", field=name)
        if name in offered and not options[name].sweep and len(values) > 1:
            raise InputError("has one value for all runs of a sweep", field=name, value=list(values))


def _with(train: TrainSpec, values: Mapping[str, Any]) -> TrainSpec:
    """The training with other values: each a field, `width`, or a setting of the recipe."""
    fields = {name: value for name, value in values.items() if name in TrainSpec.model_fields}
    options = dict(fields.pop("arch_options", train.arch_options))
    options |= {name: value for name, value in values.items() if name == "width"}
    settings = dict(fields.pop("settings", train.settings))
    settings |= {name: value for name, value in values.items() if name not in {*TrainSpec.model_fields, "width"}}
    return train.but(**fields, arch_options=options, settings=settings)


def _evaluation(train: TrainSpec, attack: Mapping[str, Any]) -> EvalSpec:
    """The attack's spec: its own fields, and what says nothing of the run from the training."""
    shared = [name for name, each in RunSpec.options().items() if not each.identity]
    fields: dict[str, Any] = {name: getattr(train, name) for name in shared}
    own = {attack_fields()[name]: value for name, value in attack.items() if value is not None}
    try:
        return EvalSpec(**fields, **own)
    except InputError as error:
        raise _of_the_attack(error) from error


def _of_the_attack(error: InputError) -> InputError:
    """The error with the fields as a sweep calls them."""
    names = {name: own for own, name in attack_fields().items()}

    def renamed(text: str) -> str:
        return re.sub(r"`(\w+)", lambda found: f"`{names.get(found[1], found[1])}", text)

    field = names.get(error.field, error.field) if error.field else None
    return InputError(renamed(error.problem), field=field, value=error.value, hint=renamed(error.hint))


def _told(varies: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {in_words(value)}" for key, value in varies.items()) or "one without settings"
