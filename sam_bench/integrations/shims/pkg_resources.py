"""Shim for `pkg_resources`, which setuptools 82 dropped: the one function RobustBench calls."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

_unpacked = ExitStack()
atexit.register(_unpacked.close)


def resource_filename(package_or_requirement: str, resource_name: str) -> str:
    """The path of a file that lies beside a module.

    Args:
        package_or_requirement: Name of a package, or of a module inside one.
        resource_name: Path relative to it, with forward slashes.

    Returns:
        The path; a file inside a zip archive is unpacked for as long as the process lives.
    """
    module = import_module(package_or_requirement)
    package = package_or_requirement if hasattr(module, "__path__") else module.__package__
    resource: Any = files(package or package_or_requirement)
    for part in resource_name.split("/"):
        resource = resource.joinpath(part)
    return str(resource if isinstance(resource, Path) else _unpacked.enter_context(as_file(resource)))


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"pkg_resources.{name} is not here: this is sam-bench's shim, which has resource_filename alone, "
        "because setuptools dropped pkg_resources; to have all of it: pip install 'setuptools<81'"
    )
