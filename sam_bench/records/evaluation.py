"""EvaluationRecord: what an attack did to a checkpoint, example by example."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from sam_bench.errors import shortened
from sam_bench.records.fields import SCHEMA_VERSION, Fraction01, Name, Norm, Radius, Record, Sha256
from sam_bench.records.sampling import Sampled, sampling_of

ROBUST = "robust"
MISCLASSIFIED = "misclassified"


class SecondAttack(Record):
    """What a different strong attack did to the examples that stayed robust under the first."""

    attack: str = Field(description="which attack")
    engine: str = Field(description="the implementation that ran, with its version")
    settings: dict[str, Any] = Field(default_factory=dict, description="steps, restarts of the attack")
    robust_accuracy: Fraction01 = Field(description="share of all examples that stayed robust under both attacks")
    gap: Fraction01 = Field(description="by how much that is lower than the record's robust accuracy")
    broken: list[int] = Field(description="the examples it broke, as indices of `verdicts`, ascending")
    seconds: float = Field(ge=0)


class EvaluationRecord(Record):
    """One attack at one radius on one checkpoint.

    `verdicts` is the evidence; every accuracy is computed from it and checked against it when a
    record is read.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str = Field(description="MODEL as given to `evaluate`")
    checkpoint_sha256: Sha256 = Field(description="SHA-256 of the weights file, an external state dict or module")
    architecture_sha256: Sha256 | None = Field(
        default=None, description="fingerprint of the architecture, mean and std included; none for a bare module"
    )
    dataset: Name
    dataset_fingerprint: Sha256 = Field(description="SHA-256 over the test images and labels used")
    sorted_by_class: bool = Field(
        default=False, description="the labels ascend: where not all were used, they are of every class in turn"
    )
    attack: str = Field(description="'autoattack', 'pgd', 'fgsm'")
    version: str = Field(description="which version of the attack ('standard'; '' where there is one)")
    engine: str = Field(description="the implementation that ran, with its version")
    engine_revision: int | None = Field(
        default=None, description="of sam-bench's engine; null for others, and for records from before there was one"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="steps, step size, restarts of the attack")
    norm: Norm
    eps: Radius
    eps_float: float = Field(ge=0, description="eps as the number that was used")
    seed: int
    batch_size: int = Field(ge=1)
    precision: Literal["fp32"] = "fp32"
    n_examples: int = Field(ge=1)
    carried: int = Field(
        default=0,
        ge=0,
        description="examples not attacked at this radius, because the same run broke them in a smaller ball",
    )
    clean_accuracy: Fraction01
    robust_accuracy: Fraction01
    accuracy_after: dict[str, Fraction01] = Field(description="robust accuracy left after each attack, in order")
    warnings: list[str] = Field(default_factory=list, description="the attack's warnings about its result")
    seconds: float = Field(ge=0)
    device: str
    packages: dict[str, str]
    created: str = Field(description="UTC, ISO 8601")
    command: str = ""
    verdicts: list[str] = Field(
        description="per example, in the test set's order: 'robust', 'misclassified' (clean), or what broke it"
    )
    second_opinion: SecondAttack | None = Field(
        default=None,
        description="a different attack on what stayed robust, where it was asked for; it changes no verdict",
    )

    sampled: Sampled | None = Field(
        default=None, description="what is known of the examples on which FAB-T and Square were not run"
    )

    @property
    def broken(self) -> dict[int, str]:
        """The examples that an attack broke: place in the data set to the attack."""
        return {place: verdict for place, verdict in enumerate(self.verdicts) if verdict not in (ROBUST, MISCLASSIFIED)}

    @model_validator(mode="after")
    def _numbers_follow_from_verdicts(self) -> EvaluationRecord:
        if len(self.verdicts) != self.n_examples:
            raise ValueError(f"verdicts has {len(self.verdicts)} entries where n_examples is {self.n_examples}")
        reserved = sorted({ROBUST, MISCLASSIFIED} & set(self.accuracy_after))
        if reserved:
            raise ValueError(
                f"accuracy_after names an attack {reserved[0]!r}, which is what an unbroken example is called"
            )
        allowed = {ROBUST, MISCLASSIFIED, *self.accuracy_after}
        unknown = sorted(set(self.verdicts) - allowed)
        if unknown:
            raise ValueError(f"verdicts names {shortened(unknown[0])!r}, which is not among {sorted(allowed)}")
        left = self.n_examples - self.verdicts.count(MISCLASSIFIED)
        self._expect("clean_accuracy", self.clean_accuracy, left)
        for attack, accuracy in self.accuracy_after.items():
            left -= self.verdicts.count(attack)
            self._expect(f"accuracy_after[{attack!r}]", accuracy, left)
        self._expect("robust_accuracy", self.robust_accuracy, left)
        if abs(self.eps_float - float(self.eps)) > 1e-12:
            raise ValueError(f"eps_float is {self.eps_float}, but eps {self.eps} is {float(self.eps)}")
        if self.second_opinion is not None:
            self._check_second_attack(self.second_opinion, left)
        if self.sampled is not None:
            self._check_sample(self.sampled)
        return self

    def _check_second_attack(self, second: SecondAttack, left: int) -> None:
        robust = {index for index, verdict in enumerate(self.verdicts) if verdict == ROBUST}
        broken = second.broken
        if broken != sorted(set(broken)) or not robust.issuperset(broken):
            raise ValueError("second_opinion.broken must name, in ascending order, examples whose verdict is 'robust'")
        self._expect("second_opinion.robust_accuracy", second.robust_accuracy, left - len(broken))
        self._expect("second_opinion.gap", second.gap, len(broken))

    def _check_sample(self, found: Sampled) -> None:
        inside = set(found.examples)
        expected = sampling_of(
            self.verdicts, ("fab-t", "square"), [index in inside for index in range(self.n_examples)]
        )
        if found != expected:
            raise ValueError("sampled does not follow from the verdicts")
        if any(verdict in ("fab-t", "square") and index not in inside for index, verdict in enumerate(self.verdicts)):
            raise ValueError("sampled.examples lacks an example that FAB-T or Square broke")

    def _expect(self, field: str, stated: float, count: int) -> None:
        if abs(stated - count / self.n_examples) > 1e-9:
            raise ValueError(f"{field} is {stated}, but the verdicts give {count}/{self.n_examples}")


def accuracies(verdicts: list[str], attacks: list[str]) -> dict[str, Any]:
    """The accuracy fields of a record, computed from its verdicts.

    Args:
        verdicts: One per example: 'robust', 'misclassified' or an attack's name.
        attacks: The attacks in the order they ran.

    Returns:
        `clean_accuracy`, `robust_accuracy` and `accuracy_after`, as `EvaluationRecord` takes them.
    """
    total = len(verdicts)
    left = total - verdicts.count(MISCLASSIFIED)
    clean = left / total
    after = {}
    for attack in attacks:
        left -= verdicts.count(attack)
        after[attack] = left / total
    return {"clean_accuracy": clean, "robust_accuracy": left / total, "accuracy_after": after}


def adversarial_path(record_file: Path) -> Path:
    """Where the adversarial examples of a record lie, if they were kept: `RECORD.adversarial.npz`."""
    return record_file.with_suffix(".adversarial.npz")
