"""sam-bench: how much adversarial robustness does a training method buy, at what cost?

Importing it is cheap. It makes RobustBench importable where it is not, and registers the models of
the zoo with timm and RobustBench once those are imported. The verbs are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sam_bench import integrations
from sam_bench._version import __version__
from sam_bench.zoo.hooks import install_hooks

if TYPE_CHECKING:
    from sam_bench.api import (
        AutoAttack,
        add_model,
        analyze,
        build_leaderboard,
        evaluate,
        evaluate_curve,
        export_robustbench,
        import_model,
        load_model,
        pull_model,
        push_model,
        submit,
        sweep,
        train,
    )

__all__ = [
    "AutoAttack",
    "__version__",
    "add_model",
    "analyze",
    "build_leaderboard",
    "evaluate",
    "evaluate_curve",
    "export_robustbench",
    "import_model",
    "load_model",
    "pull_model",
    "push_model",
    "submit",
    "sweep",
    "train",
]

integrations.install()
install_hooks()


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("sam_bench.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
