"""Everything a user can say, declared once: a training, an evaluation, a sweep.

A field carries its type, its check, its help text, and whether it is part of the identity, of the default name and
of a sweep. The command line's options, Python's keywords, names, resume checks and sweeps are made from the fields.
"""

from sam_bench.api.specs.base import Option, Spec, option
from sam_bench.api.specs.evaluate import EvalSpec
from sam_bench.api.specs.shared import DataSpec, RunSpec
from sam_bench.api.specs.sweep import SweepSpec
from sam_bench.api.specs.train import TrainSpec

__all__ = ["DataSpec", "EvalSpec", "Option", "RunSpec", "Spec", "SweepSpec", "TrainSpec", "option"]
