"""Field types that several records share: radii as users write them, safe names, digests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, StringConstraints
from pydantic_core import core_schema

from sam_bench.errors import shortened

SCHEMA_VERSION: Final = 1

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_FRACTION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*/\s*(\d+(?:\.\d*)?|\.\d+)\s*")

Norm = Literal["Linf", "L2", "L1"]
"""Norms that a model can be evaluated in."""


def _check_threat(norm: Norm) -> Norm:
    if norm == "L1":
        raise ValueError(
            "'L1' is no threat model to list a model under: RobustBench has Linf and L2; evaluations in L1 are "
            "rows of the model's own entry"
        )
    return norm


Threat = Annotated[Norm, AfterValidator(_check_threat)]
"""A threat model that leaderboards list models under: `Linf` or `L2`."""


def _check_name(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(
            f"{shortened(name)!r} is not a usable name: letters, digits, '.', '_' and '-', "
            "starting with a letter or digit, at most 100 characters"
        )
    return name


Name = Annotated[str, AfterValidator(_check_name)]
"""A name that is safe as one component of a path."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Fraction01 = Annotated[float, Field(ge=0.0, le=1.0)]


class Radius(float):
    """A non-negative float that remembers how it was written: `Radius("8/255")`.

    It computes as a float and is stored and shown as written, so that a record says `8/255` and
    not `0.03137254901960784`.

    Raises:
        ValueError: The text is neither a number nor a fraction of two numbers, or is negative.
    """

    text: str

    def __new__(cls, value: str | float) -> Radius:
        if isinstance(value, Radius):
            return value
        number = super().__new__(cls, _to_float(value))
        if not 0.0 <= number < float("inf"):
            raise ValueError(f"{_shown(value)} is not a radius: it must be a finite number of at least 0")
        number.text = value.strip() if isinstance(value, str) else _shortest(number)
        return number

    def __reduce__(self) -> tuple[type[Radius], tuple[str]]:  # copying and pickling keep the text
        return Radius, (self.text,)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Radius({self.text!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda radius: Radius(radius).text, return_schema=core_schema.str_schema()
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "description": "a radius or step as written: '8/255' or '0.5'"}

    @classmethod
    def _validate(cls, value: Any) -> Radius:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"{_shown(value)} is not a radius: write a number or a fraction such as 8/255")
        return cls(value)


if TYPE_CHECKING:
    RadiusGiven = str | float
else:
    RadiusGiven = Radius
"""A `Radius` as a setting. A type checker lets callers write `PGD(eps="8/255")`; code that reads it takes `float`."""


def _to_float(value: str | float) -> float:
    if not isinstance(value, str):
        try:
            return float(value)
        except OverflowError:  # a whole number of more than 308 digits
            return float("inf")
    fraction = _FRACTION.fullmatch(value)
    if fraction:
        denominator = float(fraction[2])
        if denominator == 0:
            raise ValueError(f"{_shown(value)} is not a radius: it divides by zero")
        return float(fraction[1]) / denominator
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{_shown(value)} is not a radius: write a number or a fraction such as 8/255") from None


def _shown(value: object) -> str:
    return shortened(repr(value))


def _shortest(number: float) -> str:
    """The shortest text that reads back as exactly this number, without a needless '.0'; 8 / 255 as 8/255."""
    text = f"{number:.12g}"
    if float(text) == number:
        return text
    levels = round(255 * number)
    return f"{levels}/255" if levels / 255 == number else float.__repr__(number)


class Record(BaseModel):
    """Base of everything that is written to disk: fields are fixed, values finite, nothing is coerced silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
