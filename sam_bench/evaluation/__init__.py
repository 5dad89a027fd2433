"""Evaluation: attacks run over a model become records, verdict by verdict."""

from sam_bench.evaluation.journal import Journal, Known, write_witnesses
from sam_bench.evaluation.run import Evaluation, record_of, run_evaluation, settings_of

__all__ = ["Evaluation", "Journal", "Known", "record_of", "run_evaluation", "settings_of", "write_witnesses"]
