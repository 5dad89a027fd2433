"""Evaluation: a problem's log and an executor become a record, verdict by verdict."""

from sam_bench.evaluation.executors import Executor, Local, OnRay, Processes, Torchrun, chosen_executor
from sam_bench.evaluation.log import Log
from sam_bench.evaluation.problem import Problem, check_fit
from sam_bench.evaluation.results import second_attack_for
from sam_bench.evaluation.runner import evaluate_curve_of

__all__ = [
    "Executor",
    "Local",
    "Log",
    "OnRay",
    "Problem",
    "Processes",
    "Torchrun",
    "check_fit",
    "chosen_executor",
    "evaluate_curve_of",
    "second_attack_for",
]
