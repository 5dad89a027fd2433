"""Training: a recipe becomes weights."""

from sam_bench.training.loop import Trained, fit
from sam_bench.training.method import PARTS, Method, build_method, override, settings_of_methods
from sam_bench.training.recipes import load_recipe, recipe_names, recipe_text
from sam_bench.training.state import RunConfig, RunState

__all__ = [
    "PARTS",
    "Method",
    "RunConfig",
    "RunState",
    "Trained",
    "build_method",
    "fit",
    "load_recipe",
    "override",
    "recipe_names",
    "recipe_text",
    "settings_of_methods",
]
