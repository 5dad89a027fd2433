"""Perturbations of the input, one family a file: adversarial training's axis, and the search behind PGD evaluation.

A new one is a file here and nothing else: its fields become settings of a recipe and options of the
command line.
"""

from sam_bench.perturb.inputs.base import INPUT_PERTURBATIONS, USUAL_L2, InputPerturbation, NoInputPerturbation
from sam_bench.perturb.inputs.fgsm import FGSM, NFGSM
from sam_bench.perturb.inputs.losses import (
    LossPerExample,
    at_least_float32,
    cross_entropy,
    input_gradient,
    kl_divergence,
    not_finite,
)
from sam_bench.perturb.inputs.noise import GaussianNoise
from sam_bench.perturb.inputs.pgd import PGD, check_restarts
from sam_bench.registry import import_all

import_all(__name__, __path__)

__all__ = [
    "FGSM",
    "INPUT_PERTURBATIONS",
    "NFGSM",
    "PGD",
    "USUAL_L2",
    "GaussianNoise",
    "InputPerturbation",
    "LossPerExample",
    "NoInputPerturbation",
    "at_least_float32",
    "check_restarts",
    "cross_entropy",
    "input_gradient",
    "kl_divergence",
    "not_finite",
]
