"""Perturbations of the weights, one a file: SAM's axis.

A new one is a file here and nothing else: its fields become settings of a recipe and options of the
command line.
"""

import importlib
import pkgutil

from sam_bench.perturb.weights.ascent import Ascent, scale_to
from sam_bench.perturb.weights.base import (
    WEIGHT_PERTURBATIONS,
    NoWeightPerturbation,
    WeightPerturbation,
    displaced,
    global_norm,
)
from sam_bench.perturb.weights.loss import BatchLoss, Losses, Score

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "WEIGHT_PERTURBATIONS",
    "Ascent",
    "BatchLoss",
    "Losses",
    "NoWeightPerturbation",
    "Score",
    "WeightPerturbation",
    "displaced",
    "global_norm",
    "scale_to",
]
