"""Evaluation: attacks run over a model become records, verdict by verdict."""

from sam_bench.evaluation.journal import Journal, Known, write_witnesses
from sam_bench.evaluation.on_ray import TASK_SIZE, OnRay, chosen_executor
from sam_bench.evaluation.recording import Recording, broken
from sam_bench.evaluation.run import Evaluation, record_of, run_evaluation, settings_of

__all__ = [
    "TASK_SIZE",
    "Evaluation",
    "Journal",
    "Known",
    "OnRay",
    "Recording",
    "broken",
    "chosen_executor",
    "record_of",
    "run_evaluation",
    "settings_of",
    "write_witnesses",
]
