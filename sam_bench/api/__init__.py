"""The user's verbs: `train`, `evaluate`, `load_model`, `build_leaderboard`. Each composes the rooms.

What they take is declared once, in `specs`. The command line is these functions with options; nothing it does is
out of reach here.
"""

from sam_bench.api.autoattack import AutoAttack
from sam_bench.api.boards import build_leaderboard, serve, submit
from sam_bench.api.evidence import add_evidence
from sam_bench.api.exporting import Exported, export_robustbench
from sam_bench.api.importing import ImportResult, add_model, import_model
from sam_bench.api.listing import attack_families, attack_names, list_recipes, methods_by_part, settings_of_attacks
from sam_bench.api.model_and_data import is_named_dataset, load_model
from sam_bench.api.sharing import pull_model, push_model
from sam_bench.api.specs import DataSpec, EvalSpec, SweepSpec, TrainSpec
from sam_bench.api.sweeping import SweepResult, SweepRow
from sam_bench.api.sweeping import as_json as sweep_as_json
from sam_bench.api.training import TrainResult
from sam_bench.api.verbs import analyze, evaluate, evaluate_curve, sweep, train
from sam_bench.api.verifying import check_pull_request, verify_entry
from sam_bench.training import load_recipe, recipe_text, settings_of_methods

__all__ = [
    "AutoAttack",
    "DataSpec",
    "EvalSpec",
    "Exported",
    "ImportResult",
    "SweepResult",
    "SweepRow",
    "SweepSpec",
    "TrainResult",
    "TrainSpec",
    "add_evidence",
    "add_model",
    "analyze",
    "attack_families",
    "attack_names",
    "build_leaderboard",
    "check_pull_request",
    "evaluate",
    "evaluate_curve",
    "export_robustbench",
    "import_model",
    "is_named_dataset",
    "list_recipes",
    "load_model",
    "load_recipe",
    "methods_by_part",
    "pull_model",
    "push_model",
    "recipe_text",
    "serve",
    "settings_of_attacks",
    "settings_of_methods",
    "submit",
    "sweep",
    "sweep_as_json",
    "train",
    "verify_entry",
]
