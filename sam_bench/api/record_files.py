"""Where `evaluate` writes its record, and whether it can."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam_bench.errors import InputError
from sam_bench.records import Norm, Radius
from sam_bench.records.io import nearest_existing


def check_folder(folder: Path, *, option: str = "output", what: str = "no record") -> None:
    """Refuse a folder that cannot be written into.

    Args:
        folder: It or a folder above it is there.
        option: The field that named it.
        what: What cannot be written there, likewise.

    Raises:
        InputError: A file is in its place, or there is no permission.
    """
    there = nearest_existing(folder)
    if not there.is_dir():
        raise InputError(f"`{option}`: {what} can be written into {folder}, because {there} is a file")
    if not os.access(there, os.W_OK):
        raise InputError(f"`{option}`: {what} can be written into {folder}: no permission to write to {there}")


def check_record_file(path: Path | None) -> None:
    """Refuse a name that is no record's: its journal and its adversarial examples take the place of `.json`.

    Args:
        path: `output`; None if it was not given.

    Raises:
        InputError: It is a folder, or does not end in `.json`.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"`output={path}` is a folder; give the file to write, as in {path / 'record.json'}")
    if path.suffix != ".json":
        raise InputError(f"`output={path}` must be a file that ends in .json, as in {path}.json")


def record_name(
    attack: str, norm: Norm, eps: Radius, *, n_examples: int | None, seed: int, settings: Mapping[str, Any]
) -> str:
    """What `evaluate` calls a record when it is not told: `<attack>-<norm>-<eps>`.

    Settings of the attack that are not its usual ones, a number of examples that was asked for and a seed other than
    0 become part of the name, so that a quick look does not overwrite the evaluation that took a day.
    """
    told = {key: "-".join(value) if isinstance(value, (list, tuple)) else value for key, value in settings.items()}
    parts = [attack, *(f"{key}{value}" for key, value in told.items()), norm, str(eps)]
    if n_examples is not None:
        parts.append(f"n{n_examples}")
    if seed != 0:
        parts.append(f"seed{seed}")
    return _safe("-".join(parts).replace("/", "over"))


def default_record_folder(model: str) -> Path:
    """Where `evaluate` writes when it is not told: `evaluations/<model>`."""
    return Path("evaluations") / _safe(model)


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)
