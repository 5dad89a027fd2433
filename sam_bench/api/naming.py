"""What a run is called when nobody says, and what it is said to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sam_bench.perturb.weights.ascent import Ascent
from sam_bench.records import ComponentSpec, Recipe
from sam_bench.training import PARTS, override


def default_name(recipe: Recipe, base: Recipe, arch: str, arch_options: Mapping[str, Any], *, seed: int = 0) -> str:
    """A name that tells runs apart: recipe, the perturbations' settings that differ from it, architecture, seed if any.

    Without dots, which RobustBench's look-up would cut.
    """
    parts = [recipe.name]
    for field in ("weights", "inputs"):
        now: ComponentSpec = getattr(recipe, field)
        before: ComponentSpec = getattr(base, field)
        if now.method != before.method:
            parts.append(now.method)
            before = ComponentSpec(method=now.method)
        usual = _settings(field, before)
        following = usual  # what another eps brings with it need not be told
        if now.method == getattr(base, field).method and "eps" in now.settings:
            following = _settings(field, getattr(override(base, {f"{field}.eps": str(now.settings["eps"])}), field))
        for key, value in now.settings.items():
            if value != (usual if key == "eps" else following).get(key):
                parts.append(f"{key}{value}".replace("/", "over"))
    parts.append(arch.removeprefix("timm:"))
    parts += [f"{'w' if key == 'width' else key}{value}" for key, value in arch_options.items()]
    parts += [f"seed{seed}"] if seed else []
    return re.sub(r"[^A-Za-z0-9_-]", "", "-".join(parts))[:100]


def _settings(field: str, spec: ComponentSpec) -> dict[str, Any]:
    """A part's settings, defaults filled in."""
    settings: dict[str, Any] = PARTS[field].build(spec).spec().settings
    return settings


def describe(recipe: Recipe) -> str:
    """One line that says what a recipe does, settings included."""
    parts = []
    for field in ("inputs", "weights", "averaging"):
        spec: ComponentSpec = getattr(recipe, field)
        if spec.method != "none":
            common = {name: field.default for name, field in Ascent.model_fields.items()}
            told = {key: value for key, value in spec.settings.items() if value not in (None, common.get(key))}
            given = ", ".join(f"{key} {value}" for key, value in told.items())
            parts.append(f"{field} {spec.method} ({given})" if given else f"{field} {spec.method}")
    if not parts:
        parts.append("neither inputs nor weights perturbed")
    if recipe.objective.method == "trades" and recipe.inputs.settings.get("loss") == "cross-entropy":
        parts.append(
            "objective trades over a search that climbs the cross-entropy (its paper's: loss kl, start gaussian)"
        )
    mixing = {name: alpha for name in ("mixup", "cutmix") if (alpha := getattr(recipe.augmentation, name))}
    if mixing:
        parts.append(f"images mixed ({', '.join(f'{name} {alpha:g}' for name, alpha in mixing.items())})")
    epochs = f"{recipe.epochs} epoch{'' if recipe.epochs == 1 else 's'}"
    return f"{'; '.join(parts)}; {epochs}, batch size {recipe.batch_size}"
