"""Named recipes: one YAML file each, ours in the package, the user's anywhere."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml
from pydantic import ValidationError

from sam_bench.errors import InputError, unknown_name
from sam_bench.records import Recipe, first_problem
from sam_bench.training.method import PARTS


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("sam_bench") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a recipe that comes with the package.

    Raises:
        InputError: There is none of that name; names the nearest and all.
    """
    names = recipe_names()
    if name not in names:
        raise unknown_name("recipe", name, names)
    return (resources.files("sam_bench") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def load_recipe(recipe: str | Path | Recipe) -> Recipe:
    """A recipe by name, or from a YAML file of the user's.

    Raises:
        InputError: Unknown name, unreadable file, not YAML, or a wrong field; names it.
    """
    if isinstance(recipe, Recipe):
        return recipe
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or isinstance(recipe, Path):
        try:
            text, origin, stem = path.read_text(encoding="utf-8"), str(path), path.stem
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read recipe {path}: {getattr(error, 'strerror', None) or error}") from error
    else:
        text, origin, stem = recipe_text(str(recipe)), f"recipe {recipe}", str(recipe)
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{origin} is not YAML: {str(error).replace(chr(10), ' ')}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{origin} must be a mapping with at least `summary`; see `sam-bench recipes show standard`")
    for key, value in fields.items():
        if key not in Recipe.model_fields:
            raise InputError(f"{origin}: {unknown_name('field', str(key), Recipe.model_fields)}")
        if key in PARTS and isinstance(value, str):
            raise InputError(f"{origin}: {key} must be a mapping such as {{method: {value}}}")
    try:
        return Recipe.model_validate({"name": stem} | fields)
    except ValidationError as error:
        raise InputError(f"{origin}: {first_problem(error)}") from error
