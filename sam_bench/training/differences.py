"""Where two runs differ first, as a value and as a clause that names the field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """A field that differs between two runs.

    Attributes:
        field: Its name; with a dot where it is a setting of a part, such as `weights.rho`.
        before: Its value in the run that is there.
        now: Its value in the one that is asked for.
    """

    field: str
    before: Any
    now: Any

    def __str__(self) -> str:
        """As a clause; the field stands in backticks, so that each surface spells it its own way."""
        return f"it was started with {self._given(self.before)} and this command gives {self._given(self.now)}"

    def _given(self, value: Any) -> str:
        if value is None:
            return f"no `{self.field}`"
        return f"`{self.field}={f'{value[:12]}…' if self.field.endswith('fingerprint') else value!r}`"


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> Difference | None:
    """The first field, in the order of `now`, that has another value in `before`; None where there is none."""
    started, given = dict(leaves(before)), dict(leaves(now))
    for field in dict.fromkeys([*given, *started]):
        if started.get(field) != given.get(field):
            return Difference(field, started.get(field), given.get(field))
    return None


def leaves(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no mapping, by its path."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
