"""Perturbations of the weights, one a file: SAM's axis.

A new one is a file here and nothing else: its fields become settings of a recipe and options of the
command line.
"""

from sam_bench.perturb.weights.ascent import Ascent, scale_to
from sam_bench.perturb.weights.base import (
    WEIGHT_PERTURBATIONS,
    NoWeightPerturbation,
    WeightPerturbation,
    displaced,
    global_norm,
)
from sam_bench.perturb.weights.loss import Backward, BatchLoss, PassCount
from sam_bench.perturb.weights.runner import Runner, Score, StepContext
from sam_bench.registry import import_all

import_all(__name__, __path__)

__all__ = [
    "WEIGHT_PERTURBATIONS",
    "Ascent",
    "Backward",
    "BatchLoss",
    "NoWeightPerturbation",
    "PassCount",
    "Runner",
    "Score",
    "StepContext",
    "WeightPerturbation",
    "displaced",
    "global_norm",
    "scale_to",
]
