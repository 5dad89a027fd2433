"""Objectives, one a file: what scores a (perturbed) batch. A new one is a file here and nothing else."""

from sam_bench.objectives.base import OBJECTIVES, Objective
from sam_bench.objectives.cross_entropy import CrossEntropy
from sam_bench.objectives.gradalign import GradAlign
from sam_bench.objectives.input_gradient import InputGradient
from sam_bench.objectives.mart import MART
from sam_bench.objectives.trades import TRADES
from sam_bench.registry import import_all

import_all(__name__, __path__)

__all__ = ["MART", "OBJECTIVES", "TRADES", "CrossEntropy", "GradAlign", "InputGradient", "Objective"]
