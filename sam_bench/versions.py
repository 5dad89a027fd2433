"""Which code made a number, and when: the versions of packages, the commit of this one, the time."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def package_versions() -> dict[str, str]:
    """Versions of Python and of what decides numbers. sam-bench's has its commit, as in 0.1.0+4f53aa43bb58."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("sam-bench", "torch", "torchvision", "timm", "numpy", "robustbench", "pyautoattack", "autoattack"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    if (commit := source_commit()) is not None and "sam-bench" in versions:
        versions["sam-bench"] += f"+{commit}"
    return versions


def timestamp() -> str:
    """Now, as records have it: UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@cache
def source_commit() -> str | None:
    """The commit of the checkout that this package runs from, 12 digits, with `.changed` if its files differ.

    None where it runs from an installed copy, or git is missing.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # An installed copy may lie inside somebody's repository, which does not track it.
        head, tracked, changed = (
            subprocess.run([*git, *asked], capture_output=True, text=True, timeout=10)
            for asked in (["rev-parse", "HEAD"], ["ls-files", "__init__.py"], ["status", "-s", "-uno", "."])
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode or not tracked.stdout.strip():
        return None
    return head.stdout[:12] + (".changed" if changed.stdout.strip() else "")
