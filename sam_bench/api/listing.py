"""What there is to choose from: recipes, methods, attacks and their settings."""

from __future__ import annotations

from typing import Any

from pydantic.fields import FieldInfo

from sam_bench.attacks import ATTACKS
from sam_bench.training import PARTS, build_recipe, load_recipe, recipe_names
from sam_bench.training.recipes import ALIASES, faithful_names


def list_recipes() -> list[dict[str, Any]]:
    """The recipes that come with the package.

    Returns:
        A row each: name, other names (`also`), summary, what it is good for and what not, source, the
        parts that make the method (`inputs`, `weights`, `objective`, `averaging`), passes per example
        and epoch relative to standard training, epochs, and whether it has a faithful form.
    """
    faithful = faithful_names()
    rows = []
    for name in recipe_names():
        method = build_recipe(load_recipe(name))
        rows.append(
            {
                "name": name,
                "also": [alias for alias, meant in ALIASES.items() if meant == name],
                "summary": method.recipe.summary,
                "good_for": method.recipe.good_for,
                "source": method.recipe.source,
                "inputs": method.recipe.inputs.method,
                "weights": method.recipe.weights.method,
                "objective": method.recipe.objective.method,
                "averaging": method.recipe.averaging.method,
                "passes": round(method.passes_per_epoch, 3),
                "epochs": method.recipe.epochs,
                "faithful": name in faithful,
            }
        )
    return rows


def methods_by_part() -> dict[str, list[str]]:
    """The parts of a recipe that name a method (`inputs`, `weights`, …), each with the names there are."""
    return {part: registry.names() for part, registry in PARTS.items()}


def attack_names() -> list[str]:
    """The attacks `evaluate` knows, other packages' included."""
    return ATTACKS.names()


def attack_families() -> list[str]:
    """How names look of attacks that are other packages' own: `torchattacks:NAME`."""
    return ATTACKS.families()


def settings_of_attacks() -> dict[str, list[tuple[str, FieldInfo]]]:
    """Every setting an attack can have: its name to the attacks that have it, each with its pydantic field."""
    found: dict[str, list[tuple[str, FieldInfo]]] = {}
    for attack in ATTACKS:
        for name, field in attack.model_fields.items():
            found.setdefault(name, []).append((attack.method, field))
    return found
