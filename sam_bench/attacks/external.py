"""Other packages' attacks by name, `torchattacks:PGD` or `foolbox:LinfPGD`, where the package is installed.

They search, we verify: what they return is projected into ball and box and classified again.
"""

from __future__ import annotations

import re
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module, metadata
from inspect import isabstract
from types import ModuleType
from typing import Any, ClassVar

import torch
from pydantic import create_model
from torch import Tensor, nn

from sam_bench.attacks.base import ATTACKS, Attack
from sam_bench.attacks.events import Event, Examples, Progress
from sam_bench.attacks.external_settings import parameters, settings_of, unsayable
from sam_bench.attacks.random_state import seed_generators
from sam_bench.attacks.verify import SMALLEST_BATCH, Verifier, pad
from sam_bench.errors import InputError, SamBenchError, unknown_name
from sam_bench.integrations.shadowing import FIX
from sam_bench.perturb.ball import Ball
from sam_bench.records import ROBUST, Norm

Candidates = Callable[[Tensor, Tensor], Any]
"""Inputs [B, ...] and labels [B] to what they hand back as adversarial examples."""

_BOUNDS = re.compile(r"Distance Measure\s*:\s*(.+)")


class ExternalAttack(Attack):
    """Base of attacks that another package searches with; a subclass's fields are the settings of one of them.

    Their draws come from global generators and depend on the batch, so that a run of theirs can neither
    be shared nor continued in the middle.
    """

    package: ClassVar[str]
    theirs: ClassVar[type]

    @property
    def implementation(self) -> str:
        """Their package with its version: 'torchattacks 3.5.1'."""
        try:
            return f"{self.package} {metadata.version(self.package)}"
        except metadata.PackageNotFoundError:  # a checkout on the path, not installed
            return f"{self.package} (unknown version)"

    @abstractmethod
    def norms(self) -> set[str] | None:
        """The norms whose balls it searches; None where it does not say."""

    @abstractmethod
    def prepare(self, model: nn.Module, *, ball: Ball, seed: int, classes: int, device: torch.device) -> Candidates:
        """Their attack, set up; the rest as for `Attack.events`."""

    def check(self, norm: Norm) -> None:
        known = self.norms()
        if known is not None and norm not in known:
            what = f"searches in {' and '.join(sorted(known))}" if known else "is bounded by no norm"
            raise InputError(
                f"`norm={norm!r}`: {self.method} {what}", hint=f"choose another of {self.package}'s attacks"
            )

    def events(
        self,
        model: nn.Module,
        examples: Examples,
        verifier: Verifier,
        *,
        ball: Ball,
        seed: int,
        batch_size: int,
        device: torch.device,
    ) -> Iterator[Event]:
        """Batch after batch; see `Attack.events`.

        Raises:
            SamBenchError: Their code failed, or returned something else than images.
        """
        with torch.no_grad():
            classes = model(pad(examples.x[:1], SMALLEST_BATCH).to(device)).shape[1]
        seed_generators(seed)
        found: list[Tensor] = []
        attack: Candidates | None = None
        for x, y in zip(examples.x.split(batch_size), examples.y.split(batch_size), strict=True):
            with torch.enable_grad(), redirect_stdout(sys.stderr):  # stdout is for results, and they print
                try:
                    attack = attack or self.prepare(model, ball=ball, seed=seed, classes=classes, device=device)
                    found.append(self._images(attack(x.to(device), y.to(device)), x))
                except (SamBenchError, torch.OutOfMemoryError):
                    raise
                except Exception as error:
                    raise SamBenchError(f"{self.method} failed: {type(error).__name__}: {error}") from error
            yield Progress(self.method, sum(map(len, found)), len(examples))
        rows = torch.arange(len(examples))
        broken = verifier.check(rows, torch.cat(found))
        yield from examples.verdicts(broken, self.method)
        yield from examples.verdicts(~broken, ROBUST)

    def _images(self, returned: Any, like: Tensor) -> Tensor:
        if not isinstance(returned, Tensor) or returned.shape != like.shape:
            got = list(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
            raise SamBenchError(f"{self.method} returned {got} instead of images of shape {list(like.shape)}")
        return returned.detach().float().cpu()


class TorchattacksAttack(ExternalAttack):
    """One of torchattacks' (Kim 2020, arXiv 2010.01950)."""

    package: ClassVar[str] = "torchattacks"

    def norms(self) -> set[str] | None:
        """What its documentation says under 'Distance Measure'."""
        said = _BOUNDS.search(self.theirs.__doc__ or "")
        return set(re.findall(r"L(?:inf|\d)", said[1])) if said else None

    def prepare(self, model: nn.Module, *, ball: Ball, seed: int, classes: int, device: torch.device) -> Candidates:
        ours = {"eps": ball.eps, "max_epsilon": ball.eps, "norm": ball.norm, "seed": seed, "n_classes": classes}
        takes = parameters(self.theirs)
        given = {name: value for name, value in ours.items() if name in takes}
        attack = self.theirs(model, **given, **self.model_dump())
        attack.set_device(device)
        called: Candidates = attack
        return called


class FoolboxAttack(ExternalAttack):
    """One of Foolbox's (Rauber et al. 2020)."""

    package: ClassVar[str] = "foolbox"

    def norms(self) -> set[str] | None:
        """The distance it keeps to or minimises; none where it has none, not said where it can be told."""
        if "distance" in parameters(self.theirs):
            return None
        power = getattr(getattr(self._set_up(), "distance", None), "p", None)
        return set() if power is None else {f"L{power:g}"}

    def prepare(self, model: nn.Module, *, ball: Ball, seed: int, classes: int, device: torch.device) -> Candidates:
        foolbox = import_module("foolbox")
        seen = foolbox.PyTorchModel(model, bounds=(0, 1), device=device)
        own = {"distance": getattr(foolbox.distances, ball.norm.lower())}
        attack = self._set_up(**(own if "distance" in parameters(self.theirs) else {}))
        return lambda x, y: attack(seen, x, y, epsilons=ball.eps)[1]

    def _set_up(self, **given: Any) -> Any:
        try:
            return self.theirs(**given, **self.model_dump())
        except ModuleNotFoundError as error:
            raise InputError(
                f"`attack='{self.method}'` needs the package {error.name}: pip install {error.name}"
            ) from error
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.method} does not take these settings: {error}") from error


@ATTACKS.family("torchattacks")
def torchattacks_attack(name: str) -> type[Attack]:
    """The attack that torchattacks calls `name`.

    Raises:
        InputError: The package is not installed, has no such attack, or one that cannot be run from here.
    """
    # Its 3.5 puts an old copy of RobustBench over the installed one, which must be put back.
    package = _package("torchattacks", name, f"pip install torchattacks, then {FIX}, which torchattacks overwrites")
    return _made(TorchattacksAttack, package, name, tuple(package.__all__))


@ATTACKS.family("foolbox")
def foolbox_attack(name: str) -> type[Attack]:
    """The attack that Foolbox calls `name` in `foolbox.attacks`; errors as above."""
    package = _package("foolbox", name, "pip install foolbox")
    attacks = package.attacks
    kinds = {each: kind for each, kind in vars(attacks).items() if isinstance(kind, type)}
    names = [each for each, kind in kinds.items() if issubclass(kind, attacks.Attack) and not isabstract(kind)]
    return _made(FoolboxAttack, attacks, name, tuple(names))


def _package(package: str, attack: str, remedy: str) -> ModuleType:
    try:
        with redirect_stdout(sys.stderr):
            return import_module(package)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise InputError(f"`attack='{package}:{attack}'` needs the package {package}: {remedy}") from error
        reason = " ".join(str(error).split())
        raise InputError(f"`attack='{package}:{attack}'`: {package} cannot be imported: {reason}") from error


_OURS = frozenset({"model", "eps", "max_epsilon", "norm", "seed", "n_classes", "distance"})
"""Parameters that follow from the evaluation."""


@cache
def _made(base: type[ExternalAttack], package: ModuleType, name: str, names: tuple[str, ...]) -> type[Attack]:
    """The class for one of their attacks; the same each time, so that equal settings are equal attacks."""
    usable = [each for each in names if not unsayable(getattr(package, each), but=_OURS)]
    if name in names and name not in usable:
        missing = ", ".join(unsayable(getattr(package, name), but=_OURS))
        raise InputError(f"`attack='{base.package}:{name}'` cannot be run from here: it has to be given {missing}")
    if name not in usable:
        raise unknown_name(f"attack of {base.package}", name, usable)
    theirs = getattr(package, name)
    fields: dict[str, Any] = settings_of(theirs, but=_OURS)
    made = create_model(f"{base.package}_{name}", __base__=base, __module__=__name__, **fields)
    made.method, made.theirs = f"{base.package}:{name}", theirs
    return made
