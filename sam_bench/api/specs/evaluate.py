"""EvalSpec: everything that can be said of an evaluation, but for the model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from sam_bench.api.record_files import record_name
from sam_bench.api.specs.base import option
from sam_bench.api.specs.checks import Flag, Lengths, Place, Settings, Text, Whole
from sam_bench.api.specs.shared import RunSpec
from sam_bench.attacks import ATTACKS, Attack
from sam_bench.errors import InputError
from sam_bench.perturb.ball import USUAL_EPS, check_eps
from sam_bench.records import ComponentSpec, Norm, Radius


class EvalSpec(RunSpec):
    """An evaluation: the attack with its settings, the ball, the examples, and who does the work.

    It serves one radius and several: `evaluate` takes one, `evaluate_curve` any number.
    """

    positional: ClassVar[tuple[str, ...]] = ()

    attack: Annotated[
        str,
        Text("an attack's name, as in pgd"),
        option(
            "The attack's name; another package's is torchattacks:NAME or foolbox:NAME.",
            identity=True,
            in_name=True,
            sweep=True,
            group="attack",
            first=1,
        ),
    ] = "autoattack"
    settings: Annotated[
        Mapping[str, Any],
        Settings(),
        option(
            "A setting of the attack, such as steps=20; for another package's attack, which has no options.",
            identity=True,
            in_name=True,
            sweep=True,
            group="attack",
        ),
    ] = {}
    norm: Annotated[
        Norm,
        option("Norm of the ball.", identity=True, in_name=True, sweep=True, group="attack", first=2),
    ] = "Linf"
    eps: Annotated[
        tuple[Radius, ...] | None,
        Lengths(),
        option(
            "Radius of the ball, for inputs in [0, 1]; a,b,…: a curve, on which what is broken stays so.",
            identity=True,
            in_name=True,
            sweep=True,
            group="attack",
            first=3,
            default="8/255; L2: 0.5; L1: 12",
        ),
    ] = None
    n_examples: Annotated[
        int | None,
        Whole(),
        option(
            "The first so many test images; of every class in turn where they are sorted by it.",
            identity=True,
            in_name=True,
            sweep=True,
            group="data",
            first=4,
            default="all",
        ),
    ] = None
    batch_size: Annotated[
        int | Literal["auto"],
        Whole(1, words=("auto",)),
        option(
            "Examples at a time; auto: what a GPU has room for, else 128. Verdicts depend on it with attacks on whole "
            "batches only.",
            identity=True,
            group="device",
            first=6,
        ),
    ] = "auto"
    workers: Annotated[
        int | None,
        Whole(1),
        option(
            "Processes that share the examples.",
            group="device",
            default="1; with Ray: as many as there is room for",
        ),
    ] = None
    executor: Annotated[
        Literal["local", "ray"],
        option("Where the work is done: on this machine, or on a Ray cluster.", group="device"),
    ] = "local"
    ray_address: Annotated[
        str | None,
        Text("auto, local or HOST:PORT"),
        option(
            "auto or HOST:PORT of a Ray cluster; local: start one here.",
            group="device",
            metavar="ADDRESS",
            default="$RAY_ADDRESS, else local",
        ),
    ] = None
    output: Annotated[
        Path | None,
        Place(folder=False),
        option(
            "The record's file (….json).",
            first=7,
            default="evaluations/MODEL/ATTACK-NORM-EPS….json",
        ),
    ] = None
    record_dir: Annotated[
        Path | None,
        Place(),
        option("The folder of the records, one a radius.", default="evaluations/MODEL"),
    ] = None
    resume: Annotated[
        bool | Literal["if-any"],
        Flag(words=("if-any",)),
        option("Go on with what an interrupted evaluation has found; a finished one is given back.", first=9),
    ] = False
    save_adversarial: Annotated[bool, Flag(), option("Write the adversarial examples, too (….adversarial.npz).")] = (
        False
    )
    second_attack: Annotated[
        bool,
        Flag(),
        option(
            "Run pgd-margin on what the attack left standing, and warn where it breaks more than half a point.",
            group="attack",
        ),
    ] = False

    @classmethod
    def mapping_of(cls, name: str) -> str | None:
        return "settings" if any(name in each.model_fields for each in ATTACKS) else None

    @property
    def radii(self) -> tuple[Radius, ...]:
        """The radii, the smallest first; the norm's usual one where none is given."""
        return (USUAL_EPS[self.norm],) if self.eps is None else tuple(sorted(self.eps, key=float))

    @cached_property
    def built(self) -> Attack:
        """The attack with its settings.

        Raises:
            InputError: There is none of this name, or it has no such setting; names the field.
        """
        takes = ATTACKS.get(self.attack).model_fields
        for setting in self.settings:
            if setting not in takes:
                owners = [each.method for each in ATTACKS if setting in each.model_fields]
                belongs = f"it belongs to {', '.join(owners)}" if owners else "no attack has it"
                known = f"{self.attack} takes {', '.join(takes)}" if takes else f"{self.attack} takes no settings"
                raise InputError(f"`attack.{setting}` does not apply to attack {self.attack!r}: {belongs}; {known}")
        return ATTACKS.build(ComponentSpec(method=self.attack, **self.settings))

    def identity(self) -> dict[str, Any]:
        """See `Spec.identity`. The batch size counts only where verdicts depend on it."""
        fields = super().identity() | {"eps": [str(eps) for eps in self.radii]}
        if self.built.per_example:
            del fields["batch_size"]
        return fields

    def components(self) -> dict[str, Any]:
        return {f"attack.{name}": value for name, value in self.built.model_dump(mode="json").items()}

    def default_name(self, eps: Radius) -> str:
        """What the record at a radius is called when nobody says."""
        usual = {
            name: field.get_default(call_default_factory=True) for name, field in type(self.built).model_fields.items()
        }
        told = {name: value for name, value in self.settings.items() if getattr(self.built, name) != usual[name]}
        return record_name(self.attack, self.norm, eps, n_examples=self.n_examples, seed=self.seed, settings=told)

    def check(self) -> None:
        """Refuse what cannot be attacked, as far as it is known without the model.

        Raises:
            InputError: A radius or a setting is wrong, or the attack does not search in this norm; names the field.
        """
        for eps in self.radii if self.eps is not None else ():
            check_eps(self.norm, eps, allow_large=self.allow_large_eps, field="eps")
        if self.output is not None and len(self.radii) > 1:
            raise InputError("`output` names one file, but `eps` gives several radii; leave `output` away")
        if self.output is not None and self.record_dir is not None:
            raise InputError("`output` names the record's file already; leave `record_dir` away")
        if len(self.radii) > 1 and not self.built.curves:
            raise InputError(f"takes one radius with attack {self.attack!r}; ask for each by itself", field="eps")
        self.built.check(self.norm)
