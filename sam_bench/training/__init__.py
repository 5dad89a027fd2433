"""Training: a recipe becomes weights."""

from sam_bench.training.build import PARTS, BuiltRecipe, build_recipe, override, settings_of_methods
from sam_bench.training.loop import Ready, Saving, Trained, TrainingRun
from sam_bench.training.recipes import load_recipe, recipe_names, recipe_text
from sam_bench.training.state import RunConfig, RunState

__all__ = [
    "PARTS",
    "BuiltRecipe",
    "Ready",
    "RunConfig",
    "RunState",
    "Saving",
    "Trained",
    "TrainingRun",
    "build_recipe",
    "load_recipe",
    "override",
    "recipe_names",
    "recipe_text",
    "settings_of_methods",
]
