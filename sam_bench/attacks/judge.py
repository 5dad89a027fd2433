"""Until the branches are merged: the names that other rooms still use."""

from sam_bench.attacks.verify import SMALLEST_BATCH, classes_of

__all__ = ["SMALLEST_BATCH", "classes_of"]
