"""How the command line writes a field: `limit_train=1` is `--limit-train 1`."""

from __future__ import annotations

import ast


def as_option(name: str, value: str | None) -> str:
    """A field as an option.

    Args:
        name: The field's name in Python.
        value: Its value as Python source; None where only the option is meant.
    """
    option = f"--{name.replace('_', '-')}"
    if value is None or value == "True":
        return option
    if value == "False":
        return f"--no-{option[2:]}"
    try:
        given = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        given = value
    if isinstance(given, (list, tuple)):
        given = ",".join(map(str, given))
    return f"{option} {given}"
