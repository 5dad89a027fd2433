"""ModelCard: where a checkpoint comes from, what it cost, and how to check that it is the one meant."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, model_validator

from sam_bench.records.fields import SCHEMA_VERSION, Fraction01, Name, Record, Sha256, Threat
from sam_bench.records.recipe import Recipe

Precision = Literal["fp32", "bf16"]
RobustBenchDataset = Literal["cifar10", "cifar100", "imagenet"]


class Architecture(Record):
    """Everything needed to build the network again; `sam_bench.models.create_model` takes it.

    Inputs are float tensors [batch, in_channels, image_size, image_size] in [0, 1]; mean and std
    are applied by the model's first layer.
    """

    name: str = Field(description="a registered one ('preactresnet18'), 'timm:NAME' or 'python:MODULE:FACTORY'")
    num_classes: int = Field(ge=2)
    in_channels: int = Field(default=3, ge=1)
    image_size: int = Field(default=32, ge=4, description="height and width in pixels")
    mean: tuple[float, ...] = Field(default=(), description="per channel, of inputs in [0, 1]")
    std: tuple[float, ...] = Field(default=(), description="per channel, of inputs in [0, 1]")
    options: dict[str, Any] = Field(default_factory=dict, description="what the architecture takes: width, patch_size")

    @property
    def sha256(self) -> str:
        """SHA-256 of all fields: with the weights' digest it identifies what a model computes.

        Fields at their defaults are left out, so that a field added later leaves today's digests as they are.
        """
        fields = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class Cost(Record):
    """What training cost, counted in passes so that it compares across machines.

    A pass is one example going through the network once, forward or backward. Passes are given per
    training example over the whole run: 30 epochs of standard training are 30 forward and 30
    backward.
    """

    train_forward: float = Field(ge=0, description="forward passes per example, weights' side")
    train_backward: float = Field(ge=0, description="backward passes per example, weights' side")
    weight_gradients: float | None = Field(
        default=None,
        ge=0,
        description="gradients by the weights computed per example, those by some of them as their share of all; "
        "null if they were not counted",
    )
    attack_forward: float = Field(default=0, ge=0, description="forward passes per example, inputs' side")
    attack_backward: float = Field(default=0, ge=0, description="backward passes per example, inputs' side")
    seconds: float = Field(ge=0, description="wall-clock time of the training steps, without validation")
    device: str = Field(description="name of the device the seconds were taken on")
    energy_joules: float | None = Field(
        default=None, ge=0, description="energy that the devices measured meanwhile; null if some of it is unknown"
    )

    @property
    def passes(self) -> float:
        """Forward-backward passes per example: one of each counts one (SAM: 2 a step, PGD-10 AT: 11)."""
        forward = self.train_forward + self.attack_forward
        return (forward + self.train_backward + self.attack_backward) / 2


class WeightsFile(Record):
    """The file with the weights, beside the card."""

    file: Name
    size: int = Field(ge=1, description="bytes")
    sha256: Sha256


class Imported(Record):
    """Where weights come from that were not trained here."""

    file: str = Field(description="name of the file that was read")
    sha256: Sha256 = Field(description="of that file")


class ExtraData(Record):
    """Further images that it was trained on."""

    file: str = Field(description="the file's name")
    fraction: float = Field(gt=0, lt=1, description="of every batch")
    examples: int = Field(ge=1, description="images they were drawn from")
    fingerprint: Sha256 = Field(description="SHA-256 over these images and labels")


class ModelCard(Record):
    """`model_zoo/<dataset>/<threat>/<name>.json`.

    What is not known of an imported model is left out: its training images. Its epochs, seed and cost are 0.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name
    dataset: Name
    threat: Threat = Field(default="Linf", description="the threat model it is listed under")
    robustbench_dataset: RobustBenchDataset | None = Field(
        default=None, description="the RobustBench data set whose inputs and classes it shares"
    )
    architecture: Architecture
    parameters: int = Field(ge=1, description="number of trainable parameters")
    recipe: Recipe
    epochs: int = Field(ge=0, description="epochs behind these weights")
    seed: int
    precision: Precision
    devices: int = Field(default=1, ge=1, description="devices that shared every batch, when the run ended")
    sync_ascent: bool = Field(
        default=False, description="SAM's ascent was by the whole batch's gradient on all of them"
    )
    sync_bn: bool = Field(default=False, description="BatchNorm was over the whole batch on all of them")
    micro_batch: int | None = Field(default=None, ge=1, description="examples differentiated at a time, if not all")
    init: str | None = Field(default=None, description="the model whose weights it started from; null: random ones")
    init_sha256: Sha256 | None = Field(default=None, description="SHA-256 of the tensors that it started from")
    extra_data: ExtraData | None = Field(default=None, description="further images trained on; null: none")
    additional_data: bool = Field(
        default=False, description="RobustBench's field: other images had a part in it, here or in what it started from"
    )
    train_examples: int | None = Field(default=None, ge=1)
    train_fingerprint: Sha256 | None = Field(
        default=None, description="SHA-256 over the training images and labels used"
    )
    test_fingerprint: Sha256 = Field(description="SHA-256 over the test images and labels of the clean accuracy")
    clean_accuracy: Fraction01 = Field(description="on the whole test set, in [0, 1]")
    cost: Cost
    packages: dict[str, str] = Field(description="versions of Python and the packages that decide the numbers")
    weights: WeightsFile
    architecture_sha256: Sha256 | None = Field(
        default=None, description="SHA-256 of `architecture` when the model was saved; null on older cards"
    )
    imported: Imported | None = Field(default=None, description="where the weights come from; null if trained here")
    classes: tuple[str, ...] | None = Field(
        default=None, description="name of each class, by label; null where they are not known"
    )
    created: str = Field(description="UTC, ISO 8601")
    command: str = Field(default="", description="the command that made it")
    authors: str = ""
    license: str = "MIT"
    paper_title: str = ""
    paper_link: str = ""
    venue: str = "Unpublished"

    @model_validator(mode="after")
    def _what_was_trained_here_says_on_what(self) -> ModelCard:
        for field in ("train_examples", "train_fingerprint"):
            if self.imported is None and getattr(self, field) is None:
                raise ValueError(f"{field} is missing: only a model that was imported can lack it")
        if self.classes is not None and len(self.classes) != self.architecture.num_classes:
            raise ValueError(f"classes names {len(self.classes)} where there are {self.architecture.num_classes}")
        return self

    @property
    def passes(self) -> float | None:
        """Forward-backward passes per training example over the run; None where that is not known."""
        return None if self.imported else self.cost.passes
