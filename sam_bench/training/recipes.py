"""Named recipes: one YAML file each, ours in the package, the user's anywhere.

Beside the fields of a `Recipe` a file may have `faithful`: settings that differ in the published code
the recipe follows, applied when they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sam_bench.errors import InputError, unknown_name
from sam_bench.records import Recipe, first_problem
from sam_bench.training.method import PARTS, override

ALIASES: Mapping[str, str] = {"at-pgd10": "at", "at-linf-8": "at"}
"""Other names of a recipe: that of its attack, and its place in the grid of radii."""


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("sam_bench") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def recipe_text(name: str, *, faithful: bool = False) -> str:
    """The YAML of a recipe that comes with the package, by its name or another that it has.

    Args:
        name: The recipe.
        faithful: In its faithful form, every field written out; see `load_recipe`.

    Raises:
        InputError: There is none of that name, or it has no faithful form; names the nearest and all.
    """
    name = ALIASES.get(name, name)
    names = recipe_names()
    if name not in names:
        raise unknown_name("recipe", name, [*names, *ALIASES])
    if faithful:
        fields = load_recipe(name, faithful=True).model_dump(mode="json")
        return yaml.safe_dump(fields, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    return (resources.files("sam_bench") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def load_recipe(recipe: str | Path | Recipe, *, faithful: bool = False) -> Recipe:
    """A recipe by name, or from a YAML file of the user's.

    Args:
        recipe: Name, file, or a `Recipe`, which is given back.
        faithful: With the settings of the published code, as the file's `faithful` has them, in the
            place of those we would rather use; the recipe's name then ends in `-faithful`.

    Raises:
        InputError: Unknown name, unreadable file, not YAML, a wrong field, or no faithful form; names it.
    """
    if isinstance(recipe, Recipe):
        if faithful:
            raise InputError(f"--faithful: recipe {recipe.name} is given by its fields; give a name or a YAML file")
        return recipe
    fields, origin, stem = _read(recipe)
    published = fields.pop("faithful", None)
    for key, value in fields.items():
        if key not in Recipe.model_fields:
            raise InputError(f"{origin}: {unknown_name('field', str(key), [*Recipe.model_fields, 'faithful'])}")
        if key in PARTS and isinstance(value, str):
            raise InputError(f"{origin}: {key} must be a mapping such as {{method: {value}}}")
    if published is not None and not isinstance(published, dict):
        raise InputError(f"{origin}: faithful must be a mapping of settings such as {{bn_mode: update}}")
    try:
        found = Recipe.model_validate({"name": stem} | fields)
    except ValidationError as error:
        raise InputError(f"{origin}: {first_problem(error)}") from error
    if not faithful:
        return found
    if published is None:
        raise InputError(f"--faithful: {origin} has no `faithful` settings; {', '.join(faithful_names())} have")
    return override(found, published).model_copy(update={"name": f"{found.name}-faithful"})


def faithful_names() -> list[str]:
    """The recipes of the package that have a faithful form."""
    return [name for name in recipe_names() if "faithful" in _read(name)[0]]


def _read(recipe: str | Path) -> tuple[dict[str, Any], str, str]:
    """What a recipe's file says, what to call it in a message, and its name."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or isinstance(recipe, Path):
        try:
            text, origin, stem = path.read_text(encoding="utf-8"), str(path), path.stem
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read recipe {path}: {getattr(error, 'strerror', None) or error}") from error
    else:
        stem = ALIASES.get(recipe, recipe)
        text, origin = recipe_text(stem), f"recipe {recipe}"
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{origin} is not YAML: {str(error).replace(chr(10), ' ')}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{origin} must be a mapping with at least `summary`; see `sam-bench recipes show standard`")
    return fields, origin, stem
