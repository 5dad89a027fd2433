"""The zoo: cards and weights on disk, and the ways to a model, ours, RobustBench's or timm's.

Names are imported when first used, so that `sam_bench.zoo.hooks` costs nothing at `import sam_bench`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sam_bench.zoo.paths import zoo_dir

if TYPE_CHECKING:
    from sam_bench.zoo.checkpoint import read_state_dict
    from sam_bench.zoo.external import refuse_other_preprocessing
    from sam_bench.zoo.loading import LoadedModel, load_model
    from sam_bench.zoo.names import Place, full_name, robustbench_name, timm_name
    from sam_bench.zoo.register import hidden_robustbench_model, register_zoo
    from sam_bench.zoo.store import Zoo
    from sam_bench.zoo.weights import state_dict_sha256
    from sam_bench.zoo.weights_check import Problem

__all__ = [
    "LoadedModel",
    "Place",
    "Problem",
    "Zoo",
    "full_name",
    "hidden_robustbench_model",
    "load_model",
    "read_state_dict",
    "refuse_other_preprocessing",
    "register_zoo",
    "robustbench_name",
    "state_dict_sha256",
    "timm_name",
    "zoo_dir",
]

_HOMES = {
    "LoadedModel": "loading",
    "Place": "names",
    "Problem": "weights_check",
    "Zoo": "store",
    "full_name": "names",
    "hidden_robustbench_model": "register",
    "load_model": "loading",
    "read_state_dict": "checkpoint",
    "refuse_other_preprocessing": "external",
    "register_zoo": "register",
    "robustbench_name": "names",
    "state_dict_sha256": "weights",
    "timm_name": "names",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
