"""The names under which AutoAttack is registered: `autoattack`, and two cheaper relatives that are not it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator
from torch import nn

from sam_bench.attacks.autoattack.engine import Engine, RNGName
from sam_bench.attacks.autoattack.model_calls import refuse_without_compiler
from sam_bench.attacks.autoattack.suite import Version, attacks_of, build_suite, fit_to_classes
from sam_bench.attacks.base import ATTACKS, ExampleAttack
from sam_bench.attacks.events import AttackWarning, Event, Examples
from sam_bench.attacks.reference import ReferenceAutoAttack
from sam_bench.attacks.verify import Verifier
from sam_bench.attacks.warnings import warning
from sam_bench.perturb.ball import Ball
from sam_bench.records import Norm

_VERSION = (
    "standard (what leaderboards use), plus (more restarts, untargeted FAB and DLR), "
    "rand (for models that are random: averages gradients over 20 passes) or custom (see suite)"
)
_SUITE = "for version custom: which attacks, in order: apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square"
_RNG = (
    "counter (an example's random draws depend on the seed and its place in the data set alone) or upstream "
    "(as pyautoattack draws for this seed and batch size)"
)
_COMPILE = "run the model through torch.compile: a minute at the start, faster afterwards; for long evaluations"


class FastAttack(ExampleAttack):
    """Base of what our engine runs; a subclass says which."""

    compile: Literal["on", "off"] = Field(default="off", description=_COMPILE)

    @model_validator(mode="after")
    def _can_be_run(self) -> FastAttack:
        _ = self.attacks  # raises where version and suite do not fit
        if self.compile == "on" and not self._own_search:
            raise ValueError("compile: on goes with engine fast and rng counter only, as upstream computes without it")
        return self

    @property
    def _own_search(self) -> bool:
        """Whether nothing of it has to be as upstream does it."""
        return True

    @abstractmethod
    def engine_to_run(self, norm: Norm) -> Engine:
        """The engine, set up for a norm."""

    def check_model(self, norm: Norm, *, classes: int, shape: tuple[int, int, int]) -> None:
        engine = self.engine_to_run(norm)
        engine.check_images(norm, *shape[1:])
        fit_to_classes(engine.suite, classes)

    def check_device(self, device: torch.device) -> None:
        if self.compile == "on":
            refuse_without_compiler(device)

    @property
    def needs_gradients(self) -> bool:
        """All of its attacks do but Square."""
        return self.attacks != ["square"]

    @property
    def per_example(self) -> bool:
        """Unless batches are composed as upstream composes them."""
        return self._own_search

    def events(self, model: nn.Module, examples: Examples, verifier: Verifier, **how: Any) -> Iterator[Event]:
        ball: Ball = how["ball"]
        return self.engine_to_run(ball.norm).events(model, examples, verifier, **how)


@ATTACKS.register("autoattack")
class AutoAttack(FastAttack):
    """AutoAttack (Croce and Hein 2020, arXiv 2003.01690): an ensemble of attacks without parameters to tune."""

    version: Version = Field(default="standard", description=_VERSION)
    suite: tuple[str, ...] = Field(default=(), description=_SUITE)
    engine: Literal["fast", "reference"] = Field(
        default="fast", description="fast (ours) or reference (pyautoattack itself)"
    )
    rng: RNGName = Field(default="counter", description=_RNG)

    @field_validator("suite", mode="before")
    @classmethod
    def _at_commas(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _draws_are_ours(self) -> AutoAttack:
        if self.engine == "reference" and "rng" in self.model_fields_set:
            raise ValueError(
                f"rng: {self.rng} goes with engine fast only, as pyautoattack draws its random numbers itself; leave "
                "it away"
            )
        return self

    @model_serializer(mode="wrap")
    def _settings_that_apply(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        given: dict[str, Any] = dump(self)
        if self.engine == "reference":
            given.pop("rng", None)
        return given

    @property
    def _reference(self) -> ReferenceAutoAttack:
        return ReferenceAutoAttack(self.version, self.suite)

    @property
    def implementation(self) -> str:
        """What runs, with its version: 'sam-bench 0.1.0' or 'pyautoattack 0.2.0'."""
        return super().implementation if self.engine == "fast" else self._reference.engine

    @property
    def _own_search(self) -> bool:
        return self.engine == "fast" and self.rng == "counter"

    @property
    def attacks(self) -> list[str]:
        """Names of the attacks of this version, in order."""
        return attacks_of(self.version, self.suite)

    def engine_to_run(self, norm: Norm) -> Engine:
        return Engine(build_suite(self.version, self.suite, norm=norm), rng=self.rng, compiled=self.compile == "on")

    def check_model(self, norm: Norm, *, classes: int, shape: tuple[int, int, int]) -> None:
        """With what the engine asked for can do."""
        if self.engine == "reference":
            self._reference.check_images(norm, *shape[1:])
        super().check_model(norm, classes=classes, shape=shape)

    def events(self, model: nn.Module, examples: Examples, verifier: Verifier, **how: Any) -> Iterator[Event]:
        """With the engine asked for."""
        if self.engine == "fast":
            return super().events(model, examples, verifier, **how)
        return self._reference.events(model, examples, verifier, **how)


@ATTACKS.register("autoattack-bf16")
class AutoAttackBF16(FastAttack):
    """AutoAttack standard, searched in bfloat16, each success checked in float32: quicker where the chip has it."""

    @property
    def attacks(self) -> list[str]:
        """Those of version standard."""
        return attacks_of("standard")

    @property
    def warnings(self) -> list[AttackWarning]:
        """That this is not AutoAttack."""
        return [warning("bf16")]

    def engine_to_run(self, norm: Norm) -> Engine:
        return Engine(build_suite("standard", norm=norm), bf16=True, compiled=self.compile == "on")


@ATTACKS.register("autoattack-screen")
class AutoAttackScreen(FastAttack):
    """AutoAttack's first two attacks, APGD-CE and APGD-T: a quick upper bound on its robust accuracy."""

    @property
    def attacks(self) -> list[str]:
        """Those two."""
        return ["apgd-ce", "apgd-t"]

    @property
    def warnings(self) -> list[AttackWarning]:
        """That this is an upper bound."""
        return [warning("upper-bound", attacks=" and ".join(self.attacks))]

    def engine_to_run(self, norm: Norm) -> Engine:
        suite = [config for config in build_suite("standard", norm=norm) if config.attack in self.attacks]
        return Engine(suite, compiled=self.compile == "on")
