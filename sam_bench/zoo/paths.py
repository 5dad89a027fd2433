"""Where the zoo is, found without importing anything heavy."""

from __future__ import annotations

import os
from pathlib import Path

ZOO_VARIABLE = "SAM_BENCH_ZOO"


def zoo_dir(explicit: str | os.PathLike[str] | None = None) -> Path:
    """The zoo's folder: what was given, else `$SAM_BENCH_ZOO`, else `./model_zoo`.

    Args:
        explicit: A folder that was asked for (`--zoo`); wins over everything.

    Returns:
        The folder, which need not exist yet.
    """
    if explicit is not None:
        return Path(explicit).expanduser()
    return Path(os.environ.get(ZOO_VARIABLE) or "model_zoo").expanduser()
