"""The two axes: perturb the input (`inputs`), perturb the weights (`weights`)."""

from sam_bench.perturb.ball import Ball
from sam_bench.perturb.inputs import INPUT_PERTURBATIONS, InputPerturbation
from sam_bench.perturb.weights import WEIGHT_PERTURBATIONS, BatchLoss, WeightPerturbation

__all__ = [
    "INPUT_PERTURBATIONS",
    "WEIGHT_PERTURBATIONS",
    "Ball",
    "BatchLoss",
    "InputPerturbation",
    "WeightPerturbation",
]
