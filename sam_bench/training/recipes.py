"""Named recipes: one YAML file each, ours in the package, the user's anywhere.

A file needs neither a name, which is the file's, nor a summary. Beside the fields of a `Recipe` it may have
`faithful`: settings that differ in the published code the recipe follows, applied when they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sam_bench.errors import InputError, unknown_name
from sam_bench.records import Augmentation, ComponentSpec, Recipe, first_problem
from sam_bench.training.build import PARTS, PLAIN, override, settings_of_methods

ALIASES: Mapping[str, str] = {"at-pgd10": "at", "at-linf-8": "at"}
"""Other names of a recipe: that of its attack, and its place in the grid of radii."""


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("sam_bench") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def recipe_text(name: str, *, faithful: bool = False) -> str:
    """The YAML of a recipe: of the package's by its name or another that it has, or of a file of the user's.

    Args:
        name: The recipe, or the file, which is checked as `load_recipe` does.
        faithful: In its faithful form, every field written out; see `load_recipe`.

    Raises:
        InputError: There is none of that name, or it has no faithful form, or the file is wrong; names the
            nearest and all, or the field.
    """
    if _is_file(name) and not faithful:
        load_recipe(name)
        return Path(name).read_text(encoding="utf-8")
    if not _is_file(name):
        name = _known(name)
    if faithful:
        fields = load_recipe(name, faithful=True).model_dump(mode="json")
        return yaml.safe_dump(fields, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    return (resources.files("sam_bench") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def _known(name: str) -> str:
    names, meant = recipe_names(), ALIASES.get(name, name)
    if meant not in names:
        raise unknown_name("recipe", name, [*names, *ALIASES])
    return meant


def _is_file(recipe: str | Path) -> bool:
    return isinstance(recipe, Path) or Path(recipe).suffix in (".yaml", ".yml")


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
            raise InputError(
                f"needs a name or a YAML file: recipe {recipe.name} is given by its fields", field="faithful"
            )
        return recipe
    fields, origin, stem = _read(recipe)
    published = fields.pop("faithful", None)
    try:
        found = _checked(fields, stem)
        if not faithful:
            return found
        if published is not None:
            return override(found, published).model_copy(update={"name": f"{found.name}-faithful"})
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error
    raise InputError(f"does not apply: {origin} has none; {', '.join(faithful_names())} have", field="faithful")


def _checked(fields: Mapping[str, Any], stem: str) -> Recipe:
    """The recipe that a file describes; the file's name and a summary are filled in."""
    for field, content in fields.items():
        _check_field(field, content)
    try:
        found = Recipe.model_validate({"name": stem, "summary": f"the recipe {fields.get('name', stem)}", **fields})
    except ValidationError as error:
        unusable = "name" not in fields and error.errors()[0]["loc"] == ("name",)
        way = "; rename the file, or add name: to it" if unusable else ""
        raise InputError(f"{first_problem(error)}{way}") from error
    for part, registry in PARTS.items():
        spec: ComponentSpec = getattr(found, part)
        known = registry.get(spec.method).model_fields
        for setting in spec.settings:
            if known and setting not in known:
                raise InputError(f"{part}: {unknown_name(f'setting of {spec.method}', setting, known)}")
        registry.build(spec)
    return found


def _check_field(field: str, content: object) -> None:
    """Refuse what YAML allows and no recipe means, with what may be meant."""
    if field not in Recipe.model_fields:
        parts = {name: owners[0][0] for name, owners in settings_of_methods().items()}
        parts |= dict.fromkeys(Augmentation.model_fields, "augmentation")
        if field in parts:
            part = parts[field]
            example = f"{field}: …" if part == "augmentation" else f"method: …, {field}: …"
            raise InputError(f"{field} is a setting of {part}; write {part}: {{{example}}}")
        raise unknown_name("field", str(field), [*Recipe.model_fields, "faithful"])
    if field in PARTS and not isinstance(content, dict):
        method = content if isinstance(content, str) else "none"
        raise InputError(f"{field} must be a mapping such as {{method: {method}}}")
    if field in PLAIN:
        _refuse_comma(field, content)
    if isinstance(content, dict):
        for name, value in content.items():
            if not isinstance(name, str):
                raise InputError(
                    f"{field}: {name!r} is not the name of a setting; between braces a comma begins the next "
                    "setting, and decimals take a point, as in 0.05"
                )
            _refuse_comma(f"{field}.{name}", value)
            if field == "augmentation" and name not in Augmentation.model_fields:
                raise InputError(f"{field}: {unknown_name('setting', name, Augmentation.model_fields)}")


def _refuse_comma(where: str, value: object) -> None:
    if isinstance(value, str) and re.fullmatch(r"-?\d+,\d+", value):
        raise InputError(f"{where}: a number has no comma; decimals take a point, as in 0.05 (given: {value!r})")


def faithful_names() -> list[str]:
    """The recipes of the package that have a faithful form."""
    return [name for name in recipe_names() if "faithful" in _read(name)[0]]


def _read(recipe: str | Path) -> tuple[dict[str, Any], str, str]:
    """What a recipe's file says, what to call it in a message, and its name."""
    path = Path(recipe)
    if _is_file(recipe):
        try:
            text, origin, stem = path.read_text(encoding="utf-8"), str(path), path.stem
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read recipe {path}: {getattr(error, 'strerror', None) or error}") from error
    else:
        stem = _known(str(recipe))
        text, origin = recipe_text(stem), f"recipe {recipe}"
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{origin} is not YAML: {str(error).replace(chr(10), ' ')}") from error
    if not isinstance(fields, dict):
        raise InputError(
            f"{origin} must be a mapping such as `weights: {{method: sam}}`; see `sam-bench recipes show standard`"
        )
    if not isinstance(fields.get("faithful") or {}, dict):
        raise InputError(f"{origin}: faithful must be a mapping of settings such as {{bn_mode: update}}")
    return fields, origin, stem
