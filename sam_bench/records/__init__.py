"""The on-disk contracts: what a recipe, a card, an evaluation and a leaderboard entry are.

Everything shown anywhere is rendered from these records. Each carries a schema version, refuses
unknown fields, and is written atomically.
"""

from sam_bench.records.card import (
    Architecture,
    Cost,
    ExtraData,
    Imported,
    ModelCard,
    Precision,
    RobustBenchDataset,
    WeightsFile,
)
from sam_bench.records.entry import EntryEvidence, EntryRow, LeaderboardEntry
from sam_bench.records.evaluation import (
    MISCLASSIFIED,
    ROBUST,
    EvaluationRecord,
    SecondAttack,
    accuracies,
    adversarial_path,
)
from sam_bench.records.fields import NAME_PATTERN, SCHEMA_VERSION, Name, Norm, Radius, RadiusGiven, Record
from sam_bench.records.io import atomic_file, first_problem, read_record, sha256_file, write_atomic, write_record
from sam_bench.records.recipe import Augmentation, ComponentSpec, Recipe
from sam_bench.records.sampling import Sampled, sample_key, sampling_of
from sam_bench.records.verification import Audit, FileDigest, Manifest, State, VerificationReport, VerifiedRow

__all__ = [
    "MISCLASSIFIED",
    "NAME_PATTERN",
    "ROBUST",
    "SCHEMA_VERSION",
    "Architecture",
    "Audit",
    "Augmentation",
    "ComponentSpec",
    "Cost",
    "EntryEvidence",
    "EntryRow",
    "EvaluationRecord",
    "ExtraData",
    "FileDigest",
    "Imported",
    "LeaderboardEntry",
    "Manifest",
    "ModelCard",
    "Name",
    "Norm",
    "Precision",
    "Radius",
    "RadiusGiven",
    "Recipe",
    "Record",
    "RobustBenchDataset",
    "Sampled",
    "SecondAttack",
    "State",
    "VerificationReport",
    "VerifiedRow",
    "WeightsFile",
    "accuracies",
    "adversarial_path",
    "atomic_file",
    "first_problem",
    "read_record",
    "sample_key",
    "sampling_of",
    "sha256_file",
    "write_atomic",
    "write_record",
]
