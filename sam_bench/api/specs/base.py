"""What every spec can do: check itself, say what it is, and say where it differs from another."""

from __future__ import annotations

import hashlib
import json
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sam_bench.errors import InputError, unknown_name
from sam_bench.records import first_problem
from sam_bench.training.differences import Difference, first_difference


@dataclass(frozen=True)
class Option:
    """A field of a spec, described. Everything else is made from this: options, keywords, names, resume checks, sweeps.

    Attributes:
        help: One or two sentences for the command line's help and the Python documentation.
        identity: Another value makes it another run: the fingerprint changes and resuming is refused.
        in_name: The default name tells its value.
        sweep: A sweep may vary it (True), takes one value for all runs (False), or does not offer it (None).
        group: The heading of the help under which it stands.
        first: Its rank among the most used options, at the top of the help; 0: it is not among them.
        default: What the default amounts to, where the value does not say it.
        metavar: What stands for the value in the help.
    """

    help: str
    _: KW_ONLY
    identity: bool = False
    in_name: bool = False
    sweep: bool | None = None
    group: str = "run"
    first: int = 0
    default: str = ""
    metavar: str | None = None


option = Option
"""As the fields of the specs write it."""


S = TypeVar("S", bound="Spec")


class Spec(BaseModel):
    """One frozen object that says what to do. Its fields are the options, the keywords and the identity of a run.

    Raises:
        InputError: A field is unknown or its value wrong; names the field.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    positional: ClassVar[tuple[str, ...]] = ()
    """The fields that Python callers may give by their place."""

    def __init__(self, /, **fields: Any) -> None:
        for name in fields:
            if name not in type(self).model_fields:
                mapping = self.mapping_of(name)
                if mapping is not None:
                    raise InputError("is no argument", field=name, hint=f"give it as `{mapping}={{'{name}': …}}`")
                raise unknown_name("argument", name, type(self).model_fields)
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _refusal(error) from error

    @classmethod
    def of(cls: type[S], *given: Any, **fields: Any) -> S:
        """The spec for what a Python caller gives: a spec, values by their place, keywords, or a spec and changes."""
        if given and isinstance(given[0], cls):
            if len(given) > 1:
                raise InputError("a spec is given alone, or with keywords that change it")
            spec: S = given[0]
            return spec.but(**fields)
        if len(given) > len(cls.positional):
            raise TypeError(f"{given[len(cls.positional)]!r} must be given by name, as in `seed=1`")
        placed = dict(zip(cls.positional, given, strict=False))
        for name in placed.keys() & fields.keys():
            raise TypeError(f"got multiple values for argument {name!r}")
        return cls(**placed, **fields)

    @classmethod
    def mapping_of(cls, name: str) -> str | None:
        """The field that has this name as a key, such as `settings` for `rho`; None if none has."""
        return None

    def but(self: S, **changes: Any) -> S:
        """The same spec with other values, checked again."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**given | changes) if changes else self

    @classmethod
    def options(cls) -> dict[str, Option]:
        """Every field that a user can give, with what is known of it."""
        return {
            name: found
            for name, field in cls.model_fields.items()
            for found in field.metadata
            if isinstance(found, Option)
        }

    def identity(self) -> dict[str, Any]:
        """What makes it this run and no other: field to JSON value, in the order of the fields."""
        named = {name for name, each in self.options().items() if each.identity} - {"settings"}
        return self.model_dump(mode="json", include=named) | self.components()

    def components(self) -> dict[str, Any]:
        """What `settings` amounts to, by setting: part of the identity with every default filled in."""
        return {}

    def fingerprint(self) -> str:
        """The SHA-256 of the identity."""
        text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def first_difference(self, other: Spec) -> Difference | None:
        """The first field of the identity that differs in `other`; None where both are the same run."""
        return first_difference(self.identity(), other.identity())


def _refusal(error: ValidationError) -> InputError:
    """What pydantic found, as an error that names the field."""
    problem = error.errors(include_url=False)[0]
    cause = problem.get("ctx", {}).get("error")
    field = str(problem["loc"][0]) if problem["loc"] else None
    if isinstance(cause, InputError):
        if cause.field is not None or field is None:
            return cause
        return InputError(cause.problem, field=field, value=cause.value, hint=cause.hint)
    if problem["type"] == "literal_error" and field is not None:
        known = str(problem["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return unknown_name(f"`{field}`", str(problem["input"]), known)
    text = first_problem(error)
    return InputError(text.removeprefix(f"{field}"), field=field) if field else InputError(text)
