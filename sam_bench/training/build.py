"""A recipe, built: every name turned into the component it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from sam_bench.averaging import AVERAGES, Averaging
from sam_bench.errors import InputError, unknown_name, with_field
from sam_bench.objectives import OBJECTIVES, Objective
from sam_bench.perturb import INPUT_PERTURBATIONS, WEIGHT_PERTURBATIONS, InputPerturbation, WeightPerturbation
from sam_bench.perturb.inputs import USUAL_L2
from sam_bench.records import Augmentation, ComponentSpec, Radius, Recipe, first_problem
from sam_bench.registry import Registry
from sam_bench.training.optimizers import OPTIMIZERS, Optimizer
from sam_bench.training.schedules import SCHEDULES, Schedule

PARTS: dict[str, Registry[Any]] = {
    "inputs": INPUT_PERTURBATIONS,
    "weights": WEIGHT_PERTURBATIONS,
    "objective": OBJECTIVES,
    "averaging": AVERAGES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}
"""The fields of a recipe that name a component, each with the registry it is looked up in."""

_FOLLOW_EPS = ("step_size", "noise_eps")  # settings of `inputs` that mean something beside its eps only

PLAIN = ("epochs", "batch_size")
"""The fields of a recipe that are numbers of the run itself."""


@dataclass(frozen=True)
class BuiltRecipe:
    """One point on the two axes, with everything around it."""

    recipe: Recipe
    inputs: InputPerturbation
    weights: WeightPerturbation
    objective: Objective
    averaging: Averaging
    optimizer: Optimizer
    schedule: Schedule

    @property
    def search_passes(self) -> tuple[float, float]:
        """Forward and backward passes per example that the search of inputs takes; none if the objective ignores it."""
        return self.inputs.passes if self.objective.sees_perturbed else (0, 0)

    @property
    def passes_per_epoch(self) -> float:
        """Forward-backward passes per training example and epoch: 1 for standard training."""
        learned = self.weights.passes_with(self.objective.passes)
        return self.inputs.steps_per_batch * (sum(self.search_passes) + sum(learned)) / 2


def build_recipe(recipe: Recipe) -> BuiltRecipe:
    """Check a recipe and build its components; `recipe` in the result has every default filled in.

    Raises:
        InputError: A component or setting is unknown, a value is out of range, or two parts do not fit together;
            names the field.
    """
    parts = {field: registry.build(getattr(recipe, field)) for field, registry in PARTS.items()}
    resolved = recipe.model_copy(update={field: part.spec() for field, part in parts.items()})
    built = BuiltRecipe(recipe=resolved, **parts)
    _refuse_impossible(built)
    return built


def _refuse_impossible(built: BuiltRecipe) -> None:
    """Refuse parts that are valid alone, but together teach nothing or not what the recipe says."""
    objective = built.objective
    if objective.compares_inputs and built.inputs.reach == 0:
        moving = ", ".join(name for name in INPUT_PERTURBATIONS.names() if name != "none")
        how = "has none" if built.inputs.method == "none" else f"moves none: its {built.inputs.method} has radius 0"
        raise InputError(
            f"objective {objective.method!r} compares clean with perturbed inputs, and the recipe {how}; "
            f"choose inputs among {moving}, or objective cross-entropy"
        )
    if objective.clean_only and built.inputs.method != "none":
        raise InputError(
            f"objective {objective.method!r} looks at the clean inputs alone, so the recipe's {built.inputs.method} "
            "would do nothing; choose inputs none, or another objective"
        )
    crop = built.recipe.augmentation
    if crop.mixup or crop.cutmix:
        for part in (built.objective, built.weights):
            if not part.takes_mixed:
                raise InputError(f"{part.method} needs one label an image; leave out `mixup` and `cutmix`")
    begins, epochs = getattr(built.weights, "start_epoch", 0), built.recipe.epochs
    if begins >= epochs:
        raise InputError(
            f"is not before the end of {epochs} {'epoch' if epochs == 1 else 'epochs'}, so that "
            f"{built.weights.method} would never perturb the weights",
            field="start_epoch",
            value=begins,
            hint=f"give `start_epoch={epochs - 1}` or less, or more `epochs`",
        )
    built.averaging.check(epochs)


def override(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with settings replaced.

    A key is the bare name of a setting ("rho", "eps", "lr", "epochs"), looked up among the methods
    that the recipe uses; the name of a part ("weights", "optimizer"), whose value is another method's
    name; or both with a dot ("weights.rho"). Where `eps` is replaced, the step size and the noise that
    the recipe gives stay in proportion to it, unless they are replaced, too.

    Raises:
        InputError: No part of the recipe has such a setting; says which methods would.
    """
    fields: dict[str, Any] = {field: getattr(recipe, field) for field in (*PARTS, *PLAIN)}
    augmentation = recipe.augmentation.model_dump()
    # Parts first: a new method decides which settings there are.
    for key in sorted(settings, key=lambda key: key not in PARTS):
        value = settings[key]
        if key in PARTS:
            if not isinstance(value, str):
                raise InputError(
                    f"must be the name of a method, not {value!r}; its settings stand beside it", field=key
                )
            PARTS[key].get(value)
            if value != fields[key].method:
                fields[key] = ComponentSpec(method=value)
        elif key in PLAIN:
            fields[key] = value
        elif key in augmentation:
            augmentation[key] = value
        else:
            part, setting = _locate(key, fields)
            spec: ComponentSpec = fields[part]
            fields[part] = ComponentSpec(method=spec.method, **{**spec.settings, setting: value})
    _refuse_radius_of_another_norm(recipe.inputs, fields["inputs"], {key.rpartition(".")[2] for key in settings})
    fields["inputs"] = _in_proportion(recipe.inputs, fields["inputs"], {key.rpartition(".")[2] for key in settings})
    try:
        return Recipe.model_validate(
            recipe.model_dump()
            | {"augmentation": Augmentation(**augmentation).model_dump()}
            | _dumped(fields)
            | _words(recipe, fields)
        )
    except ValidationError as error:
        raise InputError(with_field(first_problem(error))) from error


def _words(recipe: Recipe, fields: Mapping[str, Any]) -> dict[str, str]:
    """What is said of a recipe; where a part of what it teaches was replaced, its own words are no longer true."""
    replaced = [
        f"{part} {fields[part].method}"
        for part in ("inputs", "weights", "objective", "averaging")
        if fields[part].method != getattr(recipe, part).method
    ]
    if not replaced:
        return {}
    changed = ", ".join(replaced)
    source = f"{recipe.source}; changed: {changed}" if recipe.source else f"changed: {changed}"
    return {"summary": f"the recipe {recipe.name} with {changed}", "good_for": "", "source": source}


def _refuse_radius_of_another_norm(before: ComponentSpec, after: ComponentSpec, given: set[str]) -> None:
    """Refuse a norm that is changed alone: 8/255 is much in Linf and nothing in L2, 128/255 the other way round."""
    norm, was = (spec.settings.get("norm", "Linf") for spec in (after, before))
    usual = {"L2": USUAL_L2, "Linf": "papers train with 8/255"}
    if before.method == after.method and norm != was and norm in usual and "norm" in given and "eps" not in given:
        raise InputError(
            f"does not fit: the recipe's eps {before.settings.get('eps', '8/255')} is one of {was}",
            field="norm",
            value=norm,
            hint=f"give `eps`, too ({usual[norm]})",
        )


def _in_proportion(before: ComponentSpec, after: ComponentSpec, given: set[str]) -> ComponentSpec:
    """The perturbation of the inputs, its steps and its noise as large beside the new radius as beside the old."""
    if "eps" not in given or "eps" not in before.settings or before.method != after.method:
        return after
    try:
        old, new = Radius(before.settings["eps"]), Radius(after.settings["eps"])
        following = {
            key: Radius(after.settings[key])
            for key in _FOLLOW_EPS
            if key not in given and after.settings.get(key) is not None
        }
    except (TypeError, ValueError):
        return after  # whose validation says what is wrong
    if old in (0, new):
        return after
    scaled = {key: _scaled(length, new / old, like=new) for key, length in following.items()}
    return ComponentSpec(method=after.method, **{**after.settings, **scaled})


def _scaled(length: Radius, ratio: float, *, like: Radius) -> Radius:
    text = str(like)
    return Radius(f"{255 * length * ratio:.6g}/255" if text.endswith("/255") else f"{length * ratio:.6g}")


def _dumped(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.model_dump() if isinstance(value, ComponentSpec) else value for key, value in fields.items()}


def _locate(key: str, fields: Mapping[str, Any]) -> tuple[str, str]:
    part, _, setting = key.rpartition(".")
    if part and part not in PARTS:
        raise unknown_name("part of a recipe", part, PARTS)
    for candidate, registry in PARTS.items():
        if part in ("", candidate) and setting in registry.get(fields[candidate].method).model_fields:
            return candidate, setting
    owners = {
        candidate: ", ".join(repr(cls.method) for cls in registry if setting in cls.model_fields)
        for candidate, registry in PARTS.items()
        if any(setting in cls.model_fields for cls in registry)
    }
    if not owners:
        known = {name for registry in PARTS.values() for cls in registry for name in cls.model_fields}
        raise unknown_name("setting", key, known | set(PLAIN) | set(Augmentation.model_fields))
    used = ", ".join(f"{field} {fields[field].method!r}" for field in PARTS)
    belongs = "; ".join(f"{candidate} {methods}" for candidate, methods in owners.items())
    raise InputError(f"does not apply: it belongs to {belongs}, and this is {used}", field=setting)


def settings_of_methods() -> dict[str, list[tuple[str, str, Any]]]:
    """Every setting a recipe can have, for the command line's options.

    Returns:
        Setting name to a list of (part, method, pydantic field), one for each method that has it.
    """
    found: dict[str, list[tuple[str, str, Any]]] = {}
    for part, registry in PARTS.items():
        for cls in registry:
            for name, field in cls.model_fields.items():
                found.setdefault(name, []).append((part, cls.method, field))
    return found
