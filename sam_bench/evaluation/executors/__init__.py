"""Where examples are attacked: in this process, in several, under `torchrun`, or on a Ray cluster."""

from sam_bench.evaluation.executors.base import Executor
from sam_bench.evaluation.executors.local import Local
from sam_bench.evaluation.executors.processes import Processes
from sam_bench.evaluation.executors.ray import OnRay, chosen_executor
from sam_bench.evaluation.executors.torchrun import Torchrun

__all__ = ["Executor", "Local", "OnRay", "Processes", "Torchrun", "chosen_executor"]
