"""Objectives, one a file: what scores a (perturbed) batch. A new one is a file here and nothing else."""

import importlib
import pkgutil

from sam_bench.objectives.base import OBJECTIVES, Objective
from sam_bench.objectives.cross_entropy import CrossEntropy
from sam_bench.objectives.mart import MART
from sam_bench.objectives.trades import TRADES

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["MART", "OBJECTIVES", "TRADES", "CrossEntropy", "Objective"]
