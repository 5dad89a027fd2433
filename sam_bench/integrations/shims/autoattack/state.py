"""Shim for `autoattack.state`."""

from sam_bench.integrations.state import EvaluationState

__all__ = ["EvaluationState"]
