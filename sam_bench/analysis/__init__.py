"""What can be asked of models and records, one analysis a file."""

from sam_bench.analysis.base import (
    ANALYSES,
    Analysis,
    Context,
    FreeAnalysis,
    Json,
    ModelAnalysis,
    NamedRecord,
    RecordAnalysis,
)
from sam_bench.registry import import_all

import_all(__name__, __path__)

__all__ = [
    "ANALYSES",
    "Analysis",
    "Context",
    "FreeAnalysis",
    "Json",
    "ModelAnalysis",
    "NamedRecord",
    "RecordAnalysis",
]
