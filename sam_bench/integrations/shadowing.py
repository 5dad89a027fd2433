"""Notices that another package has put its own old copy of RobustBench over the installed one.

`torchattacks` 3.5 installs a folder `robustbench` of its own: whichever of the two is installed last
wins, file by file, and nothing says so until something is missing.
"""

from __future__ import annotations

import warnings
from base64 import urlsafe_b64encode
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from types import ModuleType

# Reading every file would cost every import of RobustBench; these differ in any other copy of it.
_TELLING = ("robustbench/__init__.py", "robustbench/eval.py", "robustbench/utils.py")

FIX = "pip uninstall -y robustbench and pip install robustbench"


def detect_shadowing() -> str | None:
    """Name what has overwritten RobustBench's files; None when they are as they were installed.

    Returns:
        Name and version of the distribution that claims the same files, "something" when none does.
    """
    try:
        robustbench = metadata.distribution("robustbench")
    except metadata.PackageNotFoundError:
        return None
    changed = [file for file in robustbench.files or () if str(file) in _TELLING and _differs(file)]
    return _claimant(changed[0]) if changed else None


def warn_if_shadowed(module: ModuleType) -> None:
    """Say so at RobustBench's import, before anything that is missing fails."""
    culprit = detect_shadowing()
    if culprit is not None:
        warnings.warn(f"robustbench's files were overwritten by {culprit}; to fix it: {FIX}", stacklevel=2)


def _differs(file: metadata.PackagePath) -> bool:
    if file.hash is None or file.hash.mode != "sha256":
        return False
    path = Path(str(file.locate()))
    found = sha256(path.read_bytes() if path.is_file() else b"").digest()
    return urlsafe_b64encode(found).rstrip(b"=").decode() != file.hash.value


def _claimant(changed: metadata.PackagePath) -> str:
    for other in metadata.distributions():
        for file in other.files or ():
            # Its own record has to describe what lies there now.
            if str(file) == str(changed) and file.locate() == changed.locate() and not _differs(file):
                return f"{other.metadata['Name']} {other.version}"
    return "something"
