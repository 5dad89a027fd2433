"""What there is to choose from: recipes, methods, attacks and their settings."""

from __future__ import annotations

from typing import Any

from pydantic.fields import FieldInfo

from sam_bench.attacks import ATTACKS
from sam_bench.training import (
    PARTS,
    build_method,
    load_recipe,
    recipe_names,
)


def list_recipes() -> list[dict[str, Any]]:
    """The recipes that come with the package: name, summary, source, axes, passes relative to standard."""
    rows = []
    for name in recipe_names():
        method = build_method(load_recipe(name))
        attack, training = method.inputs.passes, method.weights.passes
        rows.append(
            {
                "name": name,
                "summary": method.recipe.summary,
                "source": method.recipe.source,
                "inputs": method.recipe.inputs.method,
                "weights": method.recipe.weights.method,
                "passes": (sum(attack) + sum(training)) / 2,
            }
        )
    return rows


def methods_by_part() -> dict[str, list[str]]:
    """The parts of a recipe that name a method (`inputs`, `weights`, …), each with the names there are."""
    return {part: registry.names() for part, registry in PARTS.items()}


def attack_names() -> list[str]:
    """The attacks `evaluate` knows, other packages' included."""
    return ATTACKS.names()


def settings_of_attacks() -> dict[str, list[tuple[str, FieldInfo]]]:
    """Every setting an attack can have: its name to the attacks that have it, each with its pydantic field."""
    found: dict[str, list[tuple[str, FieldInfo]]] = {}
    for attack in ATTACKS:
        for name, field in attack.model_fields.items():
            found.setdefault(name, []).append((attack.method, field))
    return found
