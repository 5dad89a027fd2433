"""A study's plan: which models are trained, what is measured on them, and the rules of the verdicts.

A plan is a YAML file that is committed before its runs. Here it becomes frozen objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sam_bench.analysis.statistics import Bootstrap
from sam_bench.errors import InputError, unknown_name
from sam_bench.records import Norm, Radius, first_problem
from sam_bench.studies.claims import CLEAN, Claim, Family, Passes

WEI2023 = Path(__file__).with_name("wei2023.yaml")


class Part(BaseModel):
    """Base of everything in a plan: unknown fields are refused, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(Part):
    """A training that is repeated over seeds.

    Attributes:
        recipe: The recipe's name.
        settings: Settings that differ from the recipe.
        arch_options: Options of the network besides its width.
        family: The curve that the row is a point of; rows of a family differ in their strength.
        strength: How much is perturbed.
        epochs: How many times the scale's epochs.
        seeds: Which of the scale's numbers of seeds it gets.
    """

    recipe: str
    settings: Mapping[str, Any] = {}
    arch_options: Mapping[str, Any] = {}
    family: str
    strength: Radius
    epochs: int = Field(default=1, ge=1)
    seeds: Literal["main", "other"] = "other"


class Evaluation(Part):
    """What is measured on every row, or on some of them.

    Attributes:
        attack: An attack's name; it leaves a record for each radius.
        measure: Another measurement, by its name.
        settings: Settings of the attack.
        norm: Norm of the ball, or of the distances.
        eps: Radii.
        temperature: `matched`: logits are divided so that all models are as confident as `standard`.
        fault: A fault of the published evaluation, which is made on purpose.
        rows: `main`: the rows of that many seeds only.
        only: The rows it is for; none: all.
    """

    attack: str | None = None
    measure: Literal["minimum-norm"] | None = None
    settings: Mapping[str, Any] = {}
    norm: Norm = "Linf"
    eps: tuple[Radius, ...] = ()
    temperature: Literal["matched"] | None = None
    fault: Literal["normalised-inputs"] | None = None
    rows: Literal["main"] | None = None
    only: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_kind(self) -> Evaluation:
        if (self.attack is None) == (self.measure is None):
            raise ValueError("must have either attack or measure")
        if (self.attack is None) != (not self.eps):
            raise ValueError("must have eps exactly if it has an attack")
        if self.temperature and self.fault:
            raise ValueError("must not have both temperature and fault")
        return self


class Seeds(Part):
    """How many seeds a row gets: 0, 1, … ."""

    main: int = Field(ge=1)
    other: int = Field(ge=1)


class Scale(Part):
    """How much of the plan is done, and on what.

    Attributes:
        dataset: The data set's name.
        arch: The network's registered name.
        arch_options: Its options besides its width; all of them, as a card has them.
        width: The network's.
        epochs: Of every row, times the row's own number.
        limit_train: Only the first so many training images.
        seeds: How many.
        rows: The rows, if not all.
        leave_out: Rows that are not among them.
        first: Evaluation to its number of test images, the first ones.
    """

    dataset: str
    arch: str = "preactresnet18"
    arch_options: Mapping[str, Any] = {}
    width: int = Field(ge=1)
    epochs: int = Field(ge=1)
    limit_train: int | None = Field(default=None, ge=2)
    seeds: Seeds
    rows: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    first: Mapping[str, int]

    @property
    def network(self) -> dict[str, Any]:
        """All options of the network."""
        return {**self.arch_options, "width": self.width}


class Plan(Part):
    """The whole file; see the comments in `wei2023.yaml`."""

    version: Literal[1]
    title: str
    source: str
    rows: Mapping[str, Row]
    evaluations: Mapping[str, Evaluation]
    scales: Mapping[str, Scale]
    statistics: Bootstrap
    claims: Mapping[str, Claim]

    @model_validator(mode="after")
    def _names_are_known(self) -> Plan:
        if self.rows.get("standard") is None:
            raise ValueError("rows has no row standard, which all others are compared with")
        if CLEAN in self.evaluations:
            raise ValueError("evaluations.clean: the name is taken, every model's clean accuracy is measured")
        for name, evaluation in self.evaluations.items():
            _check_names(f"evaluations.{name}.only", evaluation.only, self.rows)
        for name, claim in self.claims.items():
            self._check_claim(f"claims.{name}", claim)
        for name, scale in self.scales.items():
            _check_names(f"scales.{name}.rows", scale.rows, self.rows)
            _check_names(f"scales.{name}.leave_out", scale.leave_out, self.rows)
            _check_names(f"scales.{name}.first", scale.first, self.evaluations)
            for each in self.evaluations:
                if scale.first.get(each, 0) < 1:
                    raise ValueError(f"scales.{name}.first.{each} must be a number of test images of at least 1")
        return self

    def _check_claim(self, where: str, claim: Claim) -> None:
        families = {row.family for row in self.rows.values()}
        for part in claim.parts:
            sides = (part.a, part.b) if isinstance(part.b, str) else (part.a,)
            _check_names(where, sides, self.rows)
            if isinstance(part.b, Family):
                _check_names(where, [part.b.family], families)
            if isinstance(part, Passes) or part.of == CLEAN:
                continue
            _check_names(where, [part.of], self.evaluations)
            for eps in part.eps:
                if eps not in self.evaluations[part.of].eps:
                    raise ValueError(f"{where} asks for {part.of} at {eps}, a radius that is not attacked")

    def scale(self, name: str) -> Scale:
        """The scale of that name.

        Raises:
            InputError: There is none; names those there are.
        """
        if name not in self.scales:
            raise unknown_name("scale", name, self.scales, field="scale")
        return self.scales[name]


def _check_names(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{where} names {name!r}, which is not there; there are {', '.join(known)}")


class PlanFile(Part):
    """A plan with the file that it came from.

    Attributes:
        path: The file.
        text: Its content.
        plan: What it says.
    """

    path: Path
    text: str
    plan: Plan

    @cached_property
    def sha256(self) -> str:
        """Of the file's content: it says whether the rules are those that were committed."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def load_plan(path: Path = WEI2023) -> PlanFile:
    """Read and check a plan.

    Raises:
        InputError: It cannot be read, or a field is wrong; names the file and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"cannot read the plan {path}: {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"the plan {path} must be a mapping with rows, evaluations, scales, statistics and claims")
    try:
        return PlanFile(path=path, text=text, plan=Plan.model_validate(content))
    except ValidationError as error:
        raise InputError(f"the plan {path} cannot be used: {first_problem(error)}") from error
