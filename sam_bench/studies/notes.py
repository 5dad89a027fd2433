"""What a study measures that is no evaluation record: distances, a matched temperature, a published fault."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sam_bench.records import ROBUST, Norm, Radius
from sam_bench.records.fields import SCHEMA_VERSION, Fraction01, Name, Record, Sha256
from sam_bench.versions import package_versions, timestamp


class Note(Record):
    """What every measurement says about itself."""

    schema_version: Literal[1] = SCHEMA_VERSION
    checkpoint_sha256: Sha256 = Field(description="SHA-256 of the weights file that was measured")
    dataset: Name
    dataset_fingerprint: Sha256 = Field(description="SHA-256 over the test images and labels used")
    n_examples: int = Field(ge=1)
    seconds: float = Field(ge=0)
    device: str
    packages: dict[str, str]
    created: str = Field(description="UTC, ISO 8601")
    command: str = ""


class Clean(Note):
    """What a model gets right without an attack, on the whole test set."""

    right: str = Field(pattern="^[01]+$", description="a digit for each test image; 1: right")

    @property
    def verdicts(self) -> list[bool]:
        """For each image whether it is right."""
        return [digit == "1" for digit in self.right]


class Matched(Note):
    """A temperature, and the wrapped model that was attacked in place of the model itself."""

    temperature: float = Field(gt=0, description="the logits are divided by it")
    target: Fraction01 = Field(description="mean confidence of `standard` of the same seed, on the same images")
    confidence_before: Fraction01
    confidence_after: Fraction01
    module_sha256: Sha256 = Field(description="what the records name as their checkpoint")
    target_sha256: Sha256 | None = Field(default=None, description="SHA-256 of the weights file of that `standard`")


class Distances(Note):
    """For each image the length of the smallest perturbation that was found to change the prediction."""

    norm: Norm
    settings: dict[str, Any] = Field(default_factory=dict, description="of the search")
    distances: list[float | None] = Field(
        description="in units of inputs in [0, 1]; 0: misclassified as it is; null: none was found"
    )


class Fault(Note):
    """AutoAttack on normalised images, as the published script calls it."""

    norm: Norm
    eps: Radius
    mean: tuple[float, ...] = Field(description="the images were normalised with")
    std: tuple[float, ...]
    engine: str
    seed: int
    head: bool = Field(default=True, description="whether the test set begins with these images; a sorted one does not")
    clean: list[bool] = Field(description="right on the normalised image")
    clipped: list[bool] = Field(description="right on the normalised image clipped to [0, 1], without an attack")
    verdicts: list[str] = Field(description="'robust', 'misclassified', or the attack that broke it")

    @property
    def robust(self) -> list[bool]:
        """Right after all attacks, as the script counts."""
        return [verdict == ROBUST for verdict in self.verdicts]


def conditions(*, seconds: float, device: str, command: str) -> dict[str, Any]:
    """The fields of a note that say how it was made."""
    return {
        "seconds": seconds,
        "device": device,
        "packages": package_versions(),
        "created": timestamp(),
        "command": command,
    }
