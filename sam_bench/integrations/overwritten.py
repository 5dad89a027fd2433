"""The old name of `shadowing`, until the branches are merged."""

from sam_bench.integrations.shadowing import FIX as MEND  # until the branches are merged

__all__ = ["MEND"]
